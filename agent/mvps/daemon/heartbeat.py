# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: what a snapshot may leave out while nothing happens (delta gating as in BE-MVPS; details ours).

While a surface is in BAU, before hysteresis and after it, an observation whose distribution has moved by less than
epsilon since it was last sent, and whose objects are the same, travels without both and says for how many ticks they
have stood; the decision travels without what its baseline and its vector imply. The coherence vector, the decision's
figures, the checks and every missing vantage travel on every tick, so that "unchanged" is said and never guessed from
silence. Whatever moves is sent at once, and all of it at least every ``full_every`` ticks, so that a broker that
lost one snapshot is right again soon.

Distance: total variation, max over all sets of labels of |p(A) - q(A)| = sum |p - q| / 2. Epsilon bounds by how much
any share is wrong at the broker. The agent's own decision is not touched: it is made from what was measured.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from mvps.v1 import snapshot_pb2 as pb

_IMPLIED = ("cutoffs", "s_cutoffs", "axis_contributions", "vantage_contributions")


class _Sent(NamedTuple):
    tick: int
    baseline_id: str
    distribution: bytes
    objects: bytes


class Heartbeat:
    """Trims one agent's snapshots.

    epsilon: total variation below which a distribution counts as unmoved; 0 sends everything.
    full_every: ticks after which a distribution is sent whatever it does.
    """

    def __init__(self, epsilon: float, full_every: int) -> None:
        self._epsilon = epsilon
        self._full_every = full_every
        self._sent: dict[tuple[str, str], _Sent] = {}

    def trim(self, snapshot: pb.Snapshot) -> pb.Snapshot:
        """What has to travel of a snapshot; the argument itself if that is all of it. The argument is not changed."""
        if not self._epsilon:
            return snapshot
        trimmed = pb.Snapshot()
        trimmed.CopyFrom(snapshot)
        for surface in trimmed.surfaces:
            decision = surface.decision
            quiet = surface.HasField("decision") and decision.phase == decision.raw_phase == pb.PHASE_BAU
            for observation in surface.observations:
                self._trim_observation(surface.name, observation, snapshot.tick, decision.baseline_id, quiet)
            if quiet and any(observation.unchanged_ticks for observation in surface.observations):
                for field in _IMPLIED:
                    decision.ClearField(field)
        return trimmed

    def _trim_observation(
        self, surface: str, observation: pb.ObservationSummary, tick: int, baseline_id: str, quiet: bool
    ) -> None:
        objects = observation.objects.SerializeToString(deterministic=True) if observation.HasField("objects") else b""
        sent = self._sent.get((surface, observation.vantage))
        if (
            quiet
            and sent is not None
            and 0 < tick - sent.tick < self._full_every
            and sent.baseline_id == baseline_id
            and sent.objects == objects
            and _moved(sent.distribution, observation.distribution) < self._epsilon
        ):
            observation.unchanged_ticks = tick - sent.tick
            observation.ClearField("distribution")
            observation.ClearField("objects")
        elif observation.distribution:
            kept = _Sent(tick, baseline_id, observation.distribution, objects)
            self._sent[surface, observation.vantage] = kept


SENDS_ALL: Final = Heartbeat(0.0, 1)


def _moved(before: bytes, now: bytes) -> float:
    """Total variation between two packed distributions; 1 where they cannot be compared."""
    if len(before) != len(now) or not now:
        return 1.0
    p, q = (np.frombuffer(packed, dtype="<f4") for packed in (before, now))
    return float(np.abs(p - q).sum(dtype=np.float64) / 2)
