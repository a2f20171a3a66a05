# SPDX-License-Identifier: Apache-2.0
"""What became of a question to a replica."""

from __future__ import annotations

import enum


class Outcome(enum.StrEnum):
    """What became of one question."""

    ANSWERED = "answered"
    CUT = "cut"  # the token limit ended it: what there is can be compared
    EMPTY = "empty"
    BROKEN = "broken"  # the stream ended without its end
    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    REFUSED = "refused"  # an HTTP status of 400 or above
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"

    @property
    def comparable(self) -> bool:
        """Whether there is an answer that can be compared with others."""
        return self in {Outcome.ANSWERED, Outcome.CUT}
