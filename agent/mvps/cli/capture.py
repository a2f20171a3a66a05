# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""``mvps capture``: the MBND and COHE messages of a capture file, read offline."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvps.cli import exits

if TYPE_CHECKING:
    from mvps.interop.codec import Bundle, Coherence

EPILOG = (
    "examples:\n"
    "  tcpdump -i eth0 -w seen.pcap 'udp and (port 45878 or port 3784)'\n"
    "  mvps capture seen.pcap\n"
    "  mvps capture seen.pcap --json | jq 'select(.kind == \"MBND\") | .d2'\n"
    "One line a message; the last words name what is unknown of its kind. Tags are shown, not verified. Ordinary BFD\n"
    "and everything else is only counted. IP fragments are not put together.\n"
    "exit codes: 0 all messages were read, 1 some could not be, 2 not a capture file, 4 no permission or no scapy"
)

_SCAPY_LOG = logging.getLogger("scapy")
_MAX_COMPLAINTS = 8


class DamagedError(Exception):
    """A capture file is not whole; what could be read of it has been read."""


class Datagram(NamedTuple):
    """One UDP datagram of a capture. Addresses carry their ports; ``cut`` says how much of it is missing."""

    time_ns: int
    source: str
    destination: str
    port: int
    payload: bytes
    cut: str


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps capture``."""
    parser.add_argument("file", type=Path, help="pcap or pcapng file, not compressed")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line; unknown octets in hex")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Print every known message; counts go to standard error."""
    counts = Counter({"COHE": 0, "MBND": 0, "unreadable": 0, "other": 0})
    damage = ""
    try:
        for datagram in _datagrams(arguments.file):
            seen = _read(datagram) if datagram is not None else None
            counts["other" if seen is None else seen["kind"]] += 1
            if seen is not None:
                print(json.dumps(seen) if arguments.json else line(seen))
    except DamagedError as error:
        damage = str(error)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), file=sys.stderr)
    if damage:
        raise exits.Failure(exits.FOUND, f"{arguments.file} is damaged: {damage}")
    return exits.FOUND if counts["unreadable"] else exits.OK


def _read(datagram: Datagram) -> dict[str, Any] | None:
    """A datagram as plain values; None when it is nothing of ours."""
    from mvps.interop.codec import InteropError, decode

    try:
        message = decode(datagram.port, datagram.payload)
    except InteropError as error:
        content = {"kind": "unreadable", "reason": f"{error}{datagram.cut}"}
    else:
        if message is None:
            return None
        content = fields(message)
    where = {"time_ns": datagram.time_ns, "source": datagram.source, "destination": datagram.destination}
    return where | content


def fields(message: Bundle | Coherence) -> dict[str, Any]:
    """A message as plain values."""
    from mvps.interop.codec import Bundle

    if isinstance(message, Bundle):
        header, envelope = message.header, message.envelope
        return {
            "kind": "MBND",
            "bundle_id": header.bundle_id,
            "tick": header.tick,
            "epoch_id": header.epoch_id,
            "vantages": header.vantages,
            "adversaries": header.adversaries,
            "d2": header.d2,
            "records": [record.hex() for record in message.records],
            "operator_id": envelope.operator_id.decode("ascii"),
            "manifest_root": envelope.manifest_root.hex(),
            "rest": envelope.rest.hex(),
            "doubts": list(header.doubts),
            "unknown": list(message.UNKNOWN),
        }
    return {
        "kind": "COHE",
        "tick": message.tick,
        "phase_residual_ns": message.phase_residual_ns,
        "c1": message.c1,
        "c2": message.c2,
        "c3": message.c3,
        "bfd": message.bfd.hex(),
        "tag": message.tag.hex(),
        "doubts": list(message.doubts),
        "unknown": list(message.UNKNOWN),
    }


