# SPDX-License-Identifier: Apache-2.0
"""The controller in any engine: slots, goals, ticks, and the audit packet of each tick (002 sec. 4, 8.1, 11.2).

An engine opens a slot for a request, calls ``step`` with its logits before it samples and ``sampled`` with what it
drew, and closes the slot. Each row is steered at its own temperature, as hard as its tenant's directive says; a
directive of lambda 0 leaves every logit as it was, bit by bit.

    goal       where nobody gives one: the mean of the prompt's token embeddings (ours)
    window     the mean of the prompt's last tokens with the weights that the controller gives to new ones
    tick       ``geometry.TickRule``; a slot that closes ends its last one

What a packet says of the chosen candidate is the mean over the tick's tokens that were candidates: a sampler may draw
others, which nothing was measured of. Prompts, texts and tokens are in no packet, a request is named by a salted hash.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.serving.tensors import Likeliest, TokenArray, likeliest, write
from mvps.serving.text_spread import KEPT_TOKENS
from mvps.surplus.candidates import IndexArray
from mvps.surplus.controller import Control, Controller, Fallback, Step
from mvps.surplus.geometry import TickRule
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import Directive
from mvps.surplus.packets import ActionKind, Cap, FallbackCause, State, checked_name, salted

OFF: Final = Directive("", 0.0, 0.0, 0.0, math.nan, Band.GREEN, False, False, False)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOW: Final = 256
_MOST: Final = 1e15
# Part of J -> its name in a packet.
_VALUE: Final = {
    "likelihood": "dlp",
    "progress": "progress",
    "structure_risk": "struct_risk",
    "latency": "lat",
    "length": "len",
}
_DISSIPATION: Final = {
    "drift": "drift",
    "mode_flip": "mode_flip",
    "format_debt": "fmt_debt",
    "tension": "tension",
    "routing": "routing",
}
_PARTS: Final = (*_VALUE, *_DISSIPATION)
_SHARES: Final = {"structure_risk", "latency", "length", "format_debt"}


@dataclass(slots=True)
class _Slot:
    """A request and its running tick."""

    tenant: str
    session: str
    begun_ns: int
    steps: int = 0
    kl: float = 0.0
    dlogits: float = 0.0
    risk: float = 0.0
    fallback: int = 0
    looked: bool = False
    candidates: int = 0
    told: Directive = OFF
    standing: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    sums: FloatArray = field(default_factory=lambda: np.zeros(len(_PARTS)))
    counts: FloatArray = field(default_factory=lambda: np.zeros(len(_PARTS)))


class Decoding:
    """The requests of one engine process.

    controller: with as many slots as the engine has. model: its name in packets. salt: secret of at least 16 bytes.
    told: tenant -> what holds for it now; called once a step and tenant. written: takes every packet, must not wait.
    answered: takes tenant and first tokens of every answer that ends, must not wait. clock: nanoseconds since epoch.
    """

    def __init__(
        self,
        controller: Controller,
        model: str,
        salt: bytes,
        told: Callable[[str], Directive],
        written: Callable[[Cap], None],
        *,
        ticks: TickRule | None = None,
        answered: Callable[[str, Sequence[int]], None] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        # What cannot be in a packet is refused now and not at the end of the first tick.
        salted(b"", salt)
        checked_name(model)
        self._controller = controller
        self._model = model
        self._salt = salt
        self._told = told
        self._written = written
        self._ticks = ticks or TickRule()
        self._answered = answered
        self._said: dict[int, list[int]] = {}  # of each slot, where somebody wants them
        self._clock = clock
        capacity = len(controller.requests.known)
        self._temperature = np.zeros(capacity)
        self._slots: dict[int, _Slot] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self._last: dict[int, tuple[Step, int]] = {}  # of each slot: its last step, and its row there

    @property
    def top_k(self) -> int:
        """Candidates a row."""
        return self._controller.settings.top_k

    @property
    def room(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take_slot(self) -> int:
        """A free slot, for engines that have no numbers of their own. ValueError where there is none."""
        if not self._free:
            raise ValueError(f"all {len(self._temperature)} slots are taken: make the controller's requests larger")
        return self._free[-1]

    def open(
        self,
        slot: int,
        tenant: str,
        request: bytes,
        temperature: float,
        prompt: Sequence[int] | TokenArray,
        goal: FloatArray | None = None,
    ) -> None:
        """A new request in a slot. request: what names it, of which a salted hash is kept. goal: (d,)."""
        if not 0 <= slot < len(self._temperature):
            raise ValueError(f"no slot {slot}: there are {len(self._temperature)}")
        checked_name(tenant)
        if slot in self._slots:
            self.close(slot)
        tokens = self._known_tokens(prompt)
        table = self._controller.terrain.token_embeddings
        window = None
        if len(tokens):
            last = tokens[-_WINDOW:]
            weights = (1.0 - self._controller.settings.reach) ** np.arange(len(last))[::-1]
            window = (weights / weights.sum()) @ table[last].astype(np.float64)
            if goal is None:
                goal = self.mean_embedding(tokens)
        self._controller.requests.open(slot, goal, window)
        self._temperature[slot] = temperature
        self._free.remove(slot)
        self._slots[slot] = _Slot(tenant, salted(request, self._salt), self._clock())

    def close(self, slot: int, *, capped: bool = False) -> None:
        """The request of a slot ended, and its tick with it. capped: because it hit a hard limit."""
        ended = self._slots.pop(slot, None)
        if ended is None:
            return
        self._free.append(slot)
        self._last.pop(slot, None)
        self._controller.requests.known[slot] = False
        if ended.steps:
            self._write(ended, capped)
        said = self._said.pop(slot, None)
        if said and self._answered is not None:
            self._answered(ended.tenant, said)

    def mean_embedding(self, tokens: Sequence[int] | TokenArray) -> FloatArray | None:
        """Mean (d,) of the embeddings of tokens: a goal, where somebody names it by its text. None without any."""
        known = self._known_tokens(tokens)
        if not len(known):
            return None
        mean: FloatArray = self._controller.terrain.token_embeddings[known].mean(axis=0, dtype=np.float64)
        return mean

    def step(self, logits: Any, slots: TokenArray) -> Step:
        """Move logits (n, V), an array or a tensor, in place. slots: (n,), one for each row."""
        return self.step_found(logits, likeliest(logits, self.top_k), slots)

    def step_found(self, logits: Any, found: Likeliest, slots: TokenArray, rows: TokenArray | None = None) -> Step:
        """As ``step``, with the likeliest tokens at hand. rows: those of ``found`` that the slots are of."""
        if logits.shape[1] > len(self._controller.terrain.token_embeddings):
            have = len(self._controller.terrain.token_embeddings)
            raise ValueError(f"logits of {logits.shape[1]} tokens and embeddings of {have}: they are of another model")
        ids, values = (found.ids, found.logits) if rows is None else (found.ids[rows], found.logits[rows])
        control = self._control(slots)
        step = self._controller.apply_to_candidates(ids, values, slots, control, self._temperature[slots])
        if step.kl.any():
            if rows is not None:
                found.logits[rows] = values
            write(logits, found)
        self._last.update((slot, (step, row)) for row, slot in enumerate(slots.tolist()) if slot in self._slots)
        self._note(slots, step, control)
        return step

    def sampled(self, slots: TokenArray, tokens: TokenArray) -> None:
        """The tokens (n,) that were drawn for slots, of which each had a row in the last step."""
        slots, tokens = np.asarray(slots), np.asarray(tokens)
        if not len(slots):
            return
        self._controller.advance(slots, tokens)
        self._choose(slots, tokens)
        if self._answered is not None:
            for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
                said = self._said.setdefault(slot, [])
                if len(said) < KEPT_TOKENS:
                    said.append(token)
        checker = self._controller.checker
        steps = np.array([self._slots[slot].steps for slot in slots.tolist()])
        boundary = np.zeros(len(slots), dtype=bool) if checker is None else checker.at_boundary(slots)
        for slot in slots[self._ticks.ends(steps, boundary, np.zeros(len(slots), dtype=bool))].tolist():
            ended = self._slots[slot]
            self._write(ended, capped=False)
            self._slots[slot] = _Slot(ended.tenant, ended.session, self._clock())

    def _known_tokens(self, tokens: Sequence[int] | TokenArray) -> IndexArray:
        """Those that have an embedding: engines put numbers of their own where an image stands."""
        given = np.asarray(tokens, dtype=np.intp)
        return given[(given >= 0) & (given < len(self._controller.terrain.token_embeddings))]

    def _control(self, slots: TokenArray) -> Control:
        told: dict[str, Directive] = {}
        count = len(slots)
        lam, budget, sse, look = np.zeros(count), np.zeros(count), np.ones(count), np.zeros(count, dtype=bool)
        box = self._controller.settings.mode != "kl"
        for row, slot in enumerate(slots.tolist()):
            one = self._slots.get(slot)
            if one is None:
                continue
            directive = told.get(one.tenant)
            if directive is None:
                directive = told[one.tenant] = self._told(one.tenant)
            one.told = directive
            lam[row] = directive.lam
            budget[row] = directive.dlogits_budget if box else directive.kl_budget
            # A spread that is not known counts as even: it adds no tension.
            sse[row] = directive.sse if math.isfinite(directive.sse) else 1.0
            look[row] = directive.look_ahead
        return Control(lam, budget, sse, look)

    def _note(self, slots: TokenArray, step: Step, control: Control) -> None:
        """Add a step to the running ticks."""
        square, risk, tension = np.square(step.dlogits), step.risk, step.tension(self._controller.settings.tension)
        candidates = np.isfinite(step.log_p).sum(axis=1)
        looks = control.look if self._controller.surrogate is not None else np.zeros(len(slots), dtype=bool)
        theta_now, phi_now = step.now.theta[:, 0], step.now.phi[:, 0]
        columns = (slots, step.kl, square, risk, step.fallback, candidates, looks, theta_now, phi_now, tension)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for slot, kl, dlogits, at_risk, fallback, count, looked, theta, phi, pulled in rows:
            one = self._slots.get(slot)
            if one is None:
                continue
            one.steps += 1
            one.kl += kl
            one.dlogits += dlogits if math.isfinite(dlogits) else 0.0
            one.risk += at_risk if math.isfinite(at_risk) else 0.0
            one.fallback = fallback or one.fallback
            one.looked = one.looked or looked
            one.candidates = count
            one.standing = (theta, phi, pulled)

    def _choose(self, slots: TokenArray, tokens: TokenArray) -> None:
        """Add what the chosen candidates cost to the running ticks."""
        # Mostly all of one step.
        by_step: dict[int, tuple[Step, list[tuple[int, int, int]]]] = {}
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            if (last := self._last.pop(slot, None)) is not None:
                step, row = last
                by_step.setdefault(id(step), (step, []))[1].append((slot, row, token))
        for step, drawn in by_step.values():
            rows = np.array([row for _, row, _ in drawn])
            match = step.candidates[rows] == np.array([token for _, _, token in drawn])[:, None]
            column, among = match.argmax(axis=1), match.any(axis=1)
            for part, name in enumerate(_PARTS):
                values = getattr(step.terms, name)
                if values is None:
                    continue
                chosen = np.where(among, values[rows, column], np.nan)
                for (slot, _, _), value in zip(drawn, chosen.tolist(), strict=True):
                    if math.isfinite(value):
                        self._slots[slot].sums[part] += value
                        self._slots[slot].counts[part] += 1

    def _write(self, one: _Slot, capped: bool) -> None:
        now, told = self._clock(), one.told
        theta, phi, tension = one.standing
        means: dict[str, float | None] = {}
        for name, total, count in zip(_PARTS, one.sums.tolist(), one.counts.tolist(), strict=True):
            mean = total / count if count else None
            means[name] = min(mean, 1.0) if mean is not None and name in _SHARES else mean
        value = {place: means[name] for name, place in _VALUE.items()}
        dissipation = {place: means[name] for name, place in _DISSIPATION.items()}
        for needed in ("dlp", "progress"):
            value[needed] = value[needed] or 0.0
        dissipation["drift"] = dissipation["drift"] or 0.0
        self._written(
            Cap.model_validate(
                {
                    "ts": _EPOCH + timedelta(microseconds=now // 1000),
                    "tenant": one.tenant,
                    "session": one.session,
                    "model": self._model,
                    "theta": _known(theta),
                    "phi": _known(min(phi, 1.0)),
                    "tension": _known(tension),
                    "value": value,
                    "dissipation": dissipation,
                    "lam": told.lam,
                    "kl_used": one.kl,
                    "kl_budget": told.kl_budget,
                    "dlogits_l2": min(math.sqrt(one.dlogits), _MOST),
                    "steps": one.steps,
                    "fallback": FallbackCause[Fallback(one.fallback).name],
                    "looked_ahead": one.looked,
                    "action": {"type": ActionKind.TOKEN},
                    "candidates": one.candidates,
                    "caps_hit": capped,
                    "state": State[told.band.name],
                    "bh1": told.bh1,
                    "bh2": told.bh2,
                    "risk": min(one.risk / one.steps, 1.0),
                    "latency_ms": max(now - one.begun_ns, 0) / 1e6,
                    "tokens": one.steps,
                }
            )
        )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
