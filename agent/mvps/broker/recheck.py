# SPDX-License-Identifier: Apache-2.0
"""Does a decision follow from the numbers beside it? The broker computes it again from the baseline.

C_1 and C_3 are taken as reported, since their raw material stays on the host; C_2, S, D^2 and the phase before
hysteresis are recomputed from the distributions. A difference is flagged and never changes what is stored.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import numpy as np

from mvps.broker.store import Kept
from mvps.coherence.baseline import Baseline
from mvps.coherence.model import recompute
from mvps.coherence.phase import Phase
from mvps.trust.limits import MAX_BASELINES_HELD
from mvps.v1 import snapshot_pb2 as pb

# Distributions travel as float32, everything else as float64 (ours).
_RELATIVE: Final = 1e-3
_ABSOLUTE: Final = 1e-2
_LOG_P_TOLERANCE: Final = 5e-2
# A baseline is a stranger's numbers: what passes its own checks may still divide by zero or overflow further in.
_UNFIT: Final = (ValueError, ArithmeticError, TypeError, LookupError, np.linalg.LinAlgError)


class DecisionCheck:
    """Recomputes decisions whose baseline has been seen."""

    def __init__(self, baselines: Iterable[Kept] = ()) -> None:
        # None: a baseline that this broker cannot read, so that it is not parsed again on every tick.
        self._baselines: OrderedDict[tuple[str, str], Baseline | None] = OrderedDict()
        for kept in baselines:
            self.learn(kept)

    def learn(self, kept: Kept) -> None:
        """A vantage sent a baseline."""
        key = (kept.vantage_id, kept.baseline_id)
        if key not in self._baselines:
            try:
                self._baselines[key] = Baseline.from_json(kept.json)
            except _UNFIT:
                self._baselines[key] = None
        self._baselines.move_to_end(key)
        if len(self._baselines) > MAX_BASELINES_HELD:
            self._baselines.popitem(last=False)

    def agrees(self, vantage_id: str, surface: pb.Surface) -> bool | None:
        """True or False; None when there is no decision or its baseline is not known or not readable."""
        if not surface.HasField("decision"):
            return None
        baseline = self._baselines.get((vantage_id, surface.decision.baseline_id))
        if baseline is None:
            return None
        reported, vector = surface.decision, surface.vector
        seen = [o for o in surface.observations if o.distribution and o.vantage in baseline.vantages]
        try:
            _, decision = recompute(
                baseline,
                surface.name,
                0,
                vector.c1 if vector.HasField("c1") else None,
                vector.c3 if vector.HasField("c3") else None,
                {o.vantage: np.frombuffer(o.distribution, dtype="<f4") for o in seen},
                {o.vantage: o.events for o in seen},
            )
        except _UNFIT:
            return False  # these numbers cannot have given a decision on this baseline
        if not (_close(reported.d2, decision.d2) and _close(vector.s, decision.s)):
            return False
        # On a cut-off, rounding may tip the phase; a p-value that differs may not.
        same_p = abs(_log(reported.p_value) - _log(decision.p_value)) <= _LOG_P_TOLERANCE
        return same_p or reported.raw_phase == pb.Phase.Value(f"PHASE_{Phase(decision.raw_phase).name}")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _log(p: float) -> float:
    return math.log(max(p, 1e-300))