def line(seen: dict[str, Any]) -> str:
    """One message as words on one line; opaque octets are counted, not shown, except digests."""
    seconds, fraction = divmod(seen["time_ns"], 10**9)
    head = f"{seconds}.{fraction:09d} {seen['source']} > {seen['destination']} {seen['kind']}"
    if seen["kind"] == "unreadable":
        return f"{head}: {seen['reason']}"
    if seen["kind"] == "MBND":
        words = [f"{name}={seen[name]}" for name in ("bundle_id", "tick", "epoch_id", "vantages", "adversaries")]
        # The operator id is a stranger's: its repr, so that it can neither end the line nor colour the terminal.
        words += [f"d2={seen['d2']:.6g}", f"operator_id={seen['operator_id']!r}"]
        words += [f"manifest_root={seen['manifest_root']}", f"records={len(seen['records'])}x32B"]
        words.append(f"rest={len(seen['rest']) // 2}B")
    else:
        words = [f"tick={seen['tick']}", f"phase_residual_ns={seen['phase_residual_ns']}"]
        words += [f"{axis}={seen[axis]:.6g}" for axis in ("c1", "c2", "c3")]
        words += [f"bfd={len(seen['bfd']) // 2}B", f"tag={seen['tag']}"]
    words += [f"doubtful: {doubt};" for doubt in seen["doubts"]]
    return f"{head} {' '.join(words)} unknown: {'; '.join(seen['unknown'])}"


def _datagrams(path: Path) -> Iterator[Datagram | None]:
    """The file's UDP datagrams in order, None for each packet that is none."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                # A few octets of gzip can announce a block of gigabytes, and scapy would unpack it.
                raise exits.Failure(exits.USAGE, f"{path} is compressed: gunzip it first")
    except PermissionError:
        raise exits.Failure(exits.NOT_PERMITTED, f"{path}: no permission to read it") from None
    except OSError as error:
        raise exits.Failure(exits.USAGE, f"{path}: {error.strerror}") from None
    scapy = _scapy()
    try:
        reader = scapy.utils.PcapReader(str(path))
    except (scapy.error.Scapy_Exception, EOFError) as error:
        raise exits.Failure(exits.USAGE, f"{path} is no capture file: {error or 'it ends too early'}") from None
    complaints = _Complaints()
    with reader, complaints:
        while (packet := _next(reader)) is not None:
            yield _datagram(packet)
    if complaints.texts:
        raise DamagedError("; ".join(complaints.texts))


def _next(reader: Any) -> Any:
    try:
        return next(reader, None)
    except Exception as error:  # scapy's readers raise whatever a damaged file makes them raise
        raise DamagedError(f"{error}") from None


class _Complaints(logging.Handler):
    """Collects scapy's warnings: it reads on over damage, or takes it for the end of the file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < _MAX_COMPLAINTS:
            self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        _SCAPY_LOG.handlers = [self]
        _SCAPY_LOG.setLevel(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        _SCAPY_LOG.setLevel(logging.CRITICAL)


def _datagram(packet: Any) -> Datagram | None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    udp = packet.getlayer(UDP)
    ip = udp and udp.underlayer
    while ip is not None and not isinstance(ip, IP | IPv6):
        ip = ip.underlayer  # an IPv6 extension header
    if ip is None or udp.len is None:
        return None
    octets = udp.original[: udp.len]
    cut = ""
    if len(octets) < udp.len:
        cut = f" ({len(octets)} of the datagram's {udp.len} octets are here: a first fragment, or cut by the capture)"
    left, right = ("[", "]") if isinstance(ip, IPv6) else ("", "")
    source = f"{left}{ip.src}{right}:{udp.sport}"
    destination = f"{left}{ip.dst}{right}:{udp.dport}"
    return Datagram(int(packet.time * 10**9), source, destination, udp.dport, octets[8:], cut)


def _scapy() -> Any:
    """The scapy package, without the directories it makes and the advice it prints when it is imported."""
    _SCAPY_LOG.setLevel(logging.CRITICAL)
    # No directory can be made below /dev/null, so nothing is written to the user's home.
    os.environ |= dict.fromkeys(("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), os.devnull)
    try:
        import scapy
        import scapy.error
        import scapy.layers.inet6
        import scapy.layers.l2
        import scapy.utils
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scapy":
            raise
        raise exits.Failure(
            exits.NOT_PERMITTED, "reading captures needs scapy: apt-get install mvps-probe, or pip install mvps[probe]"
        ) from None
    return scapy
