# SPDX-License-Identifier: Apache-2.0
"""The road from an agent to a real broker through changes of epoch, key and connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.outage import logged

from mvps.broker.process import EmbeddedBroker
from mvps.broker.settings import BrokerSettings
from mvps.daemon.identity import Identity, TrustError
from mvps.daemon.uplink import BrokerUplink
from mvps.stream import outbox
from mvps.stream.spool import Spool
from mvps.trust.counter import Counter
from mvps.trust.keys import load_key, rotate_key
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.manifest import Manifest, ManifestError, Profile, Vantage, admit, revoke, succeed
from mvps.trust.seal import Lane
from mvps.trust.solo import Site, make_site
from mvps.v1 import snapshot_pb2 as pb
from mvps.v1 import stream_pb2

NAME = "host-1"
SECOND = 10**9


class Deployment:
    """A site, its broker and one agent's uplink, all real; ticks of 50 ms."""

    def __init__(
        self, directory: Path, profile: Profile = Profile.CWT, *, spool_mib: float = 0, **changes: object
    ) -> None:
        self.directory = directory
        self.spool_mib = spool_mib
        self.site: Site = make_site(directory, [NAME], tick_ms=50, profile=profile, from_s=int(time.time()) - 60)
        (directory / "state").mkdir()
        self.settings = BrokerSettings.model_validate(
            {
                "listen": f"unix:{directory}/broker.sock",
                "database": directory / "broker.db",
                "key": str(self.site.broker_key),
                "operator": self.site.operator,
                "manifests": self.site.manifests,
                "metrics": "",
            }
            | changes
        )
        self.broker = EmbeddedBroker(self.settings)
        # The agent has the first manifest only: what follows has to come from the broker.
        self.installed = directory / "installed"
        self.installed.mkdir()
        for path in self.site.manifests.iterdir():
            (self.installed / path.name).write_bytes(path.read_bytes())
        self.identity = self.new_identity()
        self.uplink = self.new_uplink()
        self.tick = time.time_ns() // 50_000_000 - 1000

    def new_identity(self) -> Identity:
        return Identity(
            str(self.site.host_keys[NAME]),
            self.site.operator_key.public,
            self.installed,
            self.directory / "state/manifests",
            NAME,
        )

    def new_uplink(self) -> BrokerUplink:
        state = self.directory / "state"
        spool = None
        if self.spool_mib:
            spool = Spool(state / "spool", max_bytes=int(self.spool_mib * 2**20), max_age_s=86400)
        return BrokerUplink(
            self.settings.listen, NAME, self.identity, Counter(state / "counter"), 4096, spool=spool, late_rate=1000.0
        )

    def restart_agent(self) -> None:
        self.uplink.close()
        self.uplink = self.new_uplink()

    def ticks(self) -> list[int]:
        """Ticks of the leaves in the broker's log."""
        return sorted(tick for tick, _ in logged(self.settings.database))

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.tick += 1
            snapshot = pb.Snapshot(
                schema_version=1,
                vantage_id=NAME,
                tick=self.tick,
                tick_time_ns=self.tick * 50_000_000,
                tick_period_ns=50_000_000,
            )
            self.uplink.submit(snapshot.SerializeToString(), self.tick)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.uplink.state()
            time.sleep(0.01)

    def settled(self) -> bool:
        state = self.uplink.state()
        settled = state.acknowledged + state.rejected + state.dropped
        assert state.produced + state.recovered == settled + state.spooled + state.queued
        return state.queued + state.spooled == 0

    def info(self) -> stream_pb2.ServerInfo:
        assert self.broker.broker is not None
        return self.broker.broker.info()

    def restart_broker(self) -> None:
        self.broker.stop()
        self.broker = EmbeddedBroker(self.settings)

    def close(self) -> None:
        self.uplink.close()
        self.broker.stop()


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    made: list[Deployment] = []

    def deploy(**options: Any) -> Deployment:
        made.append(Deployment(tmp_path, **options))
        return made[-1]

    yield deploy
    for one in made:
        one.close()


@pytest.mark.parametrize("profile", Profile)
def test_both_profiles_are_accepted_and_answered(deploy: Deploy, profile: Profile) -> None:
    site = deploy(profile=profile)
    site.send(20)
    site.until(site.settled)
    state = site.uplink.state()
    assert (state.acknowledged, state.forged_acks, state.epoch_id, state.profile) == (20, 0, 1, profile)
    assert abs(state.clock_offset_ns) < 5 * SECOND
    assert site.info().accepted == 20


