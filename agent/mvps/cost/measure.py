# SPDX-License-Identifier: Apache-2.0
"""The constants of :mod:`mvps.cost.model`, measured on this machine in a few seconds.

All are CPU time, user and system, not waiting. The snapshots are those of a calibrated host with one surface of six
vantages. c_grpc is what a broker in a process of its own uses for a snapshot that comes alone in its message, as those
of hosts that are up to date do, less the parts that are measured apart: transport, answer, bundle, history and the
overhead of its commit, with 64 hosts sending at a time. In batches it is far less (`bench/run stream`). What cannot be
measured here is absent, with the reason.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from mvps.cost.model import Constants
from mvps.limiter.attach import LimiterError, load, program_fd
from mvps.limiter.plan import Plan, Price, Shard
from mvps.probes.libbpf import BpfError, run_packet
from mvps.trust.checkpoint import Binding, Checkpoint
from mvps.trust.epochs import Epochs
from mvps.trust.evidence_log import EvidenceLog, leaf_of
from mvps.trust.gate import check_body, open_gate
from mvps.trust.keys import Kind, SecretKey, load_key
from mvps.trust.note import ED25519, Note, NoteKey, sign_note, verified
from mvps.trust.replay import Window
from mvps.trust.seal import Purpose, Sealed, Sealer, parse_header
from mvps.trust.solo import Site, make_site
from mvps.v1 import snapshot_pb2, stream_pb2

_HOSTS: Final = 64
_BATCH: Final = 256
_BATCHES: Final = 60
_ALONE: Final = 60  # snapshots of each host, one after the other
_WARM_UP: Final = 5
_WINDOW: Final = Window(10**12, 10**12, 10**12)
_MAX_RATE: Final = 1000  # snapshots a tick: the sender is meant to be faster than a host may be
_PORT: Final = 7447
_XDP_DROP: Final = 1
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """Constants of this machine. absent: name of a constant -> why it could not be measured."""

    constants: Constants
    absent: dict[str, str] = field(default_factory=dict)


def measure(folder: Path) -> Measured:
    """Measure in an empty folder on the disk whose log is meant."""
    site = make_site(folder, [f"host-{n}" for n in range(_HOSTS)], tick_ms=100, rate_factor=_MAX_RATE)
    sealer = _Sender(site, "host-0")
    absent = dict.fromkeys(("sw2", "cka", "model_pass"), "no model is loaded here")
    hmac, parse = _admission(site, sealer)
    log = _log(folder, sealer)
    grpc = max(asyncio.run(_alone(site, folder)) - hmac - parse - log, 0.0)
    xdp = None
    try:
        xdp = _drop()
    except (LimiterError, BpfError) as error:
        absent["xdp"] = str(error)
    constants = Constants(
        hmac=hmac, parse=parse, grpc=grpc, log=log, bundle=_checkpoint(), cosign=_cosignature(), xdp=xdp
    )
    return Measured(constants, absent)


class _Sender:
    """Seals the snapshots of one host, one a tick."""

    def __init__(self, site: Site, host: str) -> None:
        epochs = Epochs.of_agent([load_key(str(site.host_keys[host]))], host)
        epochs.add(site.manifest)
        numbers, epoch_id = count(1 << 32), site.manifest.epoch_id
        key = epochs.sealing_key(host, epoch_id, Purpose.SNAPSHOT)
        self._host = host
        self._sealer = Sealer(key, host, Purpose.SNAPSHOT, lambda lane: next(numbers), epoch_id=epoch_id)
        self._tick = time.time_ns() // 10**9 - _BATCH * _BATCHES

    def seal(self) -> Sealed:
        self._tick += 1
        return self._sealer.seal(_snapshot(self._host, self._tick).SerializeToString(), self._tick)


def _snapshot(host: str, tick: int) -> snapshot_pb2.Snapshot:
    made = snapshot_pb2.Snapshot(
        schema_version=1,
        vantage_id=host,
        tick=tick,
        tick_time_ns=tick * 10**9,
        tick_period_ns=10**9,
        lateness_ns=5_000_000,
        agent_version="0.1.0",
    )
    surface = made.surfaces.add(name="kernel", calibrated_ticks=300, needed_ticks=300)
    surface.vector.c1, surface.vector.c2, surface.vector.c3, surface.vector.s = 1.0, 0.97, 0.9, 1.2
    decision = surface.decision
    decision.phase = decision.raw_phase = snapshot_pb2.PHASE_BAU
    decision.posterior.extend([0.9, 0.07, 0.02, 0.01])
    decision.d2, decision.phi_d, decision.p_value, decision.dof = 1.5, 0.78, 0.6, 3
    decision.baseline_id = "0123456789abcdef"
    for cutoffs in (decision.cutoffs, decision.s_cutoffs):
        cutoffs.watch, cutoffs.alarm, cutoffs.critical, cutoffs.mode = 7.8, 11.3, 16.3, "empirical"
    for name in ("mm", "blk", "sock", "sched", "irq", "path"):
        observation = surface.observations.add(vantage=name, events=100, checked=3, own_distance=0.4)
        observation.distribution = struct.pack("<6f", 0.9, 0.05, 0.05, 0.0, 0.0, 0.0)
        observation.objects.hashes.extend([1, 2, 3])
        observation.objects.total = 3
    return made


def _message(items: list[Sealed], nonce: bytes) -> bytes:
    batch = stream_pb2.Batch(stream_nonce=nonce)
    for header, body, tag in items:
        batch.items.add(header=header, body=body, tag=tag)
    return batch.SerializeToString()


def _admission(site: Site, sender: _Sender) -> tuple[float, float]:
    """(seal and replay, body): microseconds of CPU per snapshot in the gate."""
    epochs = Epochs.of_broker([load_key(str(site.broker_key))])
    epochs.add(site.manifest)
    gate = open_gate(epochs, _WINDOW)
    nonce = bytes(16)
    items = [[sender.seal() for _ in range(_BATCH)] for _ in range(_BATCHES)]
    messages = [_message(batch, nonce) for batch in items]
    begun = time.thread_time()
    for message in messages:
        if len(gate.judge(message, nonce, time.time_ns())) != _BATCH:
            raise RuntimeError("the gate refuses its own samples")
    judged = time.thread_time() - begun
    headers = [[parse_header(sealed.header) for sealed in batch] for batch in items]
    begun = time.thread_time()
    for batch, known in zip(items, headers, strict=True):
        for sealed, header in zip(batch, known, strict=True):
            check_body(sealed.body, header, _WINDOW)
    parsed = time.thread_time() - begun
    each = 1e6 / (_BATCH * _BATCHES)
    # Called one by one from Python the body check has the calls on top; it cannot be more than the whole.
    return max(judged - parsed, 0.0) * each, min(parsed, judged) * each


def _log(folder: Path, sender: _Sender) -> float:
    """Microseconds of CPU per leaf: Merkle tree and durable append, in batches."""
    leaves = [[leaf_of(sender.seal()) for _ in range(_BATCH)] for _ in range(20)]
    log = EvidenceLog(folder / "evidence")
    try:
        begun = time.process_time()
        for batch in leaves:
            log.append(batch)
            log.commit()
        return (time.process_time() - begun) * 1e6 / (_BATCH * len(leaves))
    finally:
        log.close()


async def _alone(site: Site, folder: Path) -> float:
    """Microseconds of a broker process's CPU per snapshot that comes alone in its message."""
    import grpc

    address = f"unix:{folder / 'broker.sock'}"
    nonce = os.urandom(16)
    with _broker(site, folder, address) as pid:
        async with grpc.aio.insecure_channel(address) as channel:
            streams: list[tuple[Any, list[bytes]]] = []
            for host in site.host_keys:
                sender = _Sender(site, host)
                call: Any = channel.stream_stream("/mvps.v1.Broker/Stream")()
                streams.append((call, [_message([sender.seal()], nonce) for _ in range(_WARM_UP + _ALONE)]))

            async def send(first: int, last: int) -> None:
                async def one(call: Any, messages: list[bytes]) -> None:
                    for message in messages[first:last]:
                        await call.write(message)
                        if await call.read() is grpc.aio.EOF:
                            raise RuntimeError(f"the broker ends its sample's stream: {await call.details()}")

                await asyncio.gather(*(one(call, messages) for call, messages in streams))

            await send(0, _WARM_UP)
            begun = _cpu_s(pid)
            await send(_WARM_UP, _WARM_UP + _ALONE)
            used = _cpu_s(pid) - begun
            for call, _ in streams:
                call.cancel()
    return used * 1e6 / (_ALONE * len(streams))


