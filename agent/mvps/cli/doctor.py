# SPDX-License-Identifier: Apache-2.0
"""``mvps doctor``: what this host offers, what it lacks, and what to do about each.

Loads no BPF program; ``mvps check`` does that. Each check looks at one thing and yields one finding.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import socket
import ssl
import struct
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mvps.cli import exits
from mvps.cli.settings import add_config_option, read_config
from mvps.probes.kernel import too_old

if TYPE_CHECKING:
    from mvps.daemon.config import Config

# include/uapi/linux/capability.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")

UNIT = "mvps-agent.service"

# include/uapi/linux/timex.h
TIME_ERROR = 5
STA_UNSYNC = 0x0040


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``advice`` is empty when there is nothing to do."""

    check: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps doctor``."""
    parser.add_argument("--json", action="store_true", help="one JSON array of findings")
    add_config_option(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps doctor\n"
        "  sudo -u mvps mvps doctor     what the service's user may do\n"
        "exit codes: 0 nothing fails (warnings allowed), 1 something does, 2 the settings are bad"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    config = read_config(arguments.config)
    findings = examine(config)
    if arguments.json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        width = max(len(f.check) for f in findings)
        for finding in findings:
            print(f"{finding.level:4}  {finding.check:{width}}  {finding.detail}")
            if finding.advice:
                print(f"{'':4}  {'':{width}}  -> {finding.advice}")
    return exits.FOUND if any(f.level == "fail" for f in findings) else exits.OK


def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """All findings. ``root`` replaces / for what is read from /proc and /sys."""
    return [
        kernel(platform.release()),
        btf(root, platform.release()),
        hooks(root),
        jit(root),
        statistics(root),
        capabilities(root),
        libbpf(),
        lockdown(root),
        perf_event_paranoid(root),
        psi(root),
        cgroups(root),
        xdp(),
        clock(),
        key(config),
        epoch(config),
        broker(config),
        state_dir(config),
        spool(config),
    ]


def kernel(release: str) -> Finding:
    """The running kernel against the floor."""
    if reason := too_old(release):
        detail, _, advice = reason.partition(": ")
        return Finding("kernel", "fail", detail, advice)
    return Finding("kernel", "ok", release)


def btf(root: Path, release: str) -> Finding:
    """Type information that CO-RE needs; without it bcc can compile the programs here."""
    path = root / "sys/kernel/btf/vmlinux"
    try:
        with path.open("rb") as file:
            magic = struct.unpack("<H", file.read(2))[0]
    except (OSError, struct.error):
        return _without_btf(root, release)
    if magic != 0xEB9F:
        return Finding("btf", "fail", "/sys/kernel/btf/vmlinux is not BTF", "use the distribution's own kernel")
    return Finding("btf", "ok", f"{path.stat().st_size / 1e6:.1f} MB at /sys/kernel/btf/vmlinux")


def _without_btf(root: Path, release: str) -> Finding:
    from mvps.probes.bcc import why_not

    if lacking := why_not(release, root):
        return Finding(
            "btf",
            "fail",
            "no /sys/kernel/btf/vmlinux",
            f"use a kernel built with CONFIG_DEBUG_INFO_BTF=y; or let bcc compile the programs: {lacking}",
        )
    return Finding(
        "btf",
        "warn",
        "no /sys/kernel/btf/vmlinux: bcc compiles the programs at every start",
        "sched cannot be watched and block requests have no owner; a kernel with CONFIG_DEBUG_INFO_BTF=y has both",
    )


def hooks(root: Path = Path("/")) -> Finding:
    """Whether the kernel has every tracepoint that a vantage's programs attach to, by its BTF."""
    try:
        types = (root / "sys/kernel/btf/vmlinux").read_bytes()
    except OSError:
        return Finding("hooks", "warn", "cannot be looked up without BTF", "see btf above; mvps check attaches them")
    missing: list[str] = []
    number = 0
    for file in sorted(_objects(), key=lambda file: file.name):
        # Section names of the object; a tracepoint's type is called btf_trace_NAME.
        wanted = sorted({name.decode() for name in re.findall(rb"\0tp_btf/(\w+)(?=\0)", file.read_bytes())})
        number += len(wanted)
        vantage = file.name.removesuffix(".bpf.o")
        missing += [f"{name} ({vantage})" for name in wanted if f"\0btf_trace_{name}\0".encode() not in types]
    if not number:
        return Finding("hooks", "fail", "the BPF objects are not here", "packaging/build_hook.py, or install again")
    if missing:
        return Finding(
            "hooks",
            "warn",
            f"this kernel lacks {', '.join(missing)}",
            "mvps check says which vantages start without; a kernel built without that subsystem has nothing to watch",
        )
    return Finding("hooks", "ok", f"{number} tracepoints")