@pytest.mark.parametrize("profile", Profile)
def test_no_tick_is_lost_when_the_epoch_changes(deploy: Deploy, profile: Profile) -> None:
    """The next manifest reaches the agent through the broker, and changes the profile as well."""
    site = deploy()
    site.send()
    second = replace(succeed(site.site.manifest, int(time.time()) + 2), profile=profile)
    site.site.sign(second)
    epochs = set()
    while time.time() < second.from_s + 1:
        site.send()
        epochs.add(site.uplink.state().epoch_id)
        time.sleep(0.05)
    site.until(site.settled)
    state = site.uplink.state()
    assert epochs == {1, 2}
    assert (state.produced, state.acknowledged, state.rejected, state.dropped) == (state.produced, state.produced, 0, 0)
    assert site.uplink.losses() == {"oversize": 0, "no_epoch": 0}
    assert (site.info().epoch_id, site.info().profile) == (2, profile)
    # A restarted agent knows it without the broker.
    assert site.new_identity().epochs.manifests[-1] == second


def test_a_revocation_counts_at_once(deploy: Deploy) -> None:
    site = deploy()
    site.send()
    site.until(site.settled)
    now = int(time.time())
    spare = Vantage("spare", load_key(str(make_other(site, "spare"))).public)
    site.site.sign(revoke(admit(succeed(site.site.manifest, now + 3600), spare), NAME))  # not even in force yet
    site.until(lambda: bool(site.send()) or site.uplink.state().state == "refused")
    assert "revoked" in site.uplink.state().detail
    before = site.info().accepted
    site.send(10)
    time.sleep(0.3)
    assert site.info().accepted == before


def make_other(site: Deployment, name: str) -> Path:
    folder = site.directory / name
    folder.mkdir()
    return make_site(folder, [name]).host_keys[name]


def test_a_key_is_rotated_without_a_restart(deploy: Deploy) -> None:
    site = deploy()
    site.send()
    old, new = rotate_key(site.site.host_keys[NAME])
    site.uplink.refresh()  # SIGHUP
    site.send()
    site.until(site.settled)
    assert site.uplink.key_id == new.public.key_id.hex()
    assert site.uplink.state().acknowledged == 2  # still with the old one, which epoch 1 names
    second = admit(succeed(site.site.manifest, int(time.time()) + 1), Vantage(NAME, new.public))
    site.site.sign(second)
    site.until(lambda: bool(site.send()) or site.uplink.state().epoch_id == 2)
    site.send(10)
    site.until(site.settled)
    state = site.uplink.state()
    assert state.produced == state.acknowledged
    assert old.public.key_id != new.public.key_id


def test_a_manifest_the_operator_did_not_sign_changes_nothing(deploy: Deploy, tmp_path: Path) -> None:
    site = deploy()
    site.send()
    (tmp_path / "elsewhere").mkdir()
    stranger = make_site(tmp_path / "elsewhere", [NAME])
    forged: Manifest = replace(site.site.manifest, epoch_id=9)
    site.identity.receive([stranger.sign(forged), b"garbage"])
    assert "no manifest that counts" in site.uplink.state().manifest_error
    assert [m.epoch_id for m in site.identity.epochs.manifests] == [1]


def test_a_broker_cannot_keep_an_agent_busy_with_manifests(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    site = deploy()
    opened: list[bytes] = []

    def counting(signed: bytes, operator: object) -> Manifest:
        opened.append(signed)
        raise ManifestError("no")

    monkeypatch.setattr("mvps.daemon.identity.open_manifest", counting)
    site.identity.receive([b"x"] * 100_000)
    assert len(opened) == MAX_MANIFESTS


def test_what_is_too_old_for_the_live_lane_comes_as_backfill(deploy: Deploy) -> None:
    site = deploy(live_window_s=2.0)
    site.tick = time.time_ns() // 50_000_000 - 20
    site.broker.stop()
    site.send(5)
    time.sleep(2.5)  # past the live window
    site.tick = time.time_ns() // 50_000_000 - 5
    site.send(5)
    site.restart_broker()
    site.until(site.settled)
    state = site.uplink.state()
    assert (state.produced, state.acknowledged, state.rejected) == (10, 10, 0)
    # The later five may have become too old as well before the connection was there again.
    assert 5 <= state.backfilled <= 10
    lanes = [record.lane for record in site.uplink.records()]
    assert lanes.count(Lane.BACKFILL) == state.backfilled
    assert site.info().rejected == {"stale": state.backfilled}
    assert site.info().accepted == 10


def test_a_host_that_learns_of_an_epoch_too_late_loses_nothing(deploy: Deploy) -> None:
    """Sealed live under epoch 1 after it was retired: refused there, accepted as backfill."""
    site = deploy()
    site.broker.stop()
    second = succeed(site.site.manifest, int(time.time()), overlap_s=0)
    site.site.sign(second)
    site.until(lambda: time.time() > second.retire_s + 1)
    site.send(5)
    site.restart_broker()
    site.until(site.settled)
    site.until(lambda: site.uplink.state().epoch_id == 2)
    site.send(5)
    site.until(site.settled)
    state = site.uplink.state()
    assert (state.acknowledged, state.rejected, state.backfilled) == (10, 0, 5)
    assert site.info().rejected == {"epoch_retired": 5}


def test_an_epoch_that_is_over_is_said_and_counted(deploy: Deploy) -> None:
    site = deploy()
    second = succeed(site.site.manifest, int(time.time()), valid_s=1, overlap_s=0)
    site.identity.receive([site.site.sign(second)])
    site.until(lambda: time.time() > second.until_s)
    site.send(3)
    assert site.uplink.losses()["no_epoch"] == 3
    state = site.uplink.state()
    assert (state.state, "sign the next one" in state.detail) == ("refused", True)


def test_without_any_manifest_the_start_says_where_it_belongs(tmp_path: Path) -> None:
    site = make_site(tmp_path, [NAME])
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrustError, match=r"copy the signed \*\.manifest there"):
        Identity(str(site.host_keys[NAME]), site.operator_key.public, tmp_path / "empty", tmp_path / "state", NAME)


