# SPDX-License-Identifier: Apache-2.0
"""Load processes: run as ``python -m mvps.provoke.load KIND ...`` and ended by their parent.

Each ends by itself after ``--seconds``, or when its parent closes its standard input: a load never outlives the run
that asked for it. A line on standard input sets a new rate where the kind has one.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PAGE = mmap.PAGESIZE
_CLONE_NEWNET = 0x40000000


def enter_namespace(name: str) -> None:
    """Move this thread into a named network namespace (os.setns comes with Python 3.12)."""
    with open(f"/run/netns/{name}", "rb") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"entering network namespace {name}")


class Rate:
    """Current rate, and whether to go on; fed by the parent over standard input."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.value = rate
        self.ended = threading.Event()
        self._deadline = time.monotonic() + seconds
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while not self.ended.is_set() and time.monotonic() < self._deadline:
            if not select.select([sys.stdin], [], [], 0.2)[0]:
                continue
            line = sys.stdin.readline()
            if not line:
                break
            self.value = float(line)
        self.ended.set()


def walk_file(path: Path, rate: Rate) -> None:
    """Touch every page of a mapped file again and again; in a small memory cgroup each touch reclaims another page.

    Rate 1 walks without pause, 0.5 half of the time.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        # Pages that are cached already are charged to whoever read them first: they would not press on our cgroup.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size, position = len(view), 0
        while not rate.ended.is_set():
            begun = time.monotonic()
            for _ in range(2048):
                view[position]
                position = (position + _PAGE) % size
            busy = time.monotonic() - begun
            if rate.value < 1:
                time.sleep(min(busy * (1 / max(rate.value, 0.01) - 1), 1.0))


def direct_io(path: Path, threads: int, rate: Rate) -> None:
    """Random direct reads and writes of 64 KiB from many threads: at rate 1 the queue is full all the time.

    At a smaller rate each thread rests between its requests, so that it works that share of the time.
    """
    size = path.stat().st_size

    def one(seed: int) -> None:
        draw = random.Random(seed)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, 1 << 16)  # direct I/O wants page-aligned memory
        while not rate.ended.is_set():
            at = draw.randrange(size >> 16) << 16
            begun = time.monotonic()
            if draw.random() < 0.5:
                os.pwritev(fd, [block], at)
            else:
                os.preadv(fd, [block], at)
            if rate.value < 1:
                rest = (time.monotonic() - begun) * (1 / max(rate.value, 0.01) - 1)
                rate.ended.wait(min(rest, 1.0))
        os.close(fd)

    workers = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(threads)]
    for worker in workers:
        worker.start()
    rate.ended.wait()
    for worker in workers:
        worker.join(2)


def spin(rate: Rate) -> None:
    """Use one CPU, all of it at rate 1, in slices of 20 ms otherwise."""
    while not rate.ended.is_set():
        until = time.monotonic() + 0.02 * min(rate.value, 1.0)
        while time.monotonic() < until:
            pass
        if rate.value < 1:
            time.sleep(0.02 * (1 - rate.value))


def serve(address: str, port: int, rate: Rate) -> None:
    """TCP server that answers each 1-byte request with 4 KiB and swallows everything on ``port + 1``."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(1):
                    connection.sendall(b"\0" * 4096)
            except OSError:
                pass

    def swallow(connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass

    def accept(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handler, args=(connection,), daemon=True).start()

    for offset, handler in ((0, answer), (1, swallow)):
        listener = socket.create_server((address, port + offset), backlog=256)
        threading.Thread(target=accept, args=(listener, handler), daemon=True).start()
    print("ready", flush=True)
    rate.ended.wait()


def bulk(addresses: list[str], port: int, rate: Rate) -> None:
    """One unbounded TCP stream to each address."""

    def one(address: str) -> None:
        while not rate.ended.is_set():
            try:
                with socket.create_connection((address, port + 1), timeout=5) as stream:
                    while not rate.ended.is_set():
                        stream.sendall(b"\0" * (1 << 16))
            except OSError:  # a full queue or a route that is away: try again
                rate.ended.wait(0.2)

    for address in addresses:
        threading.Thread(target=one, args=(address,), daemon=True).start()
    rate.ended.wait()


def background(path: Path, addresses: list[str], port: int, rate: Rate) -> None:
    """What an ordinary small service does: Poisson requests, each a TCP exchange, one direct read, 0.5 ms of CPU.

    ``rate`` is requests per second over all addresses.
    """
    size = path.stat().st_size
    draw = random.Random(1)

    def one(seed: int, address: str) -> None:
        own = random.Random(seed)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        block = mmap.mmap(-1, _PAGE)
        stream: socket.socket | None = None
        while not rate.ended.is_set():
            rate.ended.wait(min(own.expovariate(max(rate.value, 1e-3) / len(addresses)), 5.0))
            try:
                if stream is None:
                    stream = socket.create_connection((address, port), timeout=2)
                stream.sendall(b"\1")
                got = 0
                while got < 4096:
                    part = len(stream.recv(4096))
                    if not part:
                        raise ConnectionError
                    got += part
                if own.random() < 0.002:  # connections do not live for ever
                    stream.close()
                    stream = None
            except OSError:
                if stream is not None:
                    stream.close()
                stream = None
            os.preadv(fd, [block], draw.randrange(size // _PAGE) * _PAGE)
            until = time.monotonic() + 0.0005
            while time.monotonic() < until:
                pass

    for number, address in enumerate(addresses):
        threading.Thread(target=one, args=(number, address), daemon=True).start()
    rate.ended.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run one load until its time is up or standard input closes."""
    parser = argparse.ArgumentParser(prog="mvps.provoke.load")
    parser.add_argument("kind", choices=["walk", "disk", "cpu", "serve", "bulk", "background"])
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--netns", default="")
    parser.add_argument("--port", type=int, default=7400)
    parser.add_argument("--address", action="append", default=[])
    parser.add_argument("--cgroup", action="append", default=[], help="cgroup directories to enter first")
    given = parser.parse_args(arguments)
    for directory in given.cgroup:
        (Path(directory) / "cgroup.procs").write_text(str(os.getpid()))
    if given.netns:
        enter_namespace(given.netns)
    rate = Rate(given.rate, given.seconds)
    if given.kind == "walk":
        walk_file(given.file, rate)
    elif given.kind == "disk":
        direct_io(given.file, given.threads, rate)
    elif given.kind == "cpu":
        spin(rate)
    elif given.kind == "serve":
        serve(given.address[0], given.port, rate)
    elif given.kind == "bulk":
        bulk(given.address, given.port, rate)
    else:
        background(given.file, given.address, given.port, rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
