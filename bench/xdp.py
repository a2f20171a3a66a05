# SPDX-License-Identifier: Apache-2.0
"""What the limiter costs per packet, beside an empty XDP program and beside a naive token bucket, all in one run.

Method: BPF_PROG_TEST_RUN with a repeat count; the kernel runs the program on one frame so many times in a row on one
CPU. Its own figure comes in whole ns, too coarse beside an empty program's 6; so the time of a call with few runs is
taken from that of one with many, and what remains is divided by the difference of runs. The kernel's loop is in every
party's figure. Parties take turns, round by round; the median of the rounds counts, and the kernel's whole ns stand
beside it. Caches are warm and the frame is always the same: these are figures of instructions more than of memory; the
plan is as full of prefixes and proven flows as a large site's. The clock goes on as in life, which matters to no party:
budgets are either far too large or empty.

drop: a SYN, an unknown segment, a fragment and an IPv6 segment behind VLAN tags, from listed and unlisted sources, with
the budget empty. pass: a segment of a proven flow, charged to its own budget and its prefix's total. The token bucket
drops in its shortest way, one IPv4 source over its rate.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import random
import statistics
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.harness import ROOT, WORK, Result, need_root
from mvps.limiter import layout
from mvps.limiter.attach import load, program_fd
from mvps.limiter.plan import Plan, Price, Shard
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfObject

SUMMARY = "the limiter's ns per packet beside an empty XDP program and a naive token bucket"
DROP_BAR, PASS_BAR = 6.0, 8.0
PORT = 7447
_FLAGS = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", "-D__TARGET_ARCH_x86", "-Ibpf"]
_EMPTY = Price(10**12, 0, 0)
_AMPLE = Price(1, 0, 10**15)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=0, help="of every party (default 5, with --full 21)")
    parser.add_argument("--prefixes", type=int, default=10_000, help="in the plan, one address each")


def _peers() -> BpfObject:
    target = WORK / "xdp_peers.bpf.o"
    subprocess.run(["clang", *_FLAGS, "-c", "bench/bpf/xdp_peers.bpf.c", "-o", str(target)], cwd=ROOT, check=True)
    peers = BpfObject(Path(target))
    peers.load()
    return peers


def _plan(addresses: list[Any], handshake: Price) -> Plan:
    networks = [None, *(ipaddress.ip_network(address) for address in addresses)]
    shards = tuple(Shard(network, 1, handshake, _AMPLE) for network in networks)
    return Plan(PORT, _AMPLE, _AMPLE, shards, 3600 * 10**9, 0)


def _ip4(source: Any, payload: bytes, fragment: int = 0) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, fragment, 64, 6, 0, source.packed, b"\n\0\0\1")
    return bytes(12) + b"\x08\x00" + header + payload


def _ip6(source: Any, payload: bytes) -> bytes:
    header = struct.pack(">IHBB16s16s", 6 << 28, len(payload), 6, 64, source.packed, bytes(16))
    return bytes(12) + b"\x88\xa8\0\7\x81\0\0\7\x86\xdd" + header + payload


def _tcp(flags: int, source_port: int = 40_000) -> bytes:
    return struct.pack(">HHIIBBHHH", source_port, PORT, 1, 1, 0x50, flags, 1024, 0, 0)


def run(given: argparse.Namespace) -> Result:
    need_root()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rounds = given.rounds or (21 if given.full else 5)
    few, many = 1_000_000, 11_000_000
    chance = random.Random(1)
    half = max(1, given.prefixes // 2)
    hosts4 = [ipaddress.IPv4Address(0x0A000000 + n) for n in chance.sample(range(1 << 24), half)]
    hosts6 = [ipaddress.IPv6Address((0x20010DB8 << 96) + n) for n in chance.sample(range(1 << 62), half)]
    listed, listed6 = hosts4[half // 2], hosts6[half // 2]
    unlisted = ipaddress.IPv4Address("203.0.113.9")
    syn, ack = _tcp(0x02), _tcp(0x10)

    with _peers() as peers, load(_plan([*hosts4, *hosts6], _EMPTY)) as limiter:
        with limiter.map("flows") as flows:
            most = flows.entries
            for host in (*hosts4, *hosts6)[:most]:
                flows.put(layout.flow_key(host, 5555), layout.new_flow(1))
        fds, fd = peers.program_fds(), program_fd(limiter)
        drop, passed = 1, 2
        parties: dict[str, tuple[int, bytes, int]] = {
            "empty_drop": (fds["empty_drop"], _ip4(listed, syn), drop),
            "empty_pass": (fds["empty_pass"], _ip4(listed, syn), passed),
            "token_bucket_drop": (fds["token_bucket"], _ip4(listed, syn), drop),
            "other_port": (fd, _ip4(listed, struct.pack(">HH", 1, 80) + bytes(16)), passed),
            "proven_pass": (fd, _ip4(listed, _tcp(0x10, 5555)), passed),
            "proven_pass_ipv6_vlan": (fd, _ip6(listed6, _tcp(0x10, 5555)), passed),
            "drop_syn": (fd, _ip4(listed, syn), drop),
            "drop_segment": (fd, _ip4(listed, ack), drop),
            "drop_fragment": (fd, _ip4(listed, bytes(20), 100), drop),
            "drop_segment_unlisted": (fd, _ip4(unlisted, ack), drop),
            "drop_segment_ipv6_vlan": (fd, _ip6(listed6, ack), drop),
        }
        times: dict[str, list[float]] = {name: [] for name in parties}
        whole: dict[str, list[int]] = {name: [] for name in parties}
        libbpf.run_packet(*parties["token_bucket_drop"][:2], 2000)  # its first burst
        for _ in range(rounds):
            for name, (program, frame, expected) in parties.items():
                begun = time.perf_counter_ns()
                libbpf.run_packet(program, frame, few)
                between = time.perf_counter_ns()
                action, whole_ns = libbpf.run_packet(program, frame, many)
                ns = (time.perf_counter_ns() - between - (between - begun)) / (many - few)
                if action != expected:
                    raise SystemExit(f"bench: {name} ended with verdict {action}, expected {expected}")
                times[name].append(ns)
                whole[name].append(whole_ns)
        info = libbpf.program_info(fd)
        size = {"instructions_verified": int(info.verified_insns), "jited_bytes": int(info.jited_prog_len)}
    median = {name: round(statistics.median(seen), 1) for name, seen in times.items()}
    drops = {name: ns for name, ns in median.items() if name.startswith("drop")}
    worst_drop, worst_pass = max(drops.values()), max(median["proven_pass"], median["proven_pass_ipv6_vlan"])
    ratios = {
        "drop_to_empty": round(worst_drop / median["empty_drop"], 2),
        "drop_to_token_bucket": round(worst_drop / median["token_bucket_drop"], 2),
        "pass_to_empty": round(worst_pass / median["empty_pass"], 2),
    }
    bars = {"drop_to_empty": DROP_BAR, "drop_to_token_bucket": 1.0, "pass_to_empty": PASS_BAR}
    closest = max(bars, key=lambda name: ratios[name] / bars[name])
    details = {
        "conditions": f"{2 * half} prefixes, {min(2 * half, most)} proven flows, one CPU, "
        f"{rounds} rounds of {many - few} runs",
        "ns": {
            name: {
                "median": median[name],
                "least": round(min(seen), 1),
                "most": round(max(seen), 1),
                "kernel": statistics.median(whole[name]),
            }
            for name, seen in times.items()
        },
        "ratios": ratios,
        "bars": bars,
        **size,
    }
    print(
        f"drop {worst_drop:.1f} ns at most, proven pass {worst_pass:.1f}; empty {median['empty_drop']:.1f}, "
        f"token bucket {median['token_bucket_drop']:.1f}"
    )
    holds = all(ratios[name] <= bar for name, bar in bars.items())
    return Result(ratios[closest], closest, bars[closest], holds, details)
