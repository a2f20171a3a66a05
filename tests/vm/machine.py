# SPDX-License-Identifier: Apache-2.0
"""A Debian virtual machine under QEMU without hardware acceleration, driven through its guest agent."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "build/vm"
RELEASES = ("bookworm", "trixie")
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "debootstrap": "debootstrap", "mkfs.ext4": "e2fsprogs"}
# Emulated, a boot takes about a quarter of a minute on an idle host, and installing the packages one and a half. On a
# busy one it is a multiple: these limits are for what hangs.
BOOT_S = 900.0
COMMAND_S = 900.0
_LOOK_S = 0.2


class MachineError(Exception):
    """The machine does not boot or does not answer; says where its console is."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended inside: its exit code and what it printed."""

    code: int
    out: str
    err: str


def why_not() -> str:
    """What keeps this host from running machines, with advice; "" for nothing."""
    if os.geteuid() != 0:
        return "making the image needs root"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        return f"not here: apt-get install {' '.join(missing)}, or packaging/bootstrap.sh --dev"
    return ""


def make_image(release: str) -> None:
    """The image of a release, unless it is there already. Takes a minute and a half and a Debian mirror."""
    subprocess.run([ROOT / "tests/vm/make-image", release], check=True)


def disk_of(files: Sequence[Path], image: Path) -> None:
    """An ext4 image that holds copies of the files."""
    staging = image.with_suffix(".files")
    staging.mkdir()
    for file in files:
        shutil.copy(file, staging)
    size = sum(file.stat().st_size for file in files) // (1 << 20) + 32
    subprocess.run(["mkfs.ext4", "-q", "-d", staging, "-L", "files", image, f"{size}M"], check=True)
    shutil.rmtree(staging)


class Machine:
    """One machine. Its root disk is the release's image; what it writes there is gone with it. Files given come in on
    a second disk, read-only at ``/mnt``.
    """

    def __init__(self, release: str, folder: Path, files: Sequence[Path], memory_mib: int = 1536) -> None:
        self.console = folder / f"{release}.console"
        self._agent_path = folder / f"{release}.agent"
        payload = folder / f"{release}.files.ext4"
        disk_of(files, payload)
        image = IMAGES / release
        self._process = subprocess.Popen(
            [
                *("nice", "-n", "10", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-nic", "none"),
                # A processor without AVX: QEMU 7.2 emulates it wrongly (a sort of numpy ends in a segmentation fault).
                # In one thread: with one per processor a guest of 6.12 died of an int3 while programs were attached,
                # which makes a kernel rewrite code that another processor may be running.
                *("-accel", "tcg,thread=single", "-cpu", "Nehalem", "-smp", "2", "-m", str(memory_mib)),
                *("-kernel", f"{image}.vmlinuz", "-initrd", f"{image}.initrd"),
                *("-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0"),
                *("-drive", f"file={image}.ext4,format=raw,if=virtio,snapshot=on"),
                *("-drive", f"file={payload},format=raw,if=virtio,read-only=on"),
                *("-serial", f"file:{self.console}", "-device", "virtio-serial", "-device", "virtio-rng-pci"),
                *("-chardev", f"socket,id=agent,path={self._agent_path},server=on,wait=off"),
                *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self._agent: socket.socket | None = None
        self._received = b""
        try:
            self._wait_for_agent()
            self.must("mount -o ro /dev/vdb /mnt")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine, whatever it is doing."""
        if self._agent is not None:
            self._agent.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, command: str, seconds: float = COMMAND_S) -> Done:
        """Run a shell command as root inside, and wait for its end."""
        started = self._ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})
        deadline = time.monotonic() + seconds
        while True:
            status = self._ask("guest-exec-status", pid=started["pid"])
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise MachineError(f"not done within {seconds:g} s: {command}")
            time.sleep(_LOOK_S)
        out, err = (
            base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data")
        )
        return Done(status.get("exitcode", -status.get("signal", 0)), out, err)

    def must(self, command: str, seconds: float = COMMAND_S) -> str:
        """As run(), for a command that has to succeed; what it printed."""
        done = self.run(command, seconds)
        assert done.code == 0, f"{command}\nended with {done.code}\n{done.out}{done.err}"
        return done.out

    def until(self, command: str, seconds: float = COMMAND_S) -> str:
        """Run a command again and again until it succeeds; what it printed then."""
        deadline = time.monotonic() + seconds
        while (done := self.run(command)).code != 0:
            assert time.monotonic() < deadline, f"{command}\nstill ends with {done.code}\n{done.out}{done.err}"
            time.sleep(1.0)
        return done.out

    def reboot(self) -> None:
        """Reboot, as an operator would."""
        before = self.must("cat /proc/sys/kernel/random/boot_id")
        self._send("guest-shutdown", mode="reboot")
        deadline = time.monotonic() + BOOT_S
        while True:
            self._wait_for_agent()
            with contextlib.suppress(MachineError, AssertionError, OSError):
                if self.must("cat /proc/sys/kernel/random/boot_id", 20.0) != before:
                    break
            if time.monotonic() > deadline:
                raise MachineError(f"did not come back; its console: {self.console}")
            time.sleep(1.0)
        self.must("mount -o ro /dev/vdb /mnt")

    # ---- guest agent (qemu-ga), one JSON object a line

    def _wait_for_agent(self) -> None:
        deadline = time.monotonic() + BOOT_S
        while True:
            if self._process.poll() is not None:
                raise MachineError(f"qemu ended with {self._process.returncode}; its console: {self.console}")
            with contextlib.suppress(MachineError, OSError):
                self._connect()
                # What an earlier connection left in the channel is passed over.
                number = next(self._numbers)
                self._send("guest-sync", id=number)
                if any(answer.get("return") == number for answer in self._answers(2.0)):
                    return
            if time.monotonic() > deadline:
                raise MachineError(f"no guest agent within {BOOT_S:g} s; the console: {self.console}")

    def _connect(self) -> None:
        if self._agent is not None:
            self._agent.close()
        time.sleep(_LOOK_S)
        self._agent = socket.socket(socket.AF_UNIX)
        self._agent.connect(str(self._agent_path))
        self._received = b""

    def _send(self, name: str, **arguments: Any) -> None:
        assert self._agent is not None
        self._agent.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")

    def _ask(self, name: str, **arguments: Any) -> Any:
        self._send(name, **arguments)
        for answer in self._answers(30.0):
            if "error" in answer:
                raise MachineError(f"{name}: {answer['error']}")
            return answer["return"]
        raise MachineError(f"{name}: no answer; the console: {self.console}")

    def _answers(self, seconds: float) -> Iterator[Any]:
        """Answers until one is late."""
        assert self._agent is not None
        self._agent.settimeout(seconds)
        while True:
            line, separator, rest = self._received.partition(b"\n")
            if separator:
                self._received = rest
                yield json.loads(line)
                continue
            try:
                more = self._agent.recv(1 << 16)
            except TimeoutError:
                return
            if not more:
                raise MachineError("qemu closed the guest agent's channel")
            self._received += more


def main() -> int:
    """A machine to look around in: commands from standard input, one a line."""
    import tempfile

    release, *files = sys.argv[1:]
    make_image(release)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Machine(release, Path(folder), [Path(f) for f in files]) as machine:
        print(f"booted in {time.monotonic() - began:.1f} s", flush=True)
        for line in sys.stdin:
            began = time.monotonic()
            done = machine.run(line) if line.strip() != "REBOOT" else machine.reboot() or Done(0, "", "")
            print(f"{done.out}{done.err}[{done.code}, {time.monotonic() - began:.1f} s]", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
