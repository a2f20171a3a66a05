# SPDX-License-Identifier: Apache-2.0
"""The service manager's notification protocol, sd_notify(3), in a few lines and without a library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends state to ``$NOTIFY_SOCKET``; does nothing when the process is not run by a service manager.

    A lost notification is never worth an exception in the agent, so send errors are counted only.

    watchdog_seconds: how often the manager wants a sign of life, None when it does not.
    send_errors: notifications that could not be sent.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        environment = os.environ if environment is None else environment
        self._socket: socket.socket | None = None
        self.send_errors = 0
        self.watchdog_seconds = _watchdog_seconds(environment)
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            # '@' stands for the leading zero byte of an abstract address.
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # the tick thread must not wait for a busy manager

    def ready(self, status: str) -> None:
        """The service is up."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """A reload began; :meth:`ready` ends it. Type=notify-reload also wants the monotonic time."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is on its way down."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            self.send_errors += 1


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    microseconds = environment.get("WATCHDOG_USEC", "")
    owner = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or int(microseconds) == 0 or owner != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


def _one_line(text: str) -> str:
    return " ".join(text.split())
