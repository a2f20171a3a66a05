# SPDX-License-Identifier: Apache-2.0
"""Ticks on a terminal: one screen redrawn in place, or one line per tick where there is no terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from mvps.v1.local_pb2 import StreamState, TickUpdate
from mvps.v1.snapshot_pb2 import Lateral, ObservationSummary, Phase, Snapshot, Surface

_COLORS = {
    "BAU": "32",
    "WATCH": "33",
    "ALARM": "31",
    "CRITICAL": "1;31",
    "SHIFTED": "35",
    "CALIBRATING": "36",
}
_STATES = {"ok": "32", "degraded": "33", "failed": "31"}
_BAR = 24


def phase_of(surface: Surface) -> str:
    """Phase as an upper-case word, ``CALIBRATING`` without a decision."""
    if not surface.HasField("decision"):
        return "CALIBRATING"
    return Phase.Name(surface.decision.phase).removeprefix("PHASE_")


class Screen:
    """Draws updates on ``out``.

    On a terminal each update replaces the one before; otherwise each is one line. No colours when
    $NO_COLOR is set (no-color.org) or there is no terminal.
    """

    def __init__(self, out: TextIO | None = None, note: str = ""):
        self._out = out or sys.stdout
        self._tty = self._out.isatty()
        self._color = self._tty and not os.environ.get("NO_COLOR")
        self._height = 0
        self._note = note

    def show(self, update: TickUpdate, note: str = "") -> None:
        """Draw one tick; ``note`` is a line of its own below it."""
        if not self._tty:
            self._out.write(line(update) + (f" note={note!r}" if note else "") + "\n")
            self._out.flush()
            return
        rows = self._rows(update)
        rows += [r for r in (self._note, note) if r]
        width, height = shutil.get_terminal_size()
        rows = rows[: height - 1]
        up = f"\x1b[{self._height}A" if self._height else ""
        body = "".join(f"\r{_cut(row, width)}\x1b[K\n" for row in rows)
        self._out.write(f"{up}{body}\x1b[J")
        self._out.flush()
        self._height = len(rows)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color and code else text

    def _rows(self, update: TickUpdate) -> list[str]:
        snapshot = update.snapshot
        when = time.strftime("%H:%M:%S", time.localtime(snapshot.tick_time_ns / 1e9))
        rows = [
            f"{snapshot.vantage_id}  {when}  tick {snapshot.tick}  every {_seconds(snapshot.tick_period_ns)}"
            f"  sealed +{snapshot.lateness_ns / 1e6:.1f} ms"
        ]
        if snapshot.lead:
            rows[0] += f"  {self._paint(f'{snapshot.lead} leads', '1')}"
        states = {v.name: v for v in update.vantages}
        shown: set[str] = set()
        for surface in snapshot.surfaces:
            rows += ["", *self._surface(surface)]
            for observation in surface.observations:
                shown.add(observation.vantage)
                state = states.get(observation.vantage)
                word = state.state if state else "ok"
                reason = (state.reason if state else "") or observation.degraded
                rows.append(
                    f"  {observation.vantage:10} {self._paint(f'{word:8}', _STATES.get(word, ''))} "
                    f"{observation.events:>10.0f} events  own {_own(observation)}  {reason}"
                )
        for name, state in states.items():
            if name not in shown:
                word = self._paint(f"{state.state:8}", _STATES.get(state.state, ""))
                rows.append(f"  {name:10} {word} {state.reason}")
        if snapshot.losses.by_cause and any(snapshot.losses.by_cause.values()):
            worst = sorted(snapshot.losses.by_cause.items(), key=lambda item: -item[1])[:4]
            rows += ["", "lost: " + "  ".join(f"{cause} {count}" for cause, count in worst if count)]
        rows += ["", stream_line(update.stream)]
        return rows

    def _surface(self, surface: Surface) -> list[str]:
        phase = phase_of(surface)
        word = self._paint(f"{phase:11}", _COLORS.get(phase, ""))
        vector = surface.vector
        head = f"{surface.name:10} {word}"
        if not surface.HasField("decision"):
            head += f" {_bar(surface.calibrated_ticks, surface.needed_ticks)}"
            return [head, f"  {_axes(surface)}"]
        decision = surface.decision
        odds = "  ".join(
            f"{name} {p:.3f}"
            for name, p in zip(("BAU", "WATCH", "ALARM", "CRITICAL"), decision.posterior, strict=False)
        )
        head += f" D² {decision.d2:8.2f}  Φ_D {decision.phi_d:.3f}  p {decision.p_value:.2g}"
        if vector.farthest:
            head += f"  farthest {vector.farthest} {vector.s:+.1f}σ"
        return [head, f"  {_axes(surface)}", f"  {odds}"]


def line(update: TickUpdate) -> str:
    """One tick as key=value words on one line."""
    snapshot = update.snapshot
    words = [f"tick={snapshot.tick}", f"sealed_ms={snapshot.lateness_ns / 1e6:.2f}"]
    if snapshot.lead:
        words.append(f"lead={snapshot.lead}")
    for surface in snapshot.surfaces:
        name, vector = surface.name, surface.vector
        words.append(f"{name}={phase_of(surface)}")
        axes = (axis for axis in ("c1", "c2", "c3", "c4") if vector.HasField(axis))
        words += [f"{name}.{axis}={getattr(vector, axis):.4f}" for axis in axes]
        if surface.lateral == Lateral.LATERAL_COHERENT_BUT_FALSE:
            words.append(f"{name}.lateral=COHERENT_BUT_FALSE")
        words.append(f"{name}.h={vector.hamiltonian:.4f}")
        if surface.HasField("decision"):
            words += [f"{name}.d2={surface.decision.d2:.3f}", f"{name}.phi_d={surface.decision.phi_d:.4f}"]
            words += [f"{name}.p={surface.decision.p_value:.3g}"]
            if vector.farthest:
                words += [f"{name}.farthest={vector.farthest}", f"{name}.s={vector.s:.2f}"]
        else:
            words.append(f"{name}.calibrated={surface.calibrated_ticks}/{surface.needed_ticks}")
    words += [f"{v.name}={v.state}" for v in update.vantages if v.state != "ok"]
    stream = update.stream
    words.append(f"broker={stream.state or 'stopped'}")
    words.append(f"acknowledged={stream.acknowledged}/{stream.produced}")
    if stream.detail:
        words.append(f"detail={stream.detail!r}")
    return " ".join(words)


def stream_line(stream: StreamState) -> str:
    """The road to the broker in one line."""
    head = f"broker {stream.target or '(none)'} {stream.state or 'stopped'}"
    counts = f"sealed {stream.produced}  accepted {stream.acknowledged}  spooled {stream.spooled}"
    if stream.queued:
        counts += f"  in memory only {stream.queued}"
    if stream.recovered:
        counts += f"  recovered {stream.recovered}"
    if stream.rejected:
        counts += f"  rejected {stream.rejected} ({_causes(stream.rejected_by_reason)})"
    if stream.dropped:
        counts += f"  dropped {stream.dropped} ({_causes(stream.dropped_by_cause)})"
    if stream.spool_error:
        counts += f"  {stream.spool_error}"
    return f"{head}  {counts}" + (f"  {stream.detail}" if stream.detail else "")


def epoch_line(stream: StreamState) -> str:
    """The epoch that seals and how far the broker's clock is off; empty where nothing is sealed."""
    if not stream.epoch_id:
        return ""
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stream.epoch_until_ns / 1e9))
    words = f"epoch {stream.epoch_id}, profile {stream.profile}, until {until}"
    if stream.HasField("clock_offset_ns"):
        words += f"; broker's clock {stream.clock_offset_ns / 1e6:+.1f} ms"
    if stream.backfilled:
        words += f"; {stream.backfilled} sent as backfill"
    return words + (f"\nmanifest refused: {stream.manifest_error}" if stream.manifest_error else "")


