# SPDX-License-Identifier: Apache-2.0
"""``mvps capture`` as a user runs it, on captures that scapy wrote."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

inet = pytest.importorskip("scapy.layers.inet", reason="needs the extra: pip install mvps[probe]")
inet6 = pytest.importorskip("scapy.layers.inet6")

from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402
from scapy.utils import wrpcap, wrpcapng  # noqa: E402

from mvps.cli import capture, exits  # noqa: E402
from mvps.interop.codec import Bundle, BundleHeader, Coherence, Envelope  # noqa: E402

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IP = inet.IP(src="203.0.113.10", dst="203.0.113.20")
IP6 = inet6.IPv6(src="2001:db8::10", dst="2001:db8::20")
COHERENCE = Coherence(17, -120, 0.5, 0.25, 1.0)
BUNDLE = Bundle(
    BundleHeader(7, 9, 494450, 4, 1, 3.25),
    tuple(bytes([i]) * 32 for i in range(4)),
    Envelope(494450, b"OP\n\x1b[31m\x7fx".ljust(16, b"\0"), bytes(range(32)), bytes(200)),
)
FOLDERS = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
BFD_PACKET = bytes.fromhex("20c00318deadbeef211268090000001f0000007f000000ff")


def frame(payload: bytes, port: int, ip: Any = IP, time: float = 1779728180.5) -> Any:
    packet = ETHER / ip / inet.UDP(sport=49152, dport=port) / payload
    packet.time = time
    return packet


def run(path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvps.cli.main", "capture", str(path), *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def written(path: Path, frames: Sequence[Any]) -> Path:
    wrpcap(str(path), frames)
    return path


def test_one_line_a_message(tmp_path: Path) -> None:
    frames = [frame(COHERENCE.encode(), 3784), frame(BFD_PACKET, 3784), frame(BUNDLE.encode(), 45878), ETHER / b"other"]
    done = run(written(tmp_path / "seen.pcap", frames))
    assert done.returncode == exits.OK
    cohe, mbnd = done.stdout.splitlines()
    assert cohe.startswith(
        "1779728180.500000000 203.0.113.10:49152 > 203.0.113.20:3784 COHE "
        "tick=17 phase_residual_ns=-120 c1=0.5 c2=0.25 c3=1 bfd=32B tag=000000000000000000000000 unknown: "
    )
    assert "octets the HMAC covers" in cohe
    assert " > 203.0.113.20:45878 MBND bundle_id=7 tick=9 epoch_id=494450 vantages=4 adversaries=1 d2=3.25 " in mbnd
    assert r"operator_id='OP\n\x1b[31m\x7fx\x00" in mbnd  # what a stranger wrote cannot reach the terminal
    assert f"manifest_root={bytes(range(32)).hex()} records=4x32B rest=200B unknown: " in mbnd
    assert "contents of the vantage records" in mbnd
    assert done.stderr == "1 COHE, 1 MBND, 0 unreadable, 2 other\n"


def test_json_carries_every_octet(tmp_path: Path) -> None:
    frames = [frame(COHERENCE.encode(), 3784), frame(BUNDLE.encode(), 45878)]
    cohe, mbnd = map(json.loads, run(written(tmp_path / "seen.pcap", frames), "--json").stdout.splitlines())
    assert cohe["time_ns"] == 1779728180_500000000
    assert (cohe["source"], cohe["destination"], cohe["kind"]) == ("203.0.113.10:49152", "203.0.113.20:3784", "COHE")
    axes = (cohe["c1"], cohe["c2"], cohe["c3"])
    octets = bytes.fromhex(cohe["bfd"]), bytes.fromhex(cohe["tag"])
    assert Coherence(cohe["tick"], cohe["phase_residual_ns"], *axes, *octets) == COHERENCE
    numbers = [mbnd[name] for name in ("bundle_id", "tick", "epoch_id", "vantages", "adversaries", "d2")]
    envelope = Envelope(
        mbnd["epoch_id"],
        mbnd["operator_id"].encode(),
        bytes.fromhex(mbnd["manifest_root"]),
        bytes.fromhex(mbnd["rest"]),
    )
    assert Bundle(BundleHeader(*numbers), tuple(map(bytes.fromhex, mbnd["records"])), envelope) == BUNDLE
    assert mbnd["doubts"] == []
    assert "unit of epoch_id" in mbnd["unknown"]


def test_ipv6_vlans_and_pcapng(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    tagged = ETHER / Dot1Q(vlan=7) / IP / inet.UDP(sport=1, dport=3784) / COHERENCE.encode()
    extended = frame(COHERENCE.encode(), 3784, IP6 / inet6.IPv6ExtHdrDestOpt())
    wrpcapng(str(path), [frame(COHERENCE.encode(), 3784, IP6), tagged, extended])
    first, second, third = run(path).stdout.splitlines()
    assert "[2001:db8::10]:49152 > [2001:db8::20]:3784 COHE" in first
    assert "203.0.113.10:1 > 203.0.113.20:3784 COHE" in second
    assert "[2001:db8::10]:49152 > [2001:db8::20]:3784 COHE" in third


def test_octets_behind_the_datagram_are_not_part_of_it(tmp_path: Path) -> None:
    short = Bundle(BundleHeader(1, 1, 1, 0, 0, 0.0), (), Envelope(1, bytes(16), bytes(32)))
    behind_ip = Ether(bytes(frame(short.encode(), 45878)) + b"padding")
    behind_udp = ETHER / IP / inet.UDP(sport=1, dport=45878, len=8 + len(short.encode())) / (short.encode() + b"more")
    done = run(written(tmp_path / "seen.pcap", [behind_ip, behind_udp]), "--json")
    for seen in map(json.loads, done.stdout.splitlines()):
        assert seen["rest"] == ""
        assert seen["doubts"] == [
            "a bundle of 0 vantages, and 2 are needed",
            "f = 0 is not below half of 0 vantages",
        ]
    assert "0 COHE, 2 MBND" in done.stderr


def test_messages_that_cannot_be_read_have_a_line_with_the_reason(tmp_path: Path) -> None:
    contradiction = BUNDLE.encode().replace(b"CWTL", b"CWTX")
    whole = frame(BUNDLE.encode(), 45878)
    cut = Ether(bytes(whole)[:150])
    (first, *_) = inet.fragment(whole, fragsize=120)
    done = run(written(tmp_path / "seen.pcap", [frame(contradiction, 45878), cut, first]))
    assert done.returncode == exits.FOUND
    lines = done.stdout.splitlines()
    assert "unreadable: where the CWTL envelope must begin stands b'CWTX'" in lines[0]
    assert "(116 of the datagram's 432 octets are here: a first fragment, or cut by the capture)" in lines[1]
    assert "(120 of the datagram's 432 octets are here: a first fragment, or cut by the capture)" in lines[2]
    assert done.stderr == "0 COHE, 0 MBND, 3 unreadable, 0 other\n"


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = written(tmp_path / "seen.pcap", [frame(COHERENCE.encode(), 3784)] * 3)
    path.write_bytes(path.read_bytes()[:-5])
    done = run(path)
    assert done.returncode == exits.FOUND
    assert len(done.stdout.splitlines()) == 3
    assert "unreadable" in done.stdout.splitlines()[2]
    assert "2 COHE, 0 MBND, 1 unreadable, 0 other\n" in done.stderr
    assert f"{path} is damaged: Pcap: packet has been truncated" in done.stderr


def test_damage_that_scapy_raises_over_is_damage_too(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    wrpcapng(str(path), [frame(COHERENCE.encode(), 3784)])
    # A second section that announces 72 octets of options and has none.
    path.write_bytes(path.read_bytes() + struct.pack("<IIIHHq", 0x0A0D0D0A, 100, 0x1A2B3C4D, 1, 0, -1))
    done = run(path)
    assert done.returncode == exits.FOUND
    assert len(done.stdout.splitlines()) == 1
    assert "is damaged: PcapNg: Invalid Section Header Block" in done.stderr


def test_files_that_are_no_captures(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capture, just text, but long enough for a header")
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(bytes.fromhex("d4c3b2a10200"))
    for name in ("text", "empty", "short"):
        done = run(tmp_path / name)
        assert done.returncode == exits.USAGE, name
        assert "is no capture file" in done.stderr
    assert run(tmp_path / "none").returncode == exits.USAGE
    assert run(tmp_path).returncode == exits.USAGE
    packed = tmp_path / "seen.pcap.gz"
    packed.write_bytes(gzip.compress(written(tmp_path / "seen.pcap", [frame(b"", 3784)]).read_bytes()))
    assert "gunzip it first" in run(packed).stderr


def test_without_scapy_it_says_how_to_get_it(tmp_path: Path) -> None:
    path = written(tmp_path / "seen.pcap", [frame(COHERENCE.encode(), 3784)])
    (tmp_path / "scapy.py").write_text("raise ModuleNotFoundError('no scapy here', name='scapy')\n")
    done = run(path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == exits.NOT_PERMITTED
    assert "pip install mvps[probe]" in done.stderr


def test_it_leaves_nothing_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = written(tmp_path / "seen.pcap", [frame(COHERENCE.encode(), 3784)])
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    assert run(path, HOME=str(home)).returncode == exits.OK
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("suffix", ["pcap", "pcapng"])
def test_no_damage_is_an_internal_error(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    for name in FOLDERS:
        monkeypatch.setenv(name, os.devnull)  # it sets them for the process: have them set back
    path = tmp_path / f"seen.{suffix}"
    frames = [frame(COHERENCE.encode(), 3784), frame(BUNDLE.encode(), 45878), frame(BFD_PACKET, 3784, IP6)]
    (wrpcap if suffix == "pcap" else wrpcapng)(str(path), frames)
    whole = path.read_bytes()
    chance = random.Random(5)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        path.write_bytes(damaged[: chance.randint(len(damaged) // 2, len(damaged))])
        try:
            code = capture.run(argparse.Namespace(file=path, json=False))
        except exits.Failure as failure:
            code = failure.code
        assert code in (exits.OK, exits.FOUND, exits.USAGE)
    capsys.readouterr()
