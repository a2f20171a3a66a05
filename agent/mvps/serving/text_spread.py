# SPDX-License-Identifier: Apache-2.0
"""SSE of a tenant's answers from what a decoding loop has: token embeddings, and no call of a model (002 sec. 2.4 c).

    an answer     the mean of its first tokens' input embeddings, on 32 random directions (Johnson-Lindenstrauss)
    its topics    16 clusters of the tenant's last 256 answers, from three starts (``surplus.spread``)
    SSE           spread of the last 64 answers over these topics; not known before there are topics

All of this is ours: the text embeds windows of the output with a model of its own and leaves the rest open. Topics are
made anew from every 256 answers, so that they follow what a tenant does, unless these answers are less than half as
wide as the widest so far (mean squared distance from their mean): a collapse must not become the new normal. A tenant
whose subject changes all at once looks narrow for as many answers.

The mean of input embeddings knows which tokens were said and not what they mean: paraphrases of one thought are spread.
``note`` runs in the engine's thread and puts tokens into a queue; all arithmetic is in ``read``, which the link's
thread calls.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray
from mvps.surplus.spread import consensus, ensemble

KEPT_TOKENS: Final = 256
RECENT: Final = 64
REFERENCE: Final = 256
MAX_TENANTS: Final = 32  # as many as the agent knows
_TOPICS: Final = 16
_DIRECTIONS: Final = 32
_QUEUE: Final = 1024
_WIDE_ENOUGH: Final = 0.5
_ROUNDING: Final = 1e-9


@dataclass(slots=True)
class _Tenant:
    """Its last answers, how many there were, its topics, and how wide their answers were."""

    answers: deque[FloatArray] = field(default_factory=lambda: deque(maxlen=REFERENCE))
    count: int = 0
    topics: list[FloatArray] = field(default_factory=list)
    width: float = 0.0
    sse: float = math.nan


class TextSpread:
    """Spread of the answers of one engine process.

    embeddings: (V, d) of the tokens.
    """

    def __init__(self, embeddings: npt.NDArray[np.float32]) -> None:
        self._embeddings = embeddings
        dimensions = embeddings.shape[1]
        directions = min(_DIRECTIONS, dimensions)
        self._directions = np.random.default_rng(0).normal(size=(dimensions, directions)) / math.sqrt(directions)
        self._queue: deque[tuple[str, Sequence[int]]] = deque()
        self._tenants: dict[str, _Tenant] = {}
        self._reading = threading.Lock()
        self._no_room = self._too_many = 0  # each is counted by one thread

    @property
    def dropped(self) -> int:
        """Answers that found the queue full, or came from more tenants than ``MAX_TENANTS``."""
        return self._no_room + self._too_many

    def note(self, tenant: str, tokens: Sequence[int]) -> None:
        """An answer ended. Never waits; of its tokens the first ``KEPT_TOKENS`` count."""
        if len(self._queue) >= _QUEUE:
            self._no_room += 1
        else:
            self._queue.append((tenant, tokens))

    def read(self) -> dict[str, float]:
        """SSE in [0, 1] of every tenant that has one."""
        with self._reading:  # a stream may begin before the one before it has ended
            return self._read()

    def _read(self) -> dict[str, float]:
        fresh = set()
        while self._queue:
            name, tokens = self._queue.popleft()
            known = np.asarray(tokens[:KEPT_TOKENS], dtype=np.intp)
            known = known[(known >= 0) & (known < len(self._embeddings))]
            if not len(known):
                continue
            if name not in self._tenants and len(self._tenants) >= MAX_TENANTS:
                self._too_many += 1
                continue
            tenant = self._tenants.setdefault(name, _Tenant())
            tenant.answers.append(self._embeddings[known].mean(axis=0, dtype=np.float64) @ self._directions)
            tenant.count += 1
            if tenant.count % REFERENCE == 0:
                _learn(tenant)
            fresh.add(name)
        for name in fresh:
            tenant = self._tenants[name]
            if tenant.topics:
                recent = np.stack(list(tenant.answers)[-RECENT:])
                tenant.sse = consensus(recent, tenant.topics).sse
        return {name: one.sse for name, one in self._tenants.items() if math.isfinite(one.sse)}


def _learn(tenant: _Tenant) -> None:
    """Make the topics anew, unless the answers are too narrow."""
    answers = np.stack(tenant.answers)
    width = float(np.square(answers - answers.mean(axis=0)).sum(axis=1).mean())
    # One answer to all from the first has no topics: what is left of a width is rounding.
    if width > _ROUNDING * float(np.square(answers).sum(axis=1).mean()) and width >= _WIDE_ENOUGH * tenant.width:
        tenant.topics = ensemble(answers, choices=(_TOPICS,))
        tenant.width = max(width, tenant.width)
