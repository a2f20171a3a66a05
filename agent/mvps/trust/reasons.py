# SPDX-License-Identifier: Apache-2.0
"""Why a sealed snapshot is refused.

The numbers are those of ``RejectReason`` in proto/mvps/v1/stream.proto (a test compares); this enum exists
so that the pure modules of :mod:`mvps.trust` need no protobuf.

Reasons below 20 are found before the seal is verified. Nothing vouches for the sender then, so a broker
never acknowledges them: it counts them and ends the stream. The others are terminal answers under a seal.
"""

from __future__ import annotations

from enum import IntEnum


class RejectReason(IntEnum):
    """Cause of a refusal; ``label`` is the name used in counters and messages."""

    TRUNCATED = 1
    BAD_MAGIC = 2
    UNKNOWN_VERSION = 3
    UNKNOWN_SCHEME = 4
    WRONG_PURPOSE = 5
    UNKNOWN_LANE = 6
    BAD_FLAGS = 7
    BAD_VANTAGE_ID = 8
    BAD_LENGTH = 9
    OVERSIZE = 10
    UNKNOWN_VANTAGE = 11
    UNKNOWN_EPOCH = 12
    UNKNOWN_KEY = 13
    BAD_SEAL = 14
    TOO_MANY_VANTAGES = 15
    WRONG_SCHEME = 16
    REVOKED = 17

    REPLAYED = 20
    EQUIVOCATION = 21
    STALE = 22
    FUTURE = 23
    MALFORMED = 24
    UNKNOWN_FIELD = 25
    HEADER_MISMATCH = 26
    OVER_LIMIT = 27
    INVALID_VALUE = 28
    UNKNOWN_SCHEMA_VERSION = 29
    EPOCH_RETIRED = 30

    # A reason this side does not know yet; never sent.
    OTHER = 63

    @property
    def label(self) -> str:
        """Lower-case name, e.g. ``"bad_seal"``."""
        return self.name.lower()

    @property
    def vouched(self) -> bool:
        """True when the seal held, so that the refusal may be answered under a seal."""
        return self >= 20
