# SPDX-License-Identifier: Apache-2.0
"""Snapshots as an agent would send them, for the tests of this folder and of tests/stream."""

from __future__ import annotations

import atexit
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mvps.broker.bundle import Observed
from mvps.broker.settings import BrokerSettings
from mvps.broker.store import Parcel, Row
from mvps.trust.epochs import Epochs
from mvps.trust.evidence_log import leaf_of
from mvps.trust.gate import Run
from mvps.trust.keys import SecretKey, load_key
from mvps.trust.limits import NONCE_BYTES
from mvps.trust.manifest import Profile
from mvps.trust.merkle import leaf_hash
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer, Verifier, parse_header
from mvps.trust.solo import Site, make_site
from mvps.v1 import snapshot_pb2 as pb
from mvps.v1 import stream_pb2

SECOND = 10**9


def now_tick() -> int:
    """Tick of a 1 s lattice."""
    return time.time_ns() // SECOND


def snapshot(vantage_id: str = "host-1", tick: int | None = None) -> pb.Snapshot:
    """A valid snapshot of one surface with two vantages."""
    tick = now_tick() if tick is None else tick
    surface = pb.Surface(
        name="kernel",
        vector=pb.CoherenceVector(c1=1.0, c2=0.97, c3=0.9, c2_plain=0.98, hamiltonian=0.13, s=1.2, farthest="mm"),
        decision=pb.Decision(
            phase=pb.PHASE_BAU,
            raw_phase=pb.PHASE_BAU,
            posterior=[0.9, 0.07, 0.02, 0.01],
            d2=1.5,
            phi_d=0.78,
            p_value=0.6,
            dof=3,
            cutoffs=pb.Cutoffs(watch=7.8, alarm=11.3, critical=float("inf"), mode="empirical"),
            baseline_id="0123456789abcdef",
            axis_contributions=[pb.Contribution(name="c2", value=1.5)],
        ),
        observations=[
            pb.ObservationSummary(
                vantage=name,
                events=100,
                checked=3,
                violated=1,
                distribution=struct.pack("<4f", 0.9, 0.05, 0.05, 0.0),
                own_distance=0.4,
                objects=pb.ObjectSketch(hashes=[1, 2, 3], total=7),
            )
            for name in ("mm", "blk")
        ],
        missing=["irq"],
        calibrated_ticks=300,
        needed_ticks=300,
    )
    return pb.Snapshot(
        schema_version=1,
        vantage_id=vantage_id,
        tick=tick,
        tick_time_ns=tick * SECOND,
        tick_period_ns=SECOND,
        agent_version="0.1.0",
        surfaces=[surface],
        losses=pb.LossTotals(by_cause={"blk.objects_full": 3}),
    )


class Seen(NamedTuple):
    """One observation as the fleet's decision reads it."""

    name: str
    own_distance: float = 0.0
    events: float = 100.0
    checked: float = 0.0
    violated: float = 0.0
    unchanged: int = 0
    law: tuple[float, ...] = ()


def packed(*seen: Seen, period_ns: int = SECOND) -> Observed:
    """As native/gate.c packs them; test_gate.py in tests/trust holds it to it."""
    rows = [(o.own_distance, o.events, o.checked, o.violated, float(o.unchanged), float(len(o.law))) for o in seen]
    laws = [struct.pack(f"<{len(one.law)}f", *one.law) for one in seen]
    names = "\n".join(one.name for one in seen).encode()
    return Observed(names, b"".join(struct.pack("<6d", *row) for row in rows), b"".join(laws), period_ns)


@dataclass
class Counting:
    """A counter source that a test can set."""

    value: int = 1 << 32

    def __call__(self, lane: Lane) -> int:
        self.value += 1
        return self.value - 1


