# SPDX-License-Identifier: Apache-2.0
"""Counters seen before; the rules about fresh ones are the gate's (test_gate.py)."""

import pytest

from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded, judge_repeat


@pytest.mark.parametrize(
    ("recorded", "answer"),
    [
        (None, RejectReason.REPLAYED),
        (Recorded(b"d", None), None),
        (Recorded(b"d", RejectReason.MALFORMED), RejectReason.MALFORMED),
        (Recorded(b"e", None), RejectReason.EQUIVOCATION),
        (Recorded(b"e", RejectReason.MALFORMED), RejectReason.EQUIVOCATION),
    ],
)
def test_repeats(recorded: Recorded | None, answer: RejectReason | None) -> None:
    assert judge_repeat(b"d", recorded) is answer
