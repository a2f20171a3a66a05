# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import struct

import pytest

from mvps.cli import view
from mvps.v1.local_pb2 import StreamState, TickUpdate
from mvps.v1.snapshot_pb2 import Lateral, Phase, Surface


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def update() -> TickUpdate:
    update = TickUpdate()
    snapshot = update.snapshot
    snapshot.vantage_id, snapshot.tick, snapshot.tick_period_ns = "host", 42, 1_000_000_000
    kernel = snapshot.surfaces.add(name="kernel")
    kernel.vector.c1, kernel.vector.c2, kernel.vector.farthest, kernel.vector.s = 1.0, 0.5, "blk", 7.5
    kernel.decision.phase, kernel.decision.d2, kernel.decision.phi_d = Phase.PHASE_ALARM, 12.5, 0.135
    kernel.decision.posterior.extend((0.1, 0.2, 0.6, 0.1))
    kernel.observations.add(vantage="blk", events=17, own_distance=7.5, distribution=struct.pack("<2f", 0.25, 0.75))
    snapshot.surfaces.add(name="dataplane", calibrated_ticks=30, needed_ticks=60)
    update.vantages.add(name="blk", state="ok")
    update.vantages.add(name="sock", state="failed", reason="no BTF")
    update.stream.target, update.stream.state = "b:1", "connected"
    update.stream.produced, update.stream.acknowledged = 9, 8
    return update


def test_one_line_per_tick_without_a_terminal(update: TickUpdate) -> None:
    out = io.StringIO()
    screen = view.Screen(out)
    screen.show(update)
    screen.show(update, "a note")
    first, second = out.getvalue().splitlines()
    words = dict(word.split("=", 1) for word in first.split())
    assert words["tick"] == "42"
    assert words["kernel"] == "ALARM"
    assert words["kernel.d2"] == "12.500"
    assert words["kernel.farthest"] == "blk"
    assert words["dataplane.calibrated"] == "30/60"
    assert words["sock"] == "failed"
    assert words["acknowledged"] == "8/9"
    assert "kernel.c3" not in words
    assert "\x1b" not in out.getvalue()
    assert "a note" in second


def test_a_terminal_is_redrawn_in_place(update: TickUpdate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "50")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    screen = view.Screen(out)
    screen.show(update)
    drawn = out.getvalue()
    rows = drawn.count("\n")
    for text in (
        "ALARM",
        "D²",
        "C_2 0.5000",
        "CRITICAL 0.100",
        "farthest blk",
        "30/60 ticks",
        "no BTF",
        "accepted 8",
    ):
        assert text in drawn
    assert "\x1b[31m" in drawn
    screen.show(update)
    assert f"\x1b[{rows}A" in out.getvalue()[len(drawn) :]


def test_no_color_and_small_terminals_are_respected(update: TickUpdate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    view.Screen(out).show(update)
    assert "\x1b[31m" not in out.getvalue()
    rows = out.getvalue().replace("\x1b[K", "").replace("\x1b[J", "").split("\n")[:-1]
    assert len(rows) == 4
    assert max(len(row.strip("\r")) for row in rows) <= 30


def test_json_has_distributions_as_numbers(update: TickUpdate) -> None:
    document = json.loads(json.dumps(view.as_json(update.snapshot)))
    assert document["surfaces"][0]["observations"][0]["distribution"] == [0.25, 0.75]
    assert document["surfaces"][0]["decision"]["phase"] == "PHASE_ALARM"
    assert document["surfaces"][1]["needed_ticks"] == 60


def test_the_stream_line_shows_where_every_snapshot_is() -> None:
    stream = StreamState(target="b:1", state="waiting", produced=9, acknowledged=2, spooled=5)
    assert view.stream_line(stream) == "broker b:1 waiting  sealed 9  accepted 2  spooled 5"
    stream.queued, stream.recovered, stream.spool_error = 2, 1, "cannot write to the spool"
    stream.dropped, stream.dropped_by_cause["spool_full"] = 1, 1
    said = view.stream_line(stream)
    for words in ("in memory only 2", "recovered 1", "dropped 1 (spool_full 1)", "cannot write to the spool"):
        assert words in said


def test_the_epoch_line_has_what_an_operator_needs() -> None:
    stream = StreamState(epoch_id=3, profile="cwt", epoch_until_ns=1_800_000_000 * 10**9)
    assert view.epoch_line(stream) == "epoch 3, profile cwt, until 2027-01-15T08:00:00Z"
    stream.clock_offset_ns, stream.backfilled, stream.manifest_error = -2_500_000, 4, "why"
    assert view.epoch_line(stream).endswith("; broker's clock -2.5 ms; 4 sent as backfill\nmanifest refused: why")
    assert view.epoch_line(StreamState()) == ""


def test_c4_and_its_label_stand_where_they_are_shown_and_nowhere_else() -> None:
    update = TickUpdate()
    surface = update.snapshot.surfaces.add(name="ai.g", lateral=Lateral.LATERAL_COHERENT_BUT_FALSE)
    surface.vector.c4 = 0.25
    assert "ai.g.c4=0.2500 ai.g.lateral=COHERENT_BUT_FALSE" in view.line(update)
    assert "C_4 0.2500  COHERENT_BUT_FALSE" in view._axes(surface)
    assert "C_4" not in view._axes(Surface(name="kernel"))
    surface.lateral = Lateral.LATERAL_NONE
    assert "COHERENT_BUT_FALSE" not in view.line(update) + view._axes(surface)
