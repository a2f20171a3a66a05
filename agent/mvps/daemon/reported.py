# SPDX-License-Identifier: Apache-2.0
"""Surfaces that other processes of this host report: they travel in its snapshots, sealed like its own.

A report stands for as long as it says and is part of every snapshot of that time; then it is gone, and that is logged.
What a broker would refuse is refused here, where it costs one report and not the snapshot it would travel in.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Final

from mvps.daemon import log
from mvps.trust.gate import SCHEMA_VERSION, check_body
from mvps.trust.replay import Window
from mvps.trust.seal import Lane, Purpose, SealHeader
from mvps.v1 import snapshot_pb2 as pb

MAX_REPORTED: Final = 4
MAX_BYTES: Final = 16 * 1024
LONGEST_NS: Final = 3600 * 10**9
_NAME: Final = re.compile(r"ai(\.[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_PERIOD_NS: Final = 10**9

_log = logging.getLogger(__name__)


class ReportedSurfaces:
    """The latest report of every surface. Any thread may take one while the tick thread reads."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._standing: dict[str, tuple[int, pb.Surface]] = {}  # name -> until when, what

    def take(self, surface: pb.Surface, valid_ns: int) -> str:
        """Let a surface stand from now on; "" or why not."""
        problem = _problem(surface, valid_ns)
        if problem:
            return problem
        kept = pb.Surface()
        kept.CopyFrom(surface)
        now = self._clock()
        with self._lock:
            others = [name for name, (until, _) in self._standing.items() if until > now and name != surface.name]
            if len(others) >= MAX_REPORTED:
                return f"{MAX_REPORTED} surfaces are reported here already: {', '.join(sorted(others))}"
            self._standing[surface.name] = (now + valid_ns, kept)
        return ""

    def standing(self) -> list[pb.Surface]:
        """What stands now, by name."""
        now = self._clock()
        with self._lock:
            over = [name for name, (until, _) in self._standing.items() if until <= now]
            for name in over:
                del self._standing[name]
            found = [surface for _, (_, surface) in sorted(self._standing.items())]
        for name in over:
            log.event(_log, logging.WARNING, "report_ended", surface=name, effect="no longer in the snapshots")
        return found


def _problem(surface: pb.Surface, valid_ns: int) -> str:
    if not _NAME.fullmatch(surface.name):
        return f'"{surface.name[:64]}" cannot be reported: the name is "ai" or "ai.GROUP"'
    if not 0 < valid_ns <= LONGEST_NS:
        return f"a report stands for at most {LONGEST_NS // 10**9} s, and for more than nothing"
    if any(o.distribution or o.unchanged_ticks or o.HasField("objects") for o in surface.observations):
        return "distributions and objects are for surfaces whose baseline the broker knows"
    # As it would travel, in the smallest snapshot there is.
    tick = 1
    body = pb.Snapshot(
        schema_version=SCHEMA_VERSION,
        vantage_id="v",
        tick=tick,
        tick_time_ns=tick * _PERIOD_NS,
        tick_period_ns=_PERIOD_NS,
        surfaces=[surface],
    ).SerializeToString()
    if len(body) > MAX_BYTES:
        return f"a report has at most {MAX_BYTES} bytes"
    header = SealHeader(1, Purpose.SNAPSHOT, Lane.LIVE, len(body), 1, 1, tick, tick * _PERIOD_NS, b"", "v")
    refusal = check_body(body, header, Window())
    return f"a broker would refuse it: {refusal.detail}" if refusal else ""
