# SPDX-License-Identifier: Apache-2.0
"""The notification protocol over real datagram sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvps.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket and what $NOTIFY_SOCKET would say."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if request.param == "path":
        address = bound = str(tmp_path / "notify")
    else:
        address, bound = f"@mvps-test-{os.getpid()}", f"\0mvps-test-{os.getpid()}"
    listening.bind(bound)
    listening.settimeout(5.0)
    yield listening, address
    listening.close()


def test_messages_arrive_as_the_protocol_wants_them(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("up\nand running")
    assert listening.recv(1024) == b"READY=1\nSTATUS=up and running"
    notifier.status("tick 3")
    assert listening.recv(1024) == b"STATUS=tick 3"
    notifier.alive()
    assert listening.recv(1024) == b"WATCHDOG=1"
    notifier.reloading()
    first, second = listening.recv(1024).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")
    notifier.stopping()
    assert listening.recv(1024) == b"STOPPING=1"
    notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("up")
    notifier.close()
    assert (notifier.send_errors, notifier.watchdog_seconds) == (0, None)


def test_a_vanished_manager_is_counted_and_no_error(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.alive()
    assert notifier.send_errors == 1
    notifier.close()


def test_a_full_manager_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(100_000):
            notifier.alive()
            if notifier.send_errors:
                break
        assert notifier.send_errors > 0
        notifier.close()


def test_the_watchdog_is_for_the_named_process_only() -> None:
    mine = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(mine).watchdog_seconds == 3.0
    assert Notifier({**mine, "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "0"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_seconds is None
