# SPDX-License-Identifier: Apache-2.0
"""Inside a machine: the same load counted by both loaders at once, as JSON {signal: [by core, by bcc]}.

Carried in and run by the installed package's own Python; needs root, python3-bpfcc and the kernel's own headers. Loads:
direct and synchronous block I/O, TCP to another namespace over a virtual wire, reclaim in a control group.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from mvps.vantages.cells import Cells

SIGNALS = ("mm", "blk", "sock", "irq", "path")
REQUESTS = 2000
SINK = """
import socket
with socket.create_server(("10.99.0.2", 7000)) as listening:
    print("listening", flush=True)
    peer, _ = listening.accept()
    while peer.recv(1 << 16):
        pass
"""


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def wire() -> Iterator[None]:
    """A namespace ``far`` at 10.99.0.2, over a pair of virtual interfaces."""
    run("ip netns add far")
    try:
        run("ip link add near0 type veth peer name far0 netns far")
        run("ip address add 10.99.0.1/24 dev near0")
        run("ip link set near0 up")
        run("ip -n far address add 10.99.0.2/24 dev far0")
        run("ip -n far link set far0 up")
        yield
    finally:
        run("ip netns delete far")


def block_load() -> None:
    path = "/var/tmp/compare-loaders"
    block = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(fd, 0, 1 << 20)
        os.fsync(fd)
        for n in range(REQUESTS):
            os.preadv(fd, [block], n * 4096 % (1 << 20))
        for n in range(50):
            os.pwrite(fd, block, n * 4096)
            os.fsync(fd)
    finally:
        os.close(fd)
        os.unlink(path)


def socket_load() -> None:
    far = subprocess.Popen(
        ["ip", "netns", "exec", "far", sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True
    )
    assert far.stdout is not None
    far.stdout.readline()
    with socket.create_connection(("10.99.0.2", 7000), 30) as sending:
        for _ in range(400):
            sending.sendall(bytes(1 << 14))
            time.sleep(0.002)
    far.wait(30)


def memory_load() -> None:
    run("dd if=/dev/zero of=/var/tmp/compare-loaders-walked bs=1M count=128 status=none")
    run("sync")
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    walk = "for n in 1 2 3; do cat /var/tmp/compare-loaders-walked > /dev/null; done"
    limit = ("-p", "MemoryMax=32M", "-p", "MemorySwapMax=0")
    subprocess.run(["systemd-run", "--quiet", "--wait", *limit, "sh", "-c", walk], check=True)
    os.unlink("/var/tmp/compare-loaders-walked")


def main() -> int:
    with wire():
        pairs = {name: (Cells(name, loader="core"), Cells(name, loader="bcc")) for name in SIGNALS}
        for core, compiled in pairs.values():
            core.read()
            compiled.read()
        block_load()
        socket_load()
        memory_load()
        time.sleep(1.0)
        found = {}
        for name, (core, compiled) in pairs.items():
            # One right after the other, so that little happens in between.
            readings = (core.read(), compiled.read())
            found[name] = [{**reading.counters, "hist": int(reading.histogram.sum())} for reading in readings]
        for core, compiled in pairs.values():
            core.close()
            compiled.close()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
