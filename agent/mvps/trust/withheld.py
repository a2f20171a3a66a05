# SPDX-License-Identifier: Apache-2.0
"""What is shown to operators only: C_4 of a language model's surface, and the label that follows from it.

COHERENT_BUT_FALSE may go with what users ask about and tells an adversary which beliefs give way (001 sec. 28 b), so
that only authorised operators read it. It travels in sealed snapshots like everything else; whoever answers a question
for somebody without the operator's right takes it out, and says that it did. Who has the right is the server's to know:
the agent and the broker have a socket for operators, the broker also names of client certificates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mvps.v1.snapshot_pb2 import Surface

FIELDS: Final = ("vector.c4", "lateral")


def withhold(surfaces: Iterable[Surface]) -> list[str]:
    """Take what is for operators out of surfaces, in place: give it copies. The names of the fields that were there."""
    found: set[str] = set()
    for surface in surfaces:
        if surface.vector.HasField("c4"):
            surface.vector.ClearField("c4")
            found.add(FIELDS[0])
        if surface.lateral:
            surface.ClearField("lateral")
            found.add(FIELDS[1])
    return [name for name in FIELDS if name in found]
