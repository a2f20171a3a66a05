# SPDX-License-Identifier: Apache-2.0
"""One step of dissipative decoding: logits in, logits moved within a trust region out (002 sec. 4, 8.1, app. B.2).

Per request and token: the k likeliest tokens are the candidates; each gets J = L - lambda Gamma (``objective``) from
where the text would stand with it; the distribution *over the candidates at the request's temperature* is tilted by J
within the KL budget (``trust_region``); the candidates' logits are changed in place and nothing else is.

The candidates keep their joint probability, so that KL over the whole vocabulary is at most KL over them, and equal
for a sampler that draws from these k. What is promised is KL of what was *written*: half and single precision round
large logits, so the written values are measured again, and a row that rounding took beyond its budget is drawn back.

A row is left alone, bit by bit, with the reason in ``Step.fallback``, where lambda is 0, the text or its goal is not
known, the budget is spent, decoding is greedy (the only q with finite KL from one point is that point), its logits or
J are not numbers, or its structure is broken. Lambda 0 means off: by the formula alone it would mean L at full budget.

No clock and no I/O; state is in ``Requests``, whose slots the caller hands out, as serving engines do.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray
from mvps.surplus.candidates import IndexArray, Logits, taken, top_k
from mvps.surplus.geometry import EQUAL_TENSION, TensionWeights, tension
from mvps.surplus.lookahead import UNKNOWN, Surrogate, discounted, paths
from mvps.surplus.objective import (
    DissipationWeights,
    Standing,
    Terms,
    ValueWeights,
    drift,
    format_debt,
    likelihood_gain,
    mode_flip,
    progress,
    saturating,
)
from mvps.surplus.structure import StructureChecker, TokenArray
from mvps.surplus.trust_region import (
    FEW_ROWS,
    MODES,
    BoolArray,
    Tilt,
    centred,
    clamp,
    log_normalised,
    shrink,
    tilt_normalised,
)

Floats = npt.NDArray[np.floating]

_ROUNDING_SLACK = 1e-7  # nats that rounding of the written logits may add to a budget
_ROUNDING_TRIES = 4


class Fallback(enum.IntEnum):
    """Why a row was left as the model gave it."""

    NONE = 0
    OFF = 1
    GREEDY = 2
    NO_FEATURES = 3
    BUDGET_SPENT = 4
    LOGITS = 5
    STRUCTURE = 6
    OBJECTIVE = 7
    ROUNDING = 8


@dataclass(frozen=True)
class Settings:
    """How the controller works; defaults are those of app. B.6.1 where it has them.

    top_k: candidates. horizon, gamma: steps and discount of looking ahead. mode: "kl" (budget in nats), "box" or "l2"
    (budget in logits). eta: unit of J in the last two. eta_floor: least eta in the first (ours): differences of J
    below it are not blown up to fill the budget. reach: weight of a new token in the window's embedding.
    request_budget: nats a request may use in all. dwell: steps between changes of mode. debt_gate, debt_steps,
    repair_bonus: tokens of structure gain ``repair_bonus`` in J once the debt exceeded the gate for so many steps; the
    text injects them outright, which no trust region allows.
    """

    top_k: int = 8
    horizon: int = 5
    gamma: float = 0.9
    mode: str = "kl"
    eta: float = 1.0
    eta_floor: float = 0.05
    reach: float = 0.05
    request_budget: float = float("inf")
    dwell: int = 3
    debt_gate: float = 0.6
    debt_steps: int = 2
    repair_bonus: float = 1.0
    latency_half_ms: float = 100.0
    length_half: float = 20.0
    value: ValueWeights = field(default_factory=ValueWeights)
    dissipation: DissipationWeights = field(default_factory=DissipationWeights)
    tension: TensionWeights = EQUAL_TENSION

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown trust region {self.mode!r}: choose one of {', '.join(MODES)}")
        if self.top_k < 2 or self.horizon < 1:
            raise ValueError("the controller needs at least 2 candidates and a horizon of at least 1 step")
        if not (0.0 < self.reach < 1.0 and 0.0 < self.gamma <= 1.0 and self.eta > 0.0 and self.eta_floor >= 0.0):
            raise ValueError("reach lies in (0, 1), gamma in (0, 1], eta above 0, eta_floor not below 0")


@dataclass(frozen=True)
class Modes:
    """Modes of decoding (plain text, tools): which token begins which, and what they cost.

    of_token: (V,) mode of each token, -1 for those that stay in the mode they find. latency_ms, tokens: (modes,) what
    entering one is expected to take. routing: (modes, modes) cost rho of each handoff; staying costs nothing.
    """

    of_token: npt.NDArray[np.int16]
    latency_ms: FloatArray
    tokens: FloatArray
    routing: FloatArray


@dataclass(frozen=True)
class Terrain:
    """What texts are measured against. token_embeddings: (V, d). axes: (d, m) orthonormal, of the constraints."""

    token_embeddings: npt.NDArray[np.float32]
    axes: npt.NDArray[np.float32]
    modes: Modes | None = None


class Requests:
    """State of the texts being generated, one slot each; arrays over slots.

    texts: (capacity, 2, d), goal and embedding, which are views of it; the goal at unit length. known: whether there is
    a goal. spent: nats used.
    """

    def __init__(self, capacity: int, dimensions: int) -> None:
        # Beside each other: a step reads both.
        self.texts = np.zeros((capacity, 2, dimensions), dtype=np.float32)
        self.goal, self.embedding = self.texts[:, 0], self.texts[:, 1]
        self.known = np.zeros(capacity, dtype=bool)
        self.mode = np.zeros(capacity, dtype=np.int16)
        self.previous_mode = np.zeros(capacity, dtype=np.int16)
        self.since_flip = np.zeros(capacity, dtype=np.int64)
        self.debt = np.zeros(capacity)
        self.debt_run = np.zeros(capacity, dtype=np.int64)
        self.spent = np.zeros(capacity)

    def open(self, slot: int, goal: FloatArray | None = None, embedding: FloatArray | None = None) -> None:
        """A new text in a slot, which forgets what was in it. Without a goal it is never moved.

        embedding: of its prompt's window; without one the text begins at its goal.
        """
        for state in (self.mode, self.previous_mode, self.debt, self.debt_run, self.spent):
            state[slot] = 0
        self.since_flip[slot] = np.iinfo(np.int64).max // 2
        length = 0.0 if goal is None else float(np.linalg.norm(goal))
        known = goal is not None and 0.0 < length < np.inf
        self.known[slot] = known
        self.goal[slot] = np.asarray(goal) / length if known else 0.0
        self.embedding[slot] = self.goal[slot] if embedding is None else embedding


class Control(NamedTuple):
    """How hard to push each row (n,). lam: lambda. budget: nats or logits. sse: semantic spread. look: look ahead."""

    lam: FloatArray
    budget: FloatArray
    sse: FloatArray
    look: BoolArray


class Step(NamedTuple):
    """What was done in one step.

    candidates: (n, k) token ids. temperature: (n,) in use, 1 where greedy. log_p: (n, k) of the candidates at it.
    change: (n, k) of log p as written. kl: (n,) nats used. eta, fallback: (n,). value, dissipation, objective: (n, k)
    L, Gamma and J. now: (n, 1) where the texts stand; sse: (n,) their spread. stop_advised: (n,) the logits are no
    numbers or the structure is broken.
    """

    candidates: IndexArray
    temperature: FloatArray
    log_p: FloatArray
    change: FloatArray
    kl: FloatArray
    eta: FloatArray
    fallback: npt.NDArray[np.int64]
    terms: Terms
    value: FloatArray
    dissipation: FloatArray
    objective: FloatArray
    now: Standing
    sse: FloatArray
    stop_advised: BoolArray

    @property
    def dlogits(self) -> FloatArray:
        """L2 norm (n,) of the change of the logits less its mean."""
        change = centred(self.change, np.isfinite(self.log_p)) * self.temperature[:, None]
        norm: FloatArray = np.sqrt((change * change).sum(axis=1))
        return norm

    @property
    def risk(self) -> FloatArray:
        """Probability (n,) that the model itself put on candidates that break the structure."""
        if self.terms.structure_risk is None:
            return np.zeros(len(self.kl))
        share: FloatArray = (np.exp(self.log_p) * self.terms.structure_risk).sum(axis=1)
        return share

    def tension(self, weights: TensionWeights = EQUAL_TENSION) -> FloatArray:
        """iT (n,) of the texts as they stand."""
        return tension(self.now.theta[:, 0], self.now.leakage[:, 0], self.sse, weights)

    def sample(self, uniform: FloatArray) -> TokenArray:
        """Tokens (n,) drawn from the candidates by uniform numbers (n,) in [0, 1)."""
        return drawn(self.candidates, np.exp(self.log_p + self.change), uniform)


def drawn(candidates: IndexArray, probabilities: FloatArray, uniform: FloatArray) -> TokenArray:
    """Candidates (n, k) drawn by their probabilities (n, k), which need not sum to 1, and uniform numbers (n,)."""
    reached = np.cumsum(probabilities, axis=1)
    column = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    tokens: TokenArray = candidates[np.arange(len(candidates)), np.minimum(column, candidates.shape[1] - 1)]
    return tokens


@dataclass
class Controller:
    """The controller of one engine process."""

    settings: Settings
    terrain: Terrain
    requests: Requests
    checker: StructureChecker | None = None
    surrogate: Surrogate | None = None
    _axes: npt.NDArray[np.float32] = field(init=False, repr=False)
    # Of every token t, (V, 2 + m): reach^2 times |t|^2 and |A t|^2, and A t.
    _of_tokens: npt.NDArray[np.float32] = field(init=False, repr=False)
    # Factors (3,) in <w, g>, |w|^2 and |A w|^2 of the products of e with t, and of e alone.
    _of_mixed: FloatArray = field(init=False, repr=False)
    _of_kept: FloatArray = field(init=False, repr=False)
    _latency: FloatArray = field(init=False, repr=False)
    _length: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._axes = np.ascontiguousarray(self.terrain.axes, dtype=np.float32)
        tokens = self.terrain.token_embeddings
        inside = tokens @ self._axes
        reach, keep = self.settings.reach, 1.0 - self.settings.reach
        squares = [np.float32(reach * reach) * np.einsum("vd,vd->v", x, x) for x in (tokens, inside)]
        self._of_tokens = np.column_stack((*squares, inside))
        self._of_mixed = np.array((reach, 2.0 * reach * keep, 2.0 * reach * keep))
        self._of_kept = np.array((keep, keep * keep, keep * keep))
        if self.terrain.modes is not None:
            self._latency = saturating(self.terrain.modes.latency_ms, self.settings.latency_half_ms)
            self._length = saturating(self.terrain.modes.tokens, self.settings.length_half)

    def apply(self, logits: Logits, slots: TokenArray, control: Control, temperature: FloatArray) -> Step:
        """Move the logits (n, V) of one step in place. slots, temperature: (n,); 0 is greedy."""
        # Once for all: entering it costs as much as the arithmetic of a small batch.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            candidates = top_k(logits, self.settings.top_k)
            z = taken(logits, candidates)
            return self._apply(z, candidates, logits, candidates, slots, control, temperature)

    def apply_to_candidates(
        self,
        candidates: IndexArray,
        logits: Logits,
        slots: TokenArray,
        control: Control,
        temperature: FloatArray,
    ) -> Step:
        """As ``apply``, where somebody else has found the k likeliest tokens, as an engine does on its accelerator.

        candidates: (n, k) their ids. logits: (n, k) theirs, changed in place.
        """
        if candidates.shape != logits.shape or candidates.shape[1] != self.settings.top_k:
            raise ValueError(
                f"candidates {candidates.shape} with logits {logits.shape}: both are (n, {self.settings.top_k})"
            )
        columns = np.broadcast_to(np.arange(self.settings.top_k), candidates.shape)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._apply(logits, candidates, logits, columns, slots, control, temperature)

    def _apply(
        self,
        given: Logits,
        candidates: IndexArray,
        target: Logits,
        columns: IndexArray,
        slots: TokenArray,
        control: Control,
        temperature: FloatArray,
    ) -> Step:
        """given: (n, k) logits of the candidates, which stand in the given columns (n, k) of the target."""
        settings, requests = self.settings, self.requests
        z = given.astype(np.float64)
        warm = temperature > 0.0
        unit = np.where(warm, temperature, 1.0)[:, None]
        log_p = log_normalised(z / unit)

        now, then = self._before_and_after(slots, candidates)
        broken = np.zeros(len(slots), dtype=bool)
        risk = repairs = None
        if self.checker is not None:
            broken = self.checker.broken(slots)
            risk = (self.checker.valid_length(slots, candidates[:, :, None]) < 1).astype(np.float64)
            repairs = self.checker.structural(candidates)
        terms = self._terms(log_p, now, then, control.sse[:, None], candidates, slots, risk, repairs)
        value, dissipation = terms.value(settings.value), terms.dissipation(settings.dissipation)
        objective = value - control.lam[:, None] * dissipation
        if repairs is not None:
            gated = requests.debt_run.take(slots) >= settings.debt_steps
            if gated.any():
                objective = objective + settings.repair_bonus * (gated[:, None] & repairs)
        if self.surrogate is not None and control.look.any():
            self._look_ahead(objective, np.flatnonzero(control.look), slots, candidates, control, terms)

        budget, spent = control.budget, np.zeros(len(slots), dtype=bool)
        if settings.request_budget < np.inf:
            left = settings.request_budget - requests.spent[slots]
            spent = left <= 0.0
            budget = np.minimum(budget, left) if settings.mode == "kl" else budget
        known = requests.known.take(slots) & np.isfinite(now.cosine[:, 0])
        moves = warm & (control.lam > 0.0) & known & ~(spent | broken)
        moved = self._moved(log_p, objective, np.where(moves, budget, 0.0))
        moved, rounded = self._written(target, columns, z, log_p, unit, moved, budget)
        requests.spent[slots] += moved.kl

        fallback = np.zeros(len(slots), dtype=np.int64)
        stop_advised = broken
        if not moved.kl.all():
            bad_logits = ~np.isfinite(log_p.max(axis=1))
            stop_advised = broken | bad_logits
            odd = ~np.isfinite(np.where(log_p > -np.inf, objective, 0.0)).all(axis=1)
            # The first that holds is the reason.
            reasons = (
                (bad_logits, Fallback.LOGITS),
                (control.lam <= 0.0, Fallback.OFF),
                (~warm, Fallback.GREEDY),
                (broken, Fallback.STRUCTURE),
                (~known, Fallback.NO_FEATURES),
                (spent, Fallback.BUDGET_SPENT),
                (odd, Fallback.OBJECTIVE),
                (rounded, Fallback.ROUNDING),
            )
            fallback = np.select([rows for rows, _ in reasons], [int(why) for _, why in reasons], int(Fallback.NONE))
        return Step(
            candidates,
            unit[:, 0],
            log_p,
            moved.change,
            moved.kl,
            moved.eta,
            fallback,
            terms,
            value,
            dissipation,
            objective,
            now,
            control.sse,
            stop_advised,
        )

    def advance(self, slots: TokenArray, tokens: TokenArray) -> None:
        """Take the tokens (n,) that were sampled."""
        requests, settings = self.requests, self.settings
        if self.checker is not None:
            risk = (self.checker.valid_length(slots, tokens[:, None, None])[:, 0] < 1).astype(np.float64)
            repairs = self.checker.structural(tokens)
            requests.debt[slots] = format_debt(requests.debt[slots], risk, repairs)
            over = requests.debt[slots] > settings.debt_gate
            requests.debt_run[slots] = np.where(over, requests.debt_run[slots] + 1, 0)
            self.checker.advance(slots, tokens)
        requests.embedding[slots] = self._after(requests.embedding[slots][:, None], tokens[:, None])[:, 0]
        mode = requests.mode[slots]
        entered = self._mode_of(tokens, mode)
        requests.since_flip[slots] = np.where(entered != mode, 0, requests.since_flip[slots] + 1)
        requests.previous_mode[slots] = mode
        requests.mode[slots] = entered

    def _after(self, embedding: npt.NDArray[np.float32], tokens: TokenArray) -> npt.NDArray[np.float32]:
        """The window's embedding (n, k, d) with each token (n, k) behind it."""
        reach = np.float32(self.settings.reach)
        after = self.terrain.token_embeddings[tokens] * reach
        after += (np.float32(1.0) - reach) * embedding
        return after

    def _before_and_after(self, slots: TokenArray, candidates: IndexArray) -> tuple[Standing, Standing]:
        """Where texts stand (n, 1), and would stand with each candidate (n, k), without making those windows.

        With e the window and t the token, w = keep e + reach t, so |w|^2, <w, g> and |A w|^2 follow from products of
        e and t; those of t alone were made once for the vocabulary. A: coordinates in the axes.
        """
        texts = self.requests.texts.take(slots, axis=0)
        columns = texts.transpose(0, 2, 1)
        embedding = texts[:, 1:]
        inside = np.matmul(embedding, self._axes)
        of_tokens = self._of_tokens.take(candidates, axis=0)
        # (n, 1 + k, 3): <w, g>, |w|^2, |A w|^2.
        of = np.empty((len(slots), 1 + candidates.shape[1], 3))
        now, then = of[:, :1], of[:, 1:]
        now[:, :, :2] = np.matmul(embedding, columns)
        now[:, :, 2:] = np.matmul(inside, inside.transpose(0, 2, 1))
        then[:, :, :2] = np.matmul(self.terrain.token_embeddings.take(candidates, axis=0), columns)
        then[:, :, 2:] = np.matmul(of_tokens[:, :, 2:], inside.transpose(0, 2, 1))
        then *= self._of_mixed
        then += self._of_kept * now
        then[:, :, 1:] += of_tokens[:, :, :2]
        stands = self._stands(of[:, :, 0], of[:, :, 1], of[:, :, 2])
        return Standing(*[part[:, :1] for part in stands]), Standing(*[part[:, 1:] for part in stands])

    def _standing(self, x: npt.NDArray[np.float32], goal: npt.NDArray[np.float32]) -> Standing:
        """Where windows (n, j, d) stand; NaN without a text."""
        inside = np.matmul(x, self._axes)
        return self._stands(
            np.matmul(x, goal[:, :, None])[:, :, 0],
            np.einsum("njd,njd->nj", x, x).astype(np.float64),
            np.einsum("njm,njm->nj", inside, inside),
        )

    def _stands(self, along: Floats, square: FloatArray, inside: Floats) -> Standing:
        """Where windows (n, j) stand, by their <w, g>, |w|^2 and |A w|^2. Single precision: leakage to 3e-4."""
        cosine = np.minimum(np.maximum(along / np.sqrt(square), -1.0), 1.0)
        share = np.minimum(inside / square, 1.0) if self._axes.shape[1] else np.ones(square.shape)
        return Standing(cosine, np.arccos(cosine), np.sqrt(share), np.sqrt(1.0 - share))

    def _mode_of(self, tokens: TokenArray, current: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Mode (n,) or (n, k) that tokens lead to from the current one, which has the shape or broadcasts."""
        if self.terrain.modes is None:
            return np.broadcast_to(current, tokens.shape)
        entered = self.terrain.modes.of_token.take(tokens)
        return np.where(entered < 0, current, entered)

    def _terms(
        self,
        log_p: FloatArray,
        now: Standing,
        then: Standing,
        sse: FloatArray,
        candidates: IndexArray,
        slots: TokenArray,
        risk: FloatArray | None,
        repairs: BoolArray | None,
    ) -> Terms:
        requests, settings, modes = self.requests, self.settings, self.terrain.modes
        flip = latency = length = routing = debt = None
        if modes is not None:
            current = requests.mode.take(slots)[:, None]
            mode = self._mode_of(candidates, current)
            enters = mode != current
            if enters.any():
                previous = requests.previous_mode[slots][:, None]
                flip = mode_flip(mode, current, previous, requests.since_flip[slots][:, None], settings.dwell)
                latency = self._latency[mode] * enters
                length = self._length[mode] * enters
                routing = modes.routing[current, mode] * enters
        if risk is not None and repairs is not None:
            debt = format_debt(requests.debt.take(slots)[:, None], risk, repairs)
        return Terms(
            likelihood=likelihood_gain(log_p),
            progress=progress(now, then),
            drift=drift(now, then),
            tension=self._carried(then, sse),
            structure_risk=risk,
            format_debt=debt,
            mode_flip=flip,
            latency=latency,
            length=length,
            routing=routing,
        )

    def _carried(self, then: Standing, sse: FloatArray) -> FloatArray | None:
        """iT after a candidate, where it has a weight."""
        if not self.settings.dissipation.tension:
            return None
        return tension(then.theta, then.leakage, sse, self.settings.tension)

    def _look_ahead(
        self,
        objective: FloatArray,
        rows: IndexArray,
        slots: TokenArray,
        candidates: IndexArray,
        control: Control,
        first: Terms,
    ) -> None:
        """Replace J of some rows by its discounted mean along the path behind each candidate."""
        settings = self.settings
        assert self.surrogate is not None
        path = paths(self.surrogate, candidates[rows], settings.horizon)
        alive = path != UNKNOWN
        steps = np.zeros(path.shape)
        steps[:, :, 0] = objective[rows]
        keeps = self.checker.valid_length(slots[rows], path) if self.checker is not None else None
        goal, sse, lam = self.requests.goal[slots[rows]], control.sse[rows, None], control.lam[rows, None]
        x = self._after(self.requests.embedding[slots[rows]][:, None], path[:, :, 0])
        before = self._standing(x, goal)
        nothing = np.zeros(x.shape[:2])
        for h in range(1, settings.horizon):
            x = self._after(x, path[:, :, h])
            after = self._standing(x, goal)
            terms = Terms(
                likelihood=nothing,
                progress=progress(before, after),
                drift=drift(before, after),
                tension=self._carried(after, sse),
                # A structure breaks once; what comes behind it is not known.
                structure_risk=None if keeps is None else (keeps == h).astype(np.float64),
            )
            steps[:, :, h] = terms.value(settings.value) - lam * terms.dissipation(settings.dissipation)
            before = after
        objective[rows] = discounted(steps, alive, settings.gamma)

    def _moved(self, log_p: FloatArray, objective: FloatArray, budget: FloatArray) -> Tilt:
        settings = self.settings
        if settings.mode == "kl":
            return tilt_normalised(log_p, objective, budget, settings.eta_floor)
        bounded = clamp if settings.mode == "box" else shrink
        return bounded(log_p, objective, budget, settings.eta)

    def _written(
        self,
        target: Logits,
        columns: IndexArray,
        z: FloatArray,
        log_p: FloatArray,
        unit: FloatArray,
        moved: Tilt,
        budget: FloatArray,
    ) -> tuple[Tilt, BoolArray]:
        """Write the moved rows into their columns of the target (n, any).

        The tilt as it was written, and the rows that rounding did not let move.
        """
        rounded = np.zeros(len(z), dtype=bool)
        rows = moved.kl.nonzero()[0]
        if not len(rows):
            return moved, rounded
        every = len(rows) == len(z)
        pick = slice(None) if every else rows
        limit = (budget if self.settings.mode == "kl" else moved.kl)[pick] + _ROUNDING_SLACK
        wanted, base, scale, before = moved.change[pick], z[pick], unit[pick], log_p[pick]
        for _ in range(_ROUNDING_TRIES):
            written = (base + scale * wanted).astype(target.dtype)
            change, kl = _as_written(written / scale, before)
            over = ~(kl <= limit)
            if not over.any():
                break
            # Nearly the square root of the ratio is right; a little less, as rounding is no straight line.
            back = np.where(over, np.clip(0.9 * np.sqrt(limit / kl), 0.0, 0.9), 1.0)
            wanted = wanted * back[:, None]
        else:
            written = np.where(over[:, None], base.astype(target.dtype), written)
            change, kl = np.where(over[:, None], 0.0, change), np.where(over, 0.0, kl)
        target[rows[:, None], columns[pick]] = written
        if every:
            return moved._replace(change=change, kl=kl), over
        all_change, all_kl = moved.change.copy(), moved.kl.copy()
        all_change[rows], all_kl[rows], rounded[rows] = change, kl, over
        return moved._replace(change=all_change, kl=all_kl), rounded


def _as_written(z: FloatArray, log_p: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Change of log p and KL of rows whose logits came out as z; where p is 0, so is q."""
    if len(z) <= FEW_ROWS:
        rows = [_row_as_written(*row) for row in zip(z.tolist(), log_p.tolist(), strict=True)]
        return np.array([change for change, _ in rows]), np.array([kl for _, kl in rows])
    log_q = log_normalised(z)
    change = np.where(log_p > -np.inf, log_q - log_p, 0.0)
    # Rounding can take a sum that is 0 below it.
    return change, np.maximum((np.exp(log_q) * change).sum(axis=1), 0.0)


def _row_as_written(z: list[float], log_p: list[float]) -> tuple[list[float], float]:
    """``_as_written`` of one row."""
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    total = sum(weights)
    norm = top + math.log(total)
    change = [x - norm - before if before > -math.inf else 0.0 for x, before in zip(z, log_p, strict=True)]
    return change, max(sum(w * moved for w, moved in zip(weights, change, strict=True)) / total, 0.0)
