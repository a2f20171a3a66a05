# SPDX-License-Identifier: Apache-2.0
"""What is for operators is taken out, and named, and nothing else is touched."""

from __future__ import annotations

import struct

from mvps.trust.withheld import FIELDS, withhold
from mvps.v1 import snapshot_pb2 as pb

C4 = 0.4142135623730951


def watched(lateral: pb.Lateral = pb.LATERAL_COHERENT_BUT_FALSE) -> pb.Surface:
    return pb.Surface(name="ai.g", vector=pb.CoherenceVector(c1=0.75, c2_plain=0.5, c4=C4), lateral=lateral)


def test_both_fields_go_and_all_others_stay() -> None:
    surface = watched()
    assert withhold([surface]) == list(FIELDS)
    assert surface == pb.Surface(name="ai.g", vector=pb.CoherenceVector(c1=0.75, c2_plain=0.5))
    assert not surface.vector.HasField("c4")
    assert struct.pack("<d", C4) in watched().SerializeToString()
    assert struct.pack("<d", C4) not in surface.SerializeToString()


def test_that_there_is_no_false_consensus_is_for_operators_too() -> None:
    surface = watched(pb.LATERAL_NONE)
    assert withhold([surface]) == list(FIELDS)
    assert surface.lateral == pb.LATERAL_UNSPECIFIED


def test_only_what_was_there_is_named() -> None:
    assert withhold([]) == []
    kernel = pb.Surface(name="kernel", vector=pb.CoherenceVector(c1=1.0))
    assert withhold([kernel]) == []
    assert kernel == pb.Surface(name="kernel", vector=pb.CoherenceVector(c1=1.0))
    assert withhold([kernel, pb.Surface(lateral=pb.LATERAL_NONE)]) == ["lateral"]
    assert withhold([pb.Surface(vector=pb.CoherenceVector(c4=0.0))]) == ["vector.c4"]  # 0 is a value, not absence
