# SPDX-License-Identifier: Apache-2.0
"""``mvps service transfer`` on a made-up history of a real broker."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_brokers import SEARCH, broker_of, without_ticks
from tests.waiting import until

from mvps.broker.history import ServiceRow
from mvps.broker.process import EmbeddedBroker
from mvps.broker.server import BrokerError
from mvps.cli import exits
from mvps.cli.main import main
from mvps.coupling import drift

SECOND = 10**9


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    with without_ticks(tmp_path, monkeypatch) as made:
        yield made


def drilled(broker: EmbeddedBroker, folder: Path, drills: int) -> Path:
    """A history of drills that moved more and more requests, and the file that names them."""
    begin = time.time_ns() // SECOND * SECOND - 7200 * SECOND
    rows, lines = [], ["# begin, end"]
    for number in range(drills):
        at = begin + 100 * number * SECOND
        x = 60.0 * number
        figures = {"exposure": x, "fall": 0.6 * -math.expm1(-x / 400.0) + 0.001 * (-1) ** number}
        rows += [ServiceRow(at + tick * SECOND, "search", 3, 3, figures) for tick in range(20)]
        lines.append(f"{at / SECOND}, {at / SECOND + 20}")
    assert broker.broker is not None
    history = broker.broker._history
    assert history is not None
    history.put_services(rows)
    until(lambda: history.status().waiting == 0)
    path = folder / "drills.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_transfer_is_fitted_to_drills_and_a_broker_takes_it(
    broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drills, out = drilled(broker, tmp_path, 24), tmp_path / "search.json"
    words = ["service", "transfer", "search", "--drills", str(drills), "-o", str(out), "--broker", broker.address]
    assert main(words) == exits.OK
    assert "24 drills: C_2^W2 falls by at most 0.6" in capsys.readouterr().out
    fitted = drift.load(out.read_text())
    assert fitted.scale.value == pytest.approx(400.0, rel=0.05)
    assert main(words) == exits.NOT_PERMITTED  # what is there is kept
    (tmp_path / "other").mkdir()
    made = broker_of(tmp_path / "other", {**SEARCH, "transfer": str(out)})
    made.stop()
    out.write_text("{}")
    (tmp_path / "third").mkdir()
    with pytest.raises(BrokerError, match=r"format.*mvps service transfer writes one"):
        broker_of(tmp_path / "third", {**SEARCH, "transfer": str(out)})


def test_a_transfer_says_what_it_lacks(
    broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drills, out = drilled(broker, tmp_path, 5), tmp_path / "search.json"

    def told(text: str | None = None) -> tuple[int, str]:
        if text is not None:
            drills.write_text(text)
        code = main(
            ["service", "transfer", "search", "--drills", str(drills), "-o", str(out), "--broker", broker.address]
        )
        return code, capsys.readouterr().err

    code, said = told()
    assert code == exits.FOUND
    assert "needs 20 events, got 5" in said
    assert "1 of 1 drills have no exposure" in told("1000, 2000\n")[1]
    assert told("now, later\n") == (exits.USAGE, told()[1])
    assert "drills.csv:1: write BEGIN,END" in told()[1]
    assert "ends after it begins" in told("2026-01-01T00:00:00Z, 2025-01-01T00:00:00Z\n")[1]
    assert not out.exists()