def as_json(snapshot: Snapshot) -> dict[str, object]:
    """A snapshot as plain values; distributions as lists of numbers instead of packed bytes."""
    import struct

    from google.protobuf.json_format import MessageToDict

    document: dict[str, object] = MessageToDict(snapshot, preserving_proto_field_name=True)
    surfaces = document.get("surfaces", [])
    assert isinstance(surfaces, list)
    for plain, surface in zip(surfaces, snapshot.surfaces, strict=True):
        for values, observation in zip(plain.get("observations", []), surface.observations, strict=True):
            count = len(observation.distribution) // 4
            values["distribution"] = list(struct.unpack(f"<{count}f", observation.distribution))
    return document


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as left-aligned columns."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def _axes(surface: Surface) -> str:
    vector = surface.vector
    words = [
        f"{label} {getattr(vector, axis):.4f}" if vector.HasField(axis) else f"{label}   -   "
        for label, axis in (("C_1", "c1"), ("C_2", "c2"), ("C_3", "c3"))
    ]
    if vector.HasField("c4"):
        words.append(f"C_4 {vector.c4:.4f}")
    if surface.lateral == Lateral.LATERAL_COHERENT_BUT_FALSE:
        words.append("COHERENT_BUT_FALSE")
    missing = f"  missing: {', '.join(surface.missing)}" if surface.missing else ""
    return "  ".join(words) + f"  H {vector.hamiltonian:.4f}" + missing


def _own(observation: ObservationSummary) -> str:
    return f"{observation.own_distance:+6.1f}σ" if observation.HasField("own_distance") else "     -  "


def _bar(done: int, needed: int) -> str:
    filled = _BAR * done // needed if needed else 0
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{needed} ticks of business as usual"


def _causes(counts: object) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in sorted(counts.items()))  # type: ignore[attr-defined]


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:g} s"


def _cut(row: str, width: int) -> str:
    """The row's first ``width`` characters; escape sequences take no room."""
    out: list[str] = []
    room, i = width, 0
    while i < len(row) and room > 0:
        if row[i] == "\x1b":
            end = row.index("m", i) + 1
            out.append(row[i:end])
            i = end
            continue
        out.append(row[i])
        room -= 1
        i += 1
    return "".join(out) + ("\x1b[0m" if "\x1b" in row else "")