def _objects() -> list[Traversable]:
    folder = resources.files("mvps.probes") / "bpf"
    return [file for file in folder.iterdir() if file.name.endswith(".bpf.o")] if folder.is_dir() else []


def jit(root: Path = Path("/")) -> Finding:
    """Whether programs run as machine code; interpreted ones cost several times as much per event."""
    setting = root / "proc/sys/net/core/bpf_jit_enable"
    try:
        on = int(setting.read_text()) > 0
    except (OSError, ValueError):  # built in for good, or not for this user to see
        return Finding("jit", "ok", "not switchable here")
    if not on:
        return Finding("jit", "warn", "off: BPF programs are interpreted", "sysctl net.core.bpf_jit_enable=1")
    return Finding("jit", "ok", "on")


def statistics(root: Path = Path("/")) -> Finding:
    """Whether the kernel times every run of every program, which is itself a cost."""
    try:
        on = int((root / "proc/sys/kernel/bpf_stats_enabled").read_text()) > 0
    except (OSError, ValueError):
        return Finding("statistics", "ok", "no such setting")
    if on:
        return Finding(
            "statistics",
            "warn",
            "kernel.bpf_stats_enabled is 1: every BPF program pays for its own timing",
            "sysctl kernel.bpf_stats_enabled=0; mvps cost --live has its own switch",
        )
    return Finding("statistics", "ok", "off")


def capabilities(root: Path = Path("/")) -> Finding:
    """The effective set of this process: what the verbs run from here may do."""
    text = (root / "proc/self/status").read_text()
    effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.M)[1], 16)  # type: ignore[index]

    def has(name: str) -> bool:
        # capable() of CAP_BPF and CAP_PERFMON also accepts CAP_SYS_ADMIN (include/linux/capability.h).
        bits = [CAPABILITIES[name]] + ([CAPABILITIES["CAP_SYS_ADMIN"]] if name != "CAP_NET_ADMIN" else [])
        return any(effective >> bit & 1 for bit in bits)

    missing = [name for name in NEEDED if not has(name)]
    if missing:
        return Finding(
            "capabilities",
            "fail",
            f"this process lacks {', '.join(missing)}",
            "run as root, or let systemd/mvps-agent.service grant them",
        )
    return Finding("capabilities", "ok", " ".join(NEEDED))


def libbpf() -> Finding:
    """The C library that loads programs."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        version = library.libbpf_version_string().decode().removeprefix("v")
    except OSError:
        return Finding("libbpf", "fail", "libbpf.so.1 not found", "apt-get install libbpf1")
    return Finding("libbpf", "ok", version)


def lockdown(root: Path = Path("/")) -> Finding:
    """Kernel lockdown: confidentiality forbids reading kernel memory, which every vantage does."""
    try:
        text = (root / "sys/kernel/security/lockdown").read_text()
    except OSError:
        return Finding("lockdown", "ok", "not in force")
    mode = re.search(r"\[(\w+)\]", text)
    name = mode[1] if mode else "unknown"
    if name == "confidentiality":
        return Finding(
            "lockdown",
            "fail",
            "confidentiality",
            "boot with lockdown=integrity; confidentiality forbids BPF reads",
        )
    return Finding("lockdown", "ok", name)


def perf_event_paranoid(root: Path = Path("/")) -> Finding:
    """Distribution levels of 3 and above are irrelevant with CAP_PERFMON, and fatal without."""
    try:
        level = int((root / "proc/sys/kernel/perf_event_paranoid").read_text())
    except (OSError, ValueError):
        return Finding("perf_event_paranoid", "ok", "no such setting")
    if level > 2:
        return Finding("perf_event_paranoid", "ok", f"{level}; CAP_PERFMON is needed and asked for above")
    return Finding("perf_event_paranoid", "ok", str(level))


def psi(root: Path = Path("/")) -> Finding:
    """Pressure stall information: the witness of several vantages."""
    missing = [name for name in ("cpu", "io", "memory") if not (root / "proc/pressure" / name).exists()]
    if missing:
        return Finding(
            "psi",
            "warn",
            f"no /proc/pressure/{{{','.join(missing)}}}: the witnesses of mm, blk and sched are blind",
            "boot with psi=1 on a kernel with CONFIG_PSI=y",
        )
    return Finding("psi", "ok", "cpu io memory")


def cgroups(root: Path = Path("/")) -> Finding:
    """Which hierarchy the workload keys come from."""
    if (root / "sys/fs/cgroup/cgroup.controllers").exists():
        return Finding("cgroups", "ok", "v2")
    hybrid = root / "sys/fs/cgroup/unified/cgroup.controllers"
    if hybrid.exists():
        return Finding(
            "cgroups",
            "ok",
            "hybrid: v2 at /sys/fs/cgroup/unified, controllers in v1; workloads are matched by name",
        )
    return Finding(
        "cgroups",
        "fail",
        "no cgroup v2 is mounted",
        "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd",
    )


def xdp() -> Finding:
    """XDP programs on this namespace's interfaces, and whether they run in the driver."""
    from mvps.probes.libbpf import XDP_MODES, BpfError, query_xdp

    found: dict[str, str] = {}
    try:
        for index, name in socket.if_nameindex():
            if mode := XDP_MODES.get(query_xdp(index).attach_mode):
                found[name] = mode
    except BpfError as error:
        return Finding("xdp", "warn", f"cannot be asked for: {error}", "see libbpf above")
    shown = ", ".join(f"{name} {mode}" for name, mode in found.items())
    if "generic" in found.values():
        return Finding(
            "xdp",
            "warn",
            f"{shown}: generic runs behind the network stack's entry, where dropping a packet costs more",
            "attach in native mode; it needs a driver with XDP, and often an MTU that fits one page",
        )
    return Finding("xdp", "ok", shown or "no interface has a program")


