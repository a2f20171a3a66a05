# SPDX-License-Identifier: Apache-2.0
"""Onsets and their order from series that are made up, and the client; the loads themselves run in the benchmark."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bench.chain import ANSWER, FAULT_TICKS, PORT, TICK_S, Recorded, onsets, report

QUIET = list(range(1000))
BEGIN = [2000, 2100]


def series(moves: dict[int, int | None], level: float = 10.0) -> dict[int, float]:
    """Noise, and from ``begin + delay`` on ``level``."""
    draw = np.random.default_rng(1)
    made = {tick: float(draw.standard_normal()) for tick in [*QUIET, *range(1990, 2300)]}
    for begin, delay in moves.items():
        if delay is not None:
            made.update(dict.fromkeys(range(begin + delay, begin + FAULT_TICKS), level))
    return made


def test_an_onset_is_the_first_of_two_ticks_beyond_what_quiet_ticks_have() -> None:
    made = series({2000: 3, 2100: None})
    made[2101] = 50.0  # one tick alone is none
    assert onsets(made, QUIET, BEGIN) == [3, None]


def test_what_moves_too_late_is_no_onset_and_what_is_unknown_neither() -> None:
    made = series({2000: 15, 2100: 2})
    for tick in range(2100, 2110):
        made[tick] = math.nan
    assert onsets(made, QUIET, BEGIN) == [None, 10]


def test_without_quiet_ticks_there_is_no_limit() -> None:
    with pytest.raises(ValueError, match="too few"):
        onsets(series({}), QUIET[:50], BEGIN)


def test_the_order_is_that_of_the_onsets_and_placebos_are_apart() -> None:
    found = Recorded()
    found.episodes = [(2000, True), (2100, False)]
    found.quiet = QUIET
    found.own = {"mm": series({2000: 1, 2100: None}), "sock": series({2000: None}), "blk": series({2000: 1})}
    found.latency, found.share = series({2000: 2}), series({2000: 4})
    shown = report(found)
    assert shown["series"]["mm"]["moved"][0] == 1.0
    assert shown["series"]["mm"]["placebo"][0] == 0.0
    assert shown["series"]["sock"]["median_onset_s"] is None
    assert shown["first"] == {"blk": 1, "mm": 1, "sock": 0}
    assert shown["memory_first"][0] == 1.0
    assert shown["order"]["mm <= latency"][0] == 1.0
    assert shown["order"]["mm <= sock"][3] == 0
    assert shown["series"]["latency"]["median_onset_s"] == 0.5


def test_a_replica_that_answers_nobody_is_slow_and_not_unknown() -> None:
    def answer(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while peer.recv(1):
                peer.sendall(bytes(ANSWER))

    def listen(server: socket.socket) -> None:
        while True:
            try:
                peer = server.accept()[0]
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    silent, well = "127.7.0.2", "127.7.0.3"
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from bench import chain; chain.client('1', {silent!r}, {well!r})"
    with socket.create_server((silent, PORT)), socket.create_server((well, PORT)) as server:
        threading.Thread(target=listen, args=(server,), daemon=True).start()
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdin is not None
            lines = [json.loads(asking.stdout.readline()) for _ in range(9)]
            asking.stdin.close()
    _, (waited, answered), shares = lines[-1]
    assert waited > 2 * TICK_S
    assert waited > lines[4][1][0]
    assert answered < waited / 2
    assert shares[0] == pytest.approx(0.1, abs=0.03)
