# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mvps
from mvps.trust.counter import Counter, CounterError, generation_of
from mvps.trust.seal import Lane


def test_first_start_takes_the_generation_from_the_clock(tmp_path: Path) -> None:
    counter = Counter(tmp_path / "counter", clock=lambda: 1000.9)
    assert [generation_of(counter.next(Lane.LIVE)) for _ in range(3)] == [1000] * 3
    assert (tmp_path / "counter").read_bytes() == b"mvps-counter-v1 1000\n"


def test_lanes_count_by_themselves_and_strictly_up(tmp_path: Path) -> None:
    counter = Counter(tmp_path / "counter", clock=lambda: 7)
    assert [counter.next(lane) & 0xFFFFFFFF for lane in (Lane.LIVE, Lane.LIVE, Lane.BACKFILL)] == [0, 1, 0]


@pytest.mark.parametrize("second_clock", [0.0, 999.0, 1000.0, 5000.0])
def test_a_restart_is_always_above(tmp_path: Path, second_clock: float) -> None:
    first = Counter(tmp_path / "counter", clock=lambda: 1000)
    last = first.next(Lane.LIVE)
    first.close()
    assert Counter(tmp_path / "counter", clock=lambda: second_clock).next(Lane.LIVE) > last


def test_a_rolled_back_state_file_does_not_bring_old_counters_back(tmp_path: Path) -> None:
    first = Counter(tmp_path / "counter", clock=lambda: 1000)
    backup = (tmp_path / "counter").read_bytes()
    first.close()
    second = Counter(tmp_path / "counter", clock=lambda: 2000)
    last = second.next(Lane.LIVE)
    second.close()
    (tmp_path / "counter").write_bytes(backup)
    assert Counter(tmp_path / "counter", clock=lambda: 2001).next(Lane.LIVE) > last


@pytest.mark.parametrize("content", [b"", b"garbage", b"mvps-counter-v1 12", b"mvps-counter-v1 -3\n", b"\0" * 64])
def test_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "counter").write_bytes(content)
    for _ in range(2):  # also the second time: the lock was let go
        with pytest.raises(CounterError, match="move it away"):
            Counter(tmp_path / "counter")
    assert (tmp_path / "counter").read_bytes() == content


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CounterError, match="state directory"):
        Counter(tmp_path / "absent" / "counter")


def test_two_agents_cannot_share_a_state_file(tmp_path: Path) -> None:
    first = Counter(tmp_path / "counter")
    with pytest.raises(CounterError, match="another agent"):
        Counter(tmp_path / "counter")
    first.close()
    Counter(tmp_path / "counter").close()


def test_generations_run_out_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "counter").write_bytes(b"mvps-counter-v1 4294967295\n")
    with pytest.raises(CounterError, match="new vantage id"):
        Counter(tmp_path / "counter")


def test_nothing_is_reused_after_kill_9(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from mvps.trust.counter import Counter
        from mvps.trust.seal import Lane
        counter = Counter(Path(sys.argv[1]), clock=lambda: 5)
        while True:
            print(counter.next(Lane.LIVE), flush=True)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(mvps.__file__).parent.parent)}
    last = -1
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "counter")],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ) as process:
            assert process.stdout is not None
            counters = [int(process.stdout.readline()) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            counters += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        assert counters[0] > last
        assert counters == sorted(set(counters))
        last = counters[-1]