def clock() -> Finding:
    """Whether the wall clock, which the lattice lives on, is disciplined (adjtimex(2), read only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes = 0: only read
    state = libc.adjtimex(buffer)
    if state < 0:
        return Finding("clock", "warn", "adjtimex failed", "check with timedatectl")
    _modes, _offset, _freq, maxerror, _esterror, status = struct.unpack_from("@iqqqqi", buffer)
    if state == TIME_ERROR or status & STA_UNSYNC:
        return Finding(
            "clock",
            "warn",
            "not synchronised: ticks of this host and of others drift apart",
            "start chrony or systemd-timesyncd; a broker rejects snapshots that are too far off its clock",
        )
    return Finding("clock", "ok", f"synchronised, error at most {maxerror / 1000:.1f} ms")


def key(config: Config) -> Finding:
    """Whether this host's key can be loaded by this user."""
    if not config.broker.target:
        return Finding("key", "ok", "not needed: no [broker] target is set")
    from mvps.trust.keys import KeySourceError, Kind, load_key

    source = key_source(config)
    try:
        loaded = load_key(source, Kind.HOST)
    except KeySourceError as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("key", "fail", reason, advice or f"mvps key generate host {source}")
    return Finding("key", "ok", f"{source}, id {loaded.public.key_id.hex()}")


