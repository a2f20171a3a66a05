# SPDX-License-Identifier: Apache-2.0
"""What our programs cost the kernel per event, beside the bpftrace script that computes the same key.

The kernel's own run-time statistics are read for three parties on one load: our signal, the bpftrace peer, and a
program that does nothing on the same hooks. An event is one completed block request, one reclaim, one received TCP
segment. Each party is charged with *all* its programs of the signal (issue and begin hooks too), and the empty
program's cost is subtracted from both. Two arrangements: all three attached at once, in rotating order because whoever
comes first pays for the cache misses the others then do not have; and each side alone with the empty program. The bar
is held against the worse of the two.

Not in anybody's figure: what the kernel does around a program. A classic tracepoint, which is all that bpftrace has
on a kernel without kprobes, also builds a trace record per event; that is on top of the peer's figure. Nor can such a
script see a request's own block cgroup: it takes the issuing task's, which is the usual approximation. Its histograms
have one bin an octave, ours four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal as signals
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.harness import ROOT, WORK, Result, need_root
from mvps.coherence.observation import HIST_BINS
from mvps.probes.cost import cost_of, run_totals
from mvps.probes.libbpf import BpfObject, enable_stats, program_info
from mvps.provoke.faults import Host
from mvps.vantages.cells import Cells
from mvps.vantages.registry import VANTAGES

SUMMARY = "kernel ns per block, memory and TCP event, against bpftrace computing the same key"
BAR = 0.5
BACKGROUND_RATE = 400.0  # requests per second of the stated load of the last table
# Rates at which the share of a core is also stated: a busy host's.
BUSY = {"mm": 2_000, "blk": 10_000, "sock": 50_000, "sched": 50_000, "irq": 50_000, "path": 100_000}

_FILE_MIB = 64
_PORT = 5209
_TOGETHER = (("ours", "peer", "empty"), ("empty", "ours", "peer"), ("peer", "empty", "ours"))
_ALONE = (("ours", "empty"), ("peer", "empty"))


@dataclass(frozen=True)
class Compared:
    """One signal of ours and its peer.

    empty: the empty programs that stand for the signal's hooks; events: those of them whose runs are the events.
    script: the peer. It leaves ``@count``, whose sum is what it counted.
    """

    name: str
    what: str
    empty: tuple[str, ...]
    events: tuple[str, ...]
    script: str


COMPARED = (
    Compared(
        "blk",
        "block request: latency histogram, requests per cgroup",
        ("no_blk_issue", "no_blk_done"),
        ("no_blk_done",),
        """
        tracepoint:block:block_rq_issue { @start[args->dev, args->sector] = (nsecs, cgroup); }
        tracepoint:block:block_rq_complete {
            $s = @start[args->dev, args->sector];
            if ($s.0) {
                @latency = hist(nsecs - $s.0);
                @count[$s.1] = count();
                delete(@start[args->dev, args->sector]);
            }
        }
        """,
    ),
    Compared(
        "mm",
        "reclaim: stall histogram, stalls and stalled time per cgroup",
        ("no_memcg_begin", "no_memcg_end", "no_direct_begin", "no_direct_end", "no_compact_begin", "no_compact_end"),
        ("no_memcg_end", "no_direct_end", "no_compact_end"),
        """
        tracepoint:vmscan:mm_vmscan_direct_reclaim_begin,
        tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin,
        tracepoint:compaction:mm_compaction_begin { @start[tid] = nsecs; }
        tracepoint:vmscan:mm_vmscan_direct_reclaim_end,
        tracepoint:vmscan:mm_vmscan_memcg_reclaim_end,
        tracepoint:compaction:mm_compaction_end {
            $s = @start[tid];
            if ($s) {
                $ns = nsecs - $s;
                @latency = hist($ns);
                @count[cgroup] = stats($ns);
                delete(@start[tid]);
            }
        }
        """,
    ),
    Compared(
        "sock",
        "TCP segment: RTT over its floor, segments per cgroup, send queue, retransmissions, drops by reason",
        ("no_segment", "no_retransmit", "no_drop"),
        ("no_segment",),
        """
        tracepoint:tcp:tcp_probe {
            $sk = (struct sock *)args->skaddr;
            $tp = (struct tcp_sock *)args->skaddr;
            $floor = $tp->rtt_min.s[0].v;
            if ($tp->srtt_us && $floor) {
                @severity = hist($tp->srtt_us * 2 / $floor);
                @queued = sum($sk->sk_wmem_queued);
            }
            @count[$sk->sk_cgrp_data.cgroup->kn->id] = count();
        }
        tracepoint:tcp:tcp_retransmit_skb { @retransmits = count(); }
        tracepoint:skb:kfree_skb { @drops[args->reason] = count(); }
        """,
    ),
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="per measurement (default 2, with --full 5)")
    parser.add_argument("--rounds", type=int, default=0, help="of five measurements each (default 1, with --full 5)")


def _need_tools() -> None:
    packages = {"bpftrace": "bpftrace", "fio": "fio", "iperf3": "iperf3", "clang": "clang libbpf-dev"}
    missing = [package for tool, package in packages.items() if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"bench probes: apt-get install {' '.join(missing)}")


# ---- The three parties -----------------------------------------------------------------------------------


class Party(Protocol):
    """Attached programs."""

    def ids(self) -> set[int]:
        """Their ids in the kernel."""

    def counted(self) -> int | None:
        """How many events it says it has counted since it was attached; None if it does not count."""

    def close(self) -> None:
        """Detach."""


class Ours:
    """Our signal with its threshold set, as in the agent."""

    def __init__(self, name: str) -> None:
        self._cells = Cells(name)
        self._cells.set_threshold(HIST_BINS // 2)
        self._counted = 0.0

    def ids(self) -> set[int]:
        return {program_info(fd).id for fd in self._cells.program_fds().values()}

    def counted(self) -> int:
        """Reads a tick's worth, as the agent does."""
        self._counted += float(self._cells.read().histogram.sum())
        return round(self._counted)

    def close(self) -> None:
        self._cells.close()


