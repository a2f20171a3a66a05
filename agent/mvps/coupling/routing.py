# SPDX-License-Identifier: Apache-2.0
"""Requests that changed their replica, live: from what the engines count to an exposure and its verdict (000 sec. 3).

A reading of an AI source names, per replica i, the requests n_i that the replica finished since the reading before, the
prompt tokens t_i that they had and the c_i of them that its prefix cache held. Over the last W readings,

    Q_i = sum n_i / sum_j sum n_j,     h_i = sum c_i / sum t_i,     L_i = BAU's cached tokens per request
    m_i = max(0, 1 - h_i / h_i^BAU)    where all engines count tokens ("measured"), else max(0, Q_i - Q_i^BAU) / Q_i
    x   = (1/N) sum_i m_i L_i          the exposure of :mod:`~.drift`; L_i = 1 where tokens are not counted

and the fall of C_2^W2 is its BAU level less its mean over the same W readings.

**Calibration** (ours) is on the first 20 windows of W readings in BAU. The exposure of each of them is taken against
the 19 others, so that a window does not vouch for itself; the largest is the limit beyond which requests *have moved*.
By exchangeability a quiet window is beyond it with probability 1/21 at most (conformal).

**Verdict** is that of :func:`~.drift.attribute` once a transfer function has been fitted to events of known cause;
without one the exposure is reported, and nothing is predicted. Exposures that did not move anything predict nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coupling.drift import Attribution, DriftTransfer, attribute, exposure, misses

WINDOW_READINGS = 6
CALIBRATION_WINDOWS = 20
# A prefix cache that held less than this share of the tokens in BAU has nothing to lose.
_LEAST_HITS = 0.02


class Load(NamedTuple):
    """Of one replica since the reading before. prompt_tokens is 0 where its engine counts none."""

    requests: float
    prompt_tokens: float
    cached_tokens: float


class RoutingBaseline(NamedTuple):
    """BAU of one group. counts: (W, N, 3) of each calibration window. level: C_2^W2. limit: of the exposure."""

    replicas: tuple[str, ...]
    counts: FloatArray
    level: float
    limit: float


class Routing(NamedTuple):
    """Where requests go now. shares, before, missing: Q, Q^BAU and m, (N,). measured: m by the engines' own caches.

    exposure: x. limit: what it does not exceed in BAU. moved: whether it does. fall: of C_2^W2, NaN where unknown.
    attribution: None without a transfer function, or where the fall is unknown.
    """

    replicas: tuple[str, ...]
    shares: FloatArray
    before: FloatArray
    missing: FloatArray
    measured: bool
    exposure: float
    limit: float
    moved: bool
    fall: float
    attribution: Attribution | None

    @property
    def predicted(self) -> float:
        """Fall of C_2^W2 that routing explains: 0 where nothing moved, NaN where it is not known."""
        if not self.moved:
            return 0.0
        return self.attribution.predicted if self.attribution is not None else math.nan

    @property
    def gained(self) -> tuple[str, ...]:
        """Replicas whose requests are new to them, most first."""
        order = np.argsort(-self.missing)
        return tuple(self.replicas[i] for i in order if self.missing[i] > 0.0)


class RoutingMonitor:
    """State of one AI source. transfer: fitted by :func:`~.drift.calibrate`, None for none.

    ``learned``: the baseline, None while it calibrates; ``windows`` are complete then, of ``CALIBRATION_WINDOWS``.
    """

    def __init__(self, transfer: DriftTransfer | None = None) -> None:
        self.learned: RoutingBaseline | None = None
        self._transfer = transfer
        self._replicas: tuple[str, ...] = ()
        self._recent: deque[tuple[FloatArray, float]] = deque(maxlen=WINDOW_READINGS)
        self._windows: list[tuple[FloatArray, float]] = []
        self._since = 0

    @property
    def windows(self) -> int:
        """Calibration windows that are complete."""
        return len(self._windows)

    def restore(self, baseline: RoutingBaseline) -> None:
        """Go on with a baseline of before."""
        self.learned, self._replicas = baseline, baseline.replicas

    def step(self, loads: Mapping[str, Load], c2: float, quiet: bool) -> Routing | None:
        """One reading: loads by replica, C_2^W2 or NaN, and whether the source and its service are in BAU.

        None while it calibrates, and until a window is full. Another set of replicas begins anew.
        """
        names = tuple(sorted(loads))
        if names != self._replicas:
            self._replicas, self.learned, self._windows, self._since = names, None, [], 0
            self._recent.clear()
        self._recent.append((np.array([loads[name] for name in names], dtype=np.float64), c2))
        if self.learned is None:
            self._learn(quiet)
        if self.learned is None or len(self._recent) < WINDOW_READINGS:
            return None
        return self._judge(self.learned)

    def _window(self) -> tuple[FloatArray, float]:
        levels = [c2 for _, c2 in self._recent if not math.isnan(c2)]
        counts: FloatArray = np.sum([counts for counts, _ in self._recent], axis=0)
        return counts, float(np.mean(levels)) if levels else math.nan

    def _learn(self, quiet: bool) -> None:
        self._since = self._since + 1 if quiet else 0  # a window is of readings in BAU that follow each other
        if self._since < WINDOW_READINGS:
            return
        self._since = 0
        window = self._window()
        if not (window[0][:, 0] > 0.0).all():
            return  # a replica without a request has no share that could be lost
        self._windows.append(window)
        if len(self._windows) < CALIBRATION_WINDOWS:
            return
        counts = np.stack([counts for counts, _ in self._windows])
        levels = [level for _, level in self._windows if not math.isnan(level)]
        others = counts.sum(axis=0) - counts
        limit = max(_exposed(one, rest).exposure for one, rest in zip(counts, others, strict=True))
        self.learned = RoutingBaseline(self._replicas, counts, float(np.mean(levels)) if levels else math.nan, limit)
        self._windows = []

    def _judge(self, baseline: RoutingBaseline) -> Routing | None:
        counts, level = self._window()
        if not counts[:, 0].sum() > 0.0:
            return None
        found = _exposed(counts, baseline.counts.sum(axis=0))
        moved = found.exposure > baseline.limit
        fall = baseline.level - level
        verdict = None
        if self._transfer is not None and not math.isnan(fall):
            verdict = attribute(self._transfer, found.exposure if moved else 0.0, fall)
        return Routing(
            baseline.replicas, found.shares, found.before, found.missing, found.measured,
            found.exposure, baseline.limit, moved, fall, verdict,
        )  # fmt: skip


class _Exposed(NamedTuple):
    shares: FloatArray
    before: FloatArray
    missing: FloatArray
    measured: bool
    exposure: float


def _exposed(now: FloatArray, bau: FloatArray) -> _Exposed:
    """Shares, misses and exposure of counts (N, 3) against those of BAU."""
    q, q0 = (counts[:, 0] / counts[:, 0].sum() for counts in (now, bau))
    tokens = bau[:, 1] > 0.0
    measured = bool(tokens.all()) and bool((now[now[:, 0] > 0.0, 1] > 0.0).all())
    if not measured:
        missing = misses(q, q0)
        return _Exposed(q, q0, missing, False, float(exposure(missing, np.ones(len(q)))))
    hits0 = bau[:, 2] / bau[:, 1]
    hits = np.divide(now[:, 2], now[:, 1], out=hits0.copy(), where=now[:, 1] > 0.0)
    lost = np.divide(hits, hits0, out=np.ones(len(q)), where=hits0 >= _LEAST_HITS)
    missing = np.maximum(1.0 - lost, 0.0)
    history = bau[:, 2] / np.maximum(bau[:, 0], 1.0)
    return _Exposed(q, q0, missing, True, float(exposure(missing, history)))