class Host:
    """One vantage with its key, under the first epoch of its site."""

    def __init__(self, site: Site, vantage_id: str = "host-1", key: SecretKey | None = None) -> None:
        self.site = site
        self.vantage_id = vantage_id
        self.key = key or load_key(str(site.host_keys[vantage_id]))
        self.epochs = Epochs.of_agent([self.key], vantage_id)
        self.epochs.add(site.manifest)
        self.epoch_id = site.manifest.epoch_id
        self.counter = Counting()

    def seal(
        self,
        body: bytes | pb.Snapshot | None = None,
        *,
        tick: int | None = None,
        lane: Lane = Lane.LIVE,
        purpose: Purpose = Purpose.SNAPSHOT,
        clock: Callable[[], int] = time.time_ns,
    ) -> Sealed:
        tick = now_tick() if tick is None else tick
        if body is None:
            body = snapshot(self.vantage_id, tick)
        content = body if isinstance(body, bytes) else body.SerializeToString()
        key = self.epochs.sealing_key(self.vantage_id, self.epoch_id, purpose)
        sealer = Sealer(key, self.vantage_id, purpose, self.counter, epoch_id=self.epoch_id, clock=clock)
        return sealer.seal(content, tick, lane)

    def acks(self) -> Verifier:
        return Verifier(self.epochs, Purpose.CONTROL)


def row(host: Host, *, reason: RejectReason | None = None, received_ns: int = 0, body: bytes | None = None) -> Row:
    sealed = host.seal(body)
    header = parse_header(sealed.header)
    received = received_ns or time.time_ns()
    return Row(
        host.vantage_id,
        header.epoch_id,
        header.lane,
        header.counter,
        header.tick,
        received,
        reason,
        False,
        sealed,
        None,
        sealed.digest,
    )


def parcel(*rows: Row) -> Parcel:
    """One message that brings these rows; native/gate.c packs it so, and test_gate.py in tests/trust holds it to it."""
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for each in rows:
        groups.setdefault((each.vantage_id, each.epoch_id, each.lane), []).append(each)
    runs: list[Run] = []
    leaves: list[bytes] = []
    for key, group in groups.items():
        good = [leaf_of(each.sealed) for each in group if each.reason is None]
        entries = [
            struct.pack("<QQIB3x", r.counter, r.tick, 0 if r.reason else r.sealed.size, r.reason or 0) for r in group
        ]
        entries += [each.digest for each in group if each.reason]
        place = (len(leaves), sum(map(len, leaves)))
        counters = [each.counter for each in group]
        runs.append(
            Run(
                *key,
                items=len(group),
                accepted=len(good),
                refusals=[each.reason for each in group if each.reason],
                highest=max(counters),
                last=counters[-1],
                entries=b"".join(entries),
                leaf=place[0],
                offset=place[1],
                newest=-1,
                first_tick=0,
                first_period_ns=0,
                tick=0,
                period_ns=0,
                missed=0,
                d2=-1.0,
                sealed_ns=max((parse_header(r.sealed.header).time_ns for r in group if r.reason is None), default=0),
            )
        )
        leaves += good
    return Parcel(runs, b"".join(leaves), b"".join(map(leaf_hash, leaves)), rows[0].received_ns if rows else 0)


NONCE = bytes(range(NONCE_BYTES))


def message(*items: Sealed, nonce: bytes = NONCE) -> bytes:
    """A message of a stream."""
    sealed = [stream_pb2.SealedSnapshot(header=h, body=b, tag=t) for h, b, t in items]
    return stream_pb2.Batch(stream_nonce=nonce, items=sealed).SerializeToString()


def new_site(folder: Path | None = None, *names: str, profile: Profile = Profile.CWT) -> Site:
    """A site whose only epoch began two days ago."""
    folder = folder or Path(tempfile.mkdtemp(prefix="mvps-site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    begun = int(time.time()) - 2 * 86400
    return make_site(folder, names or ("host-1", "host-2"), from_s=begun, valid_s=3 * 86400, profile=profile)


def broker_epochs(site: Site) -> Epochs:
    """The epochs as the site's broker sees them."""
    epochs = Epochs.of_broker([load_key(str(site.broker_key))])
    epochs.add(site.manifest)
    return epochs


def new_host(vantage_id: str = "host-1") -> Host:
    return Host(new_site(None, vantage_id), vantage_id)


_SITES: dict[Path, Site] = {}


def settings(folder: Path, **changes: object) -> tuple[BrokerSettings, Site]:
    """Settings of a broker on a free loopback port, and its site: the same one for the same folder."""
    site = _SITES.get(folder) or _SITES.setdefault(folder, new_site(folder / "site"))
    values: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "database": folder / "broker.db",
        "key": str(site.broker_key),
        "operator": site.operator,
        "manifests": site.manifests,
        "metrics": "",
    }
    return BrokerSettings.model_validate(values | changes), site