def key_source(config: Config) -> str:
    """Where this host's key lies for who is not the service: the file that its unit hands over as a credential."""
    source = config.trust.key
    credential = re.fullmatch(r"credential:(.+)", source)
    if credential is None or "CREDENTIALS_DIRECTORY" in os.environ:
        return source
    try:
        shown = subprocess.run(["systemctl", "cat", UNIT], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return source  # no systemd, no such unit: reading the key says what a credential needs
    files: list[str] = re.findall(rf"^LoadCredential={re.escape(credential[1])}:(/.+)$", shown.stdout, re.M)
    return files[-1] if files else source


def epoch(config: Config) -> Finding:
    """Whether the operator's manifests admit this host now, and for how long."""
    if not config.broker.target:
        return Finding("epoch", "ok", "not needed: no [broker] target is set")
    from mvps.daemon.identity import RECEIVED, Identity, TrustError
    from mvps.trust.keys import KeySourceError, Kind, load_public
    from mvps.trust.manifest import utc
    from mvps.trust.seal import SealError

    received = Path(config.agent.state_dir) / RECEIVED
    try:
        operator = load_public(config.trust.operator, Kind.OPERATOR)
        identity = Identity(key_source(config), operator, Path(config.trust.manifests), received, config.vantage_id)
        epoch_id, _ = identity.epochs.sealing(time.time_ns())
    except (KeySourceError, TrustError, SealError, OSError) as error:
        return Finding("epoch", "fail", str(error), "mvps epoch show FILE prints what a manifest says")
    manifest = identity.epochs.current(time.time_ns())
    assert manifest is not None
    left_days = (manifest.until_s - time.time()) / 86400
    words = f"epoch {epoch_id} of {manifest.operator}, profile {manifest.profile}, until {utc(manifest.until_s)}"
    if left_days < 7 and manifest is identity.epochs.manifests[-1]:
        return Finding(
            "epoch", "warn", f"{words}: {left_days:.1f} days left", "the operator signs the next: mvps epoch new"
        )
    return Finding("epoch", "ok", words)


def broker(config: Config) -> Finding:
    """Whether something listens at the broker's address, and speaks TLS if the agent does."""
    target = config.broker.target
    if not target:
        return Finding("broker", "warn", "no [broker] target: snapshots stay on this host", "set it to send them")
    try:
        if config.broker.tls_ca and not target.startswith("unix:"):
            return Finding("broker", "ok", f"{target} accepts TLS: {_shake_hands(config)}")
        _connect(target)
    except ValueError as error:  # a certificate or key of ours
        return Finding("broker", "fail", str(error), "see docs/operations.md, TLS")
    except ssl.SSLError as error:
        return Finding(
            "broker",
            "fail",
            f"{target}: TLS fails: {getattr(error, 'verify_message', '') or error.reason or error}",
            "the broker's certificate has to name this address and come from tls_ca, ours from its tls_client_ca",
        )
    except OSError as error:
        return Finding(
            "broker",
            "fail",
            f"{target}: {error.strerror or error}",
            "is the broker up, and the way to it open?",
        )
    return Finding("broker", "ok", f"{target} accepts connections")


def _connect(target: str) -> None:
    if target.startswith("unix:"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix:
            unix.settimeout(3.0)
            unix.connect(target.removeprefix("unix:"))
        return
    from mvps.daemon.config import split_address

    socket.create_connection(split_address(target), timeout=3.0).close()


def _shake_hands(config: Config) -> str:
    """Connect with TLS as the agent does; version and cipher. ValueError, ssl.SSLError or OSError."""
    from mvps.daemon.config import split_address
    from mvps.trust.tls import ClientTls

    ours = config.broker
    own = (Path(ours.tls_cert), Path(ours.tls_key)) if ours.tls_cert else ()
    ClientTls(Path(ours.tls_ca), *own).credentials()  # says better what is wrong with a file
    context = ssl.create_default_context(cafile=ours.tls_ca)
    context.set_alpn_protocols(["h2"])
    if own:
        context.load_cert_chain(*own)
    host, port = split_address(ours.target)
    with (
        socket.create_connection((host, port), timeout=3.0) as plain,
        context.wrap_socket(plain, server_hostname=host) as shaken,
    ):
        shaken.settimeout(1.0)
        # In TLS 1.3 a server refuses a client's certificate only after the client is done.
        with contextlib.suppress(TimeoutError):
            if not shaken.recv(1):
                raise ConnectionError(
                    "the broker hangs up after the handshake: does it ask for a certificate (tls_cert)?"
                )
        return f"{shaken.version()}, {(shaken.cipher() or ('?',))[0]}"


def state_dir(config: Config) -> Finding:
    """Whether baselines and the generation counter can be kept."""
    path = Path(config.agent.state_dir)
    if not path.is_dir():
        return Finding("state_dir", "warn", f"{path} does not exist", "the service makes it (StateDirectory=mvps)")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding("state_dir", "fail", f"{path} is not writable by this user", f"chown it, or chmod u+w {path}")
    return Finding("state_dir", "ok", str(path))


def spool(config: Config) -> Finding:
    """Whether the spool can grow to what it is allowed to."""
    if not config.spool.max_mib:
        return Finding("spool", "warn", "max_mib = 0: what is not acknowledged is lost with a restart", "set it")
    path = Path(config.spool.path or Path(config.agent.state_dir) / "spool")
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free >> 20
    used = sum(file.stat().st_size for file in path.glob("*") if file.is_file()) >> 20 if path.is_dir() else 0
    if free < config.spool.max_mib - used:
        return Finding(
            "spool",
            "warn",
            f"{free} MiB free at {there}, and it may grow by {config.spool.max_mib - used}",
            "free some, lower spool.max_mib, or set spool.path",
        )
    return Finding("spool", "ok", f"{used} of at most {config.spool.max_mib} MiB at {path}")