class Empty:
    """The programs that do nothing, on this signal's hooks."""

    def __init__(self, programs: tuple[str, ...]) -> None:
        self._object = BpfObject(_empty_object())
        for name in self._object.programs():
            if name not in programs:
                self._object.skip_program(name)
        self._object.load()
        self._object.attach()

    def ids(self) -> set[int]:
        return {program_info(fd).id for fd in self._object.program_fds().values()}

    def counted(self) -> None:
        return None

    def close(self) -> None:
        self._object.close()


def _empty_object() -> Path:
    source, target = ROOT / "bench/bpf/empty.bpf.c", WORK / "empty.bpf.o"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        flags = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", f"-I{ROOT / 'bpf'}"]
        subprocess.run(["clang", *flags, "-c", str(source), "-o", str(target)], check=True)
    return target


class Peer:
    """The bpftrace script. It finds its tracepoints in a tracefs that is mounted for it alone."""

    def __init__(self, script: str) -> None:
        shell = 'mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; exec bpftrace -f json -e "$1"'
        ending = "END { clear(@start); }" if "@start" in script else ""
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", shell, "sh", script + ending],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._counted: int | None = None
        deadline = time.monotonic() + 20
        while len(self.ids()) < script.count("tracepoint:"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise SystemExit(f"bench probes: bpftrace did not attach: {self._process.communicate()[1].strip()}")
            time.sleep(0.1)

    def ids(self) -> set[int]:
        """Programs whose descriptors the process holds: exact, whoever else loads programs meanwhile."""
        found: set[int] = set()
        for entry in Path(f"/proc/{self._process.pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line[:8] == "prog_id:"}
        return found

    def counted(self) -> int:
        """Ends it, since it tells only then."""
        if self._counted is None:
            self._process.send_signal(signals.SIGINT)
            said, _ = self._process.communicate(timeout=20)
            self._counted = sum(_counts(line) for line in said.splitlines())
        return self._counted

    def close(self) -> None:
        self.counted()


def _counts(line: str) -> int:
    """Sum of ``@count`` if this line of bpftrace's JSON output is it: {"data": {"@count": {key: value}}}."""
    data = json.loads(line)["data"] if line.startswith("{") else {}
    by_key = data.get("@count", {}) if isinstance(data, dict) else {}
    return sum(value["count"] if isinstance(value, dict) else value for value in by_key.values())


# ---- Measuring -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One measurement: events, and ns per event of each party's programs."""

    events: int
    ns: Mapping[str, float]

    def net(self, party: str) -> float:
        return self.ns[party] - self.ns["empty"]


def measure(compared: Compared, order: tuple[str, ...], seconds: float) -> Measured:
    """Attach the parties in this order, under a load that is already running, and count for ``seconds``."""
    makers: dict[str, Callable[[], Party]] = {
        "ours": lambda: Ours(compared.name),
        "empty": lambda: Empty(compared.empty),
        "peer": lambda: Peer(compared.script),
    }
    with contextlib.ExitStack() as attached:
        parties = {role: attached.enter_context(contextlib.closing(makers[role]())) for role in order}
        time.sleep(0.5)  # tables are warm, bpftrace has attached what it loaded
        ids = {role: party.ids() for role, party in parties.items()}
        before = run_totals()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            if "ours" in parties:
                parties["ours"].counted()
        after = run_totals()
        events = sum(after[i].runs - before[i].runs for i in ids["empty"] if after[i].name in compared.events)
        if events < 500:
            raise SystemExit(f"bench probes: {compared.name}: only {events} events; the load did not run")
        for role, party in parties.items():
            counted = party.counted()
            if counted is not None and counted < 0.9 * events:
                raise SystemExit(f"bench probes: {compared.name}: {role} counted {counted} of {events} events")
    spent = {role: sum(after[i].ns - before[i].ns for i in ids[role]) for role in order}
    return Measured(events, {role: ns / events for role, ns in spent.items()})


@contextlib.contextmanager
def load(name: str) -> Iterator[None]:
    """The bounded load that makes this signal's events."""
    with contextlib.ExitStack() as undo:
        if name == "blk":
            file = WORK / "probes.fio"
            undo.callback(file.unlink, missing_ok=True)
            job = ["--name=probes", f"--filename={file}", f"--size={_FILE_MIB}M", "--rw=randread", "--bs=4k"]
            job += ["--direct=1", "--ioengine=libaio", "--iodepth=4", "--time_based", "--runtime=600"]
            _start(undo, ["fio", *job])
        elif name == "mm":
            host = undo.enter_context(Host(directory=WORK))
            host.prepare(network=False)
            host.start("mm")
        else:
            address = ["--port", str(_PORT)]
            _start(undo, ["iperf3", "--server", "--bind", "127.0.0.1", *address])
            time.sleep(0.5)
            _start(undo, ["iperf3", "--client", "127.0.0.1", *address, "--time", "600", "--bitrate", "2G"])
        time.sleep(2.0)
        yield


def _start(undo: contextlib.ExitStack, command: list[str]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        process.wait(10)

    undo.callback(end)


def compare(compared: Compared, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over all measurements of one signal, and the ratio the bar is held against."""
    together: list[Measured] = []
    alone: dict[str, list[Measured]] = {"ours": [], "peer": []}
    with load(compared.name):
        for _ in range(rounds):
            together += [measure(compared, order, seconds) for order in _TOGETHER]
            for order in _ALONE:
                alone[order[0]].append(measure(compared, order, seconds))
    ratios = [m.net("ours") / m.net("peer") for m in together]
    net_alone = {role: statistics.median(m.net(role) for m in of) for role, of in alone.items()}
    ratio = {"together": statistics.median(ratios), "alone": net_alone["ours"] / net_alone["peer"]}
    return {
        "key": compared.what,
        "events_per_s": round(statistics.median(m.events for m in together) / seconds),
        "ns_per_event": {
            role: round(statistics.median(m.ns[role] for m in together), 1) for role in ("ours", "peer", "empty")
        },
        "net_ns_alone": {role: round(ns, 1) for role, ns in net_alone.items()},
        "ratio": {kind: round(value, 3) for kind, value in ratio.items()},
        "ratio_range_together": [round(min(ratios), 3), round(max(ratios), 3)],
        "worst_ratio": max(ratio.values()),
    }


def shares(seconds: float) -> dict[str, Any]:
    """Share of a core of every signal under the stated service load, and at a busy host's rate of program runs.

    Nothing is subtracted here: each run's figure contains one read of the clock that measured it.
    """
    found: dict[str, Any] = {}
    with Host(background_rate=BACKGROUND_RATE, directory=WORK) as host, contextlib.ExitStack() as attached:
        host.prepare(network=True)
        time.sleep(2.0)
        parties = {name: attached.enter_context(contextlib.closing(Ours(name))) for name in VANTAGES}
        before, begun = run_totals(), time.monotonic()
        while time.monotonic() < begun + seconds:
            time.sleep(0.5)
            for party in parties.values():
                party.counted()
        after, ended = run_totals(), time.monotonic()
        for name, party in parties.items():
            runs = sum(after[i].runs - before[i].runs for i in party.ids())
            spent = sum(after[i].ns - before[i].ns for i in party.ids())
            cost = cost_of(runs, spent, ended - begun)
            found[name] = {
                "runs_per_s": round(runs / (ended - begun)),
                "ns_per_run": round(cost.ns_per_run, 1) if runs else None,
                "percent_of_core": round(cost.percent_of_core, 3),
            }
            if runs:
                busy = round(cost.ns_per_run * BUSY[name] / 1e7, 2)
                found[name][f"percent_of_core_at_{BUSY[name]}_runs_per_s"] = busy
    return found


def run(given: argparse.Namespace) -> Result:
    need_root()
    _need_tools()
    seconds = given.seconds or (5.0 if given.full else 2.0)
    rounds = given.rounds or (5 if given.full else 1)
    statistics_on = enable_stats()
    try:
        results: dict[str, dict[str, Any]] = {}
        for compared in COMPARED:
            results[compared.name] = one = compare(compared, rounds, seconds)
            print(f"{compared.name}: {one['key']} ({one['events_per_s']} events/s)")
            ns, alone, ratio = one["ns_per_event"], one["net_ns_alone"], one["ratio"]
            print(f"  at once: ours {ns['ours']} ns, bpftrace {ns['peer']} ns, empty {ns['empty']} ns per event")
            print(f"  alone, net of empty: ours {alone['ours']} ns, bpftrace {alone['peer']} ns")
            print(f"  ratio net of empty: at once {ratio['together']}, alone {ratio['alone']}")
        share = shares(max(5.0, 2 * seconds))
    finally:
        os.close(statistics_on)
    print(f"all signals under a service load of {BACKGROUND_RATE:g} requests/s (TCP exchange, disk read, 0.5 ms CPU):")
    for name, one in share.items():
        print(f"  V_{name}: " + ", ".join(f"{key} {value}" for key, value in one.items()))
    worst = max(one["worst_ratio"] for one in results.values())
    details = {
        "seconds_per_measurement": seconds,
        "measurements": rounds * (len(_TOGETHER) + len(_ALONE)),
        "peer": subprocess.run(["bpftrace", "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "compared": results,
        "service_load_requests_per_s": BACKGROUND_RATE,
        "shares": share,
    }
    return Result(round(worst, 3), "of the bpftrace peer's ns per event, net of empty", BAR, worst <= BAR, details)
