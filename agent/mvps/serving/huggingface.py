# SPDX-License-Identifier: Apache-2.0
"""The controller as a logits processor of Hugging Face transformers: ``generate(..., logits_processor=[...])``.

``generate`` calls a processor with all tokens so far (n, length) and the logits of the next (n, V), before temperature
and the cuts of its sampler; so the temperature that ``generate`` was given is to be given here as well. The tokens that
were drawn come with the next call, in the one transfer that also brings the candidates.

One processor serves one call of ``generate``, and is closed after it: the last tick ends then. Beams are not supported,
as their rows change places unseen. Nothing of transformers or torch is imported: the interface is a callable, and the
tensors are taken by their methods (``tensors``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray
from mvps.serving.decoding import Decoding
from mvps.serving.tensors import host, likeliest


class SurplusLogitsProcessor:
    """A logits processor for one call of ``generate`` without beams.

    temperature: as given to generate; 0 where it does not sample. tenants, requests, goals: one for each row; a single
    tenant is that of all rows. end_tokens: a row that drew one of them is done. pad: token that fills up short prompts,
    which is no part of them.
    """

    def __init__(
        self,
        decoding: Decoding,
        temperature: float,
        tenants: str | Sequence[str] = "default",
        requests: Sequence[bytes] | None = None,
        goals: Sequence[FloatArray | None] | None = None,
        end_tokens: Collection[int] = (),
        pad: int | None = None,
    ) -> None:
        self._decoding = decoding
        self._temperature = temperature
        self._tenants = tenants
        self._requests = requests
        self._goals = goals
        self._end_tokens = np.array(sorted(end_tokens), dtype=np.int64)
        self._pad = pad
        self._slots: npt.NDArray[np.int64] | None = None
        self._live = np.zeros(0, dtype=bool)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Move the scores in place, and give them back."""
        first = self._slots is None
        found = likeliest(scores, self._decoding.top_k, None if first else input_ids[:, -1])
        if self._slots is None:
            self._slots = self._opened(host(input_ids))
        elif found.last is not None:
            if len(found.last) != len(self._slots):
                raise ValueError(f"{len(found.last)} rows after {len(self._slots)}: one processor for one generate()")
            self._decoding.sampled(self._slots[self._live], found.last[self._live])
            for row in np.flatnonzero(self._live & np.isin(found.last, self._end_tokens)).tolist():
                self._decoding.close(int(self._slots[row]))
                self._live[row] = False
        rows = np.flatnonzero(self._live)
        if len(rows):
            self._decoding.step_found(scores, found, self._slots[rows], rows)
        return scores

    def close(self, *, capped: bool = False) -> None:
        """The call of generate is over. capped: because of its limit on tokens. Idempotent."""
        if self._slots is not None:
            for row in np.flatnonzero(self._live).tolist():
                self._decoding.close(int(self._slots[row]), capped=capped)
        self._live[:] = False

    def __enter__(self) -> SurplusLogitsProcessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, prompts: Any) -> npt.NDArray[np.int64]:
        count = len(prompts)
        tenants = [self._tenants] * count if isinstance(self._tenants, str) else list(self._tenants)
        requests = [b"%d" % row for row in range(count)] if self._requests is None else list(self._requests)
        goals: list[FloatArray | None] = [None] * count if self._goals is None else list(self._goals)
        if not len(tenants) == len(requests) == len(goals) == count:
            raise ValueError(f"{count} rows with {len(tenants)} tenants, {len(requests)} requests, {len(goals)} goals")
        slots: list[int] = []
        try:
            for tenant, request, goal, prompt in zip(tenants, requests, goals, prompts, strict=True):
                kept = prompt if self._pad is None else prompt[prompt != self._pad]
                slot = self._decoding.take_slot()
                self._decoding.open(slot, tenant, request, self._temperature, kept, goal)
                slots.append(slot)
        except ValueError:
            for slot in slots:
                self._decoding.close(slot)
            raise
        self._live = np.ones(count, dtype=bool)
        return np.array(slots, dtype=np.int64)