@contextmanager
def _broker(site: Site, folder: Path, address: str) -> Iterator[int]:
    command = [sys.executable, "-m", "mvps.cli.main", "broker", "--config", str(folder / "broker.toml")]
    (folder / "broker.toml").write_text(
        f'listen = "{address}"\ndatabase = "{folder / "broker.db"}"\nkey = "{site.broker_key}"\n'
        f'operator = "{site.operator}"\nmanifests = "{site.manifests}"\nmetrics = ""\nlive_window_s = 1000000\n'
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline() if process.stderr else ""
        if "listens" not in said:
            raise RuntimeError(f"no broker to measure: {said.strip()}")
        yield process.pid
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def _checkpoint(times: int = 200) -> float:
    """Microseconds of CPU for signing a bundle period's checkpoint."""
    key = SecretKey(os.urandom(32), Kind.BROKER)
    begun = time.thread_time()
    for size in range(1, times + 1):
        text = Checkpoint("broker", size, bytes(32), Binding(size, bytes(32), None).lines).text
        sign_note(text, "broker", key.sign, key.public.ed25519)
    return (time.thread_time() - begun) * 1e6 / times


def _cosignature(times: int = 200) -> float:
    """Microseconds of CPU for verifying one witness's cosignature."""
    key = SecretKey(os.urandom(32), Kind.WITNESS)
    text = Checkpoint("broker", 1, bytes(32), Binding(1, bytes(32), None).lines).text
    note = Note(text, (sign_note(text, "witness", key.sign, key.public.ed25519),))
    known = NoteKey("witness", ED25519, key.public.ed25519)
    begun = time.thread_time()
    for _ in range(times):
        if not verified(note, [known]):
            raise RuntimeError("a cosignature does not verify")
    return (time.thread_time() - begun) * 1e6 / times


def _drop(repeat: int = 1_000_000) -> float:
    """Microseconds for a packet that the limiter drops, as the kernel counts them running it on one frame again and
    again, its loop included.
    """
    ample, empty = Price(1, 0, 10**15), Price(10**12, 0, 0)
    plan = Plan(_PORT, ample, ample, (Shard(None, 1, empty, ample),), 3600 * 10**9, 0)
    address = b"\xcb\0\x71\x09"
    tcp = struct.pack(">HHIIBBHHH", 40_000, _PORT, 1, 1, 0x50, 0x10, 1024, 0, 0)
    frame = bytes(12) + b"\x08\x00"
    frame += struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, address, b"\n\0\0\1") + tcp
    with load(plan) as limiter:
        verdict, ns = run_packet(program_fd(limiter), frame, repeat)
    if verdict != _XDP_DROP:
        raise RuntimeError(f"the limiter does not drop the sample but ends with {verdict}")
    return ns / 1000