def test_what_a_stopped_agent_leaves_its_successor_sends(deploy: Deploy) -> None:
    site = deploy(spool_mib=4)
    site.broker.stop()
    first = site.tick + 1
    site.send(300)
    site.restart_agent()
    site.send(20)
    site.restart_agent()
    site.until(lambda: site.uplink.state().recovered == 320)
    site.broker = EmbeddedBroker(site.settings)
    site.send(5)
    site.until(site.settled)
    state = site.uplink.state()
    assert (state.produced, state.recovered, state.acknowledged, state.backfilled) == (5, 320, 325, 320)
    assert site.ticks() == list(range(first, first + 325))
    assert list((site.directory / "state/spool").glob("segment-*")) == [] or state.spool_bytes < 300_000
    site.restart_agent()
    site.send()
    site.until(site.settled)
    assert site.uplink.state().recovered == 0
    assert site.info().rejected == {}


def test_answers_that_were_lost_with_the_agent_are_learnt_again(deploy: Deploy) -> None:
    """Stored at the broker, and the agent ended before it knew: nothing is stored twice."""
    site = deploy(spool_mib=4)
    site.send(50)
    site.until(site.settled)
    # As if the agent had been killed before any answer: the records on disk say SENT again.
    records = [record for record in site.uplink.records() if record.lane == Lane.LIVE]
    assert len(records) == 50
    kept = site.directory / "kept"
    site.broker.stop()
    site.send(10)
    site.uplink.close()
    kept.mkdir()
    for path in (site.directory / "state/spool").glob("segment-*"):
        (kept / path.name).write_bytes(path.read_bytes().replace(b"DONE", b"SENT").replace(b"WAIT", b"SENT"))
        path.write_bytes((kept / path.name).read_bytes())
    site.broker = EmbeddedBroker(site.settings)
    site.uplink = site.new_uplink()
    site.until(lambda: site.uplink.state().recovered == 60)
    site.until(site.settled)
    assert len(site.ticks()) == len(set(site.ticks())) == 60
    assert site.info().duplicates == 50


def test_a_small_spool_drops_the_oldest_and_says_so(deploy: Deploy) -> None:
    site = deploy(spool_mib=0.125)
    site.broker.stop()
    site.tick -= 3000
    last = site.tick + 3000
    site.send(3000)
    site.until(lambda: site.uplink.state().queued == 0)
    left = site.uplink.state().spooled
    assert 0 < left < 1500
    site.restart_agent()
    site.until(lambda: site.uplink.state().recovered == left)
    site.restart_broker()
    site.until(site.settled)
    assert site.ticks() == list(range(last - left + 1, last + 1))


def test_the_accounts_name_what_a_small_spool_dropped(deploy: Deploy) -> None:
    site = deploy(spool_mib=0.125)
    site.broker.stop()
    site.send(3000)
    site.until(lambda: site.uplink.state().queued < 1100)  # what the live lane still has in memory
    state = site.uplink.state()
    assert state.dropped_by_cause["spool_full"] > 0
    assert state.produced == state.spooled + state.queued + state.dropped


def test_an_epoch_that_the_broker_does_not_know_waits_and_the_others_go_on(
    deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after more than MAX_MANIFESTS epochs, or a broker set up anew: nothing is dropped for an unsealed refusal."""
    monkeypatch.setattr(outbox, "FIRST_RETRY_S", 0.5)
    site = deploy(spool_mib=4)
    site.broker.stop()
    site.send(5)
    site.restart_agent()
    second = succeed(site.site.manifest, int(time.time()))
    (first,) = site.site.manifests.iterdir()
    aside = first.rename(site.directory / "first")
    signed = site.site.sign(second)
    site.until(lambda: time.time() > second.from_s)
    site.identity.receive([signed])
    site.broker = EmbeddedBroker(site.settings)
    for _ in range(100):
        site.send()
        time.sleep(0.05)
    site.until(lambda: site.uplink.state().acknowledged == 100)
    state = site.uplink.state()
    assert (state.spooled, state.dropped, state.rejected) == (5, 0, 0)
    refused = site.info().rejected
    assert set(refused) == {"unknown_epoch"}
    assert refused["unknown_epoch"] < 20
    aside.rename(first)  # the operator gives it back
    site.until(site.settled)
    assert site.uplink.state().acknowledged == 105
    assert len(site.ticks()) == len(set(site.ticks())) == 105
