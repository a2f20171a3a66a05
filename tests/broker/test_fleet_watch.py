# SPDX-License-Identifier: Apache-2.0
"""The fleet's decision, live: from closed bundles to who is named, and over real gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.waiting import comes_true, until
from wire_samples import Host, Seen, packed, settings, snapshot

from mvps.broker import fleet_baselines
from mvps.broker.bundle import NO_FIGURES, Bundle, Report, Status
from mvps.broker.fleet_watch import EVIDENCE_S, FleetWatch, KindView
from mvps.broker.process import EmbeddedBroker
from mvps.cli import exits
from mvps.cli.main import main
from mvps.coherence.phase import Phase
from mvps.robust.disagreement import IN_A_ROW
from mvps.robust.fleet import LEAST_TICKS, Evidence, Label
from mvps.stream.client import StreamClient
from mvps.trust.checkpoint import Distances, parse_checkpoint
from mvps.trust.solo import make_site

SECOND = 10**9
PERIOD_NS = 50_000_000
HOSTS = [f"host-{number:02}" for number in range(16)]
KINDS = ("blk", "mm")
FAULT = 40.0


@asynccontextmanager
async def running(watch: FleetWatch) -> AsyncIterator[FleetWatch]:
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Site:
    """Hosts whose own distances are drawn; ``add`` raises (host, kind) of one tick, ``fails`` fails a check of it.

    liars show a distribution that nobody else does, and mute hosts show none.
    """

    def __init__(self, watch: FleetWatch, cells: int = 1, f: int = 2) -> None:
        self.watch = watch
        self.cells = [f"cell-{number}" for number in range(cells)]
        self.tick = 0
        self._draw = np.random.default_rng(7)
        self._shown = np.random.default_rng(8)
        watch.admit([self.cells[number % cells] for number in range(len(HOSTS))], HOSTS, f)

    def bundles(
        self,
        add: dict[tuple[str, str], float] | None = None,
        silent: tuple[str, ...] = (),
        fails: tuple[tuple[str, str], ...] = (),
        liars: tuple[str, ...] = (),
        mute: tuple[str, ...] = (),
    ) -> list[Bundle]:
        self.tick += 1
        z = self._draw.standard_normal((len(HOSTS), len(KINDS)))
        shown = self._shown.multinomial(64, (0.9, 0.07, 0.03, 0.0), (len(HOSTS), len(KINDS))) / 64
        made = []
        for cell, name in enumerate(self.cells):
            members = HOSTS[cell :: len(self.cells)]
            reports = []
            for host in members:
                if host in silent:
                    continue
                row = dict(zip(KINDS, z[HOSTS.index(host)].tolist(), strict=True))
                for (who, kind), more in (add or {}).items():
                    row[kind] += more * (who == host)
                laws = shown[HOSTS.index(host)] if host not in liars else np.tile([0.0, 0.0, 0.0, 1.0], (len(KINDS), 1))
                seen = [
                    Seen(
                        kind,
                        far,
                        checked=2.0,
                        violated=float((host, kind) in fails),
                        law=() if host in mute else tuple(law.tolist()),
                    )
                    for (kind, far), law in zip(row.items(), laws, strict=True)
                ]
                figures = NO_FIGURES._replace(observed=packed(*seen))
                reports.append(Report(host, self.tick * SECOND, Status.REPORTED, self.tick * SECOND, 0, figures))
            missing = tuple(host for host in members if host in silent)
            made.append(Bundle(name, self.tick * SECOND, SECOND, self.tick * SECOND, tuple(reports), missing))
        return made

    async def pass_ticks(self, count: int, add: dict[tuple[str, str], float] | None = None, **more: object) -> None:
        """So many ticks, each decided before the next."""
        for _ in range(count):
            before = self.watch.counts["decided"]
            for bundle in self.bundles(add, **more):  # type: ignore[arg-type]
                self.watch.take(bundle)
            self.watch.passed((self.tick + 1) * SECOND)
            await comes_true(lambda before=before: self.watch.counts["decided"] == before + 1)  # type: ignore[misc]

    def kind(self, name: str) -> KindView:
        return next(kind for kind in self.watch.view.kinds if kind.kind == name)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running(FleetWatch(calibration_ticks=120)) as watch:
        yield Site(watch)


async def test_it_calibrates_and_an_honest_fault_is_a_local_one(site: Site) -> None:
    await site.pass_ticks(119)
    assert site.kind("mm").phase is Phase.CALIBRATING
    assert site.kind("mm").calibrated_ticks == 119
    await site.pass_ticks(1)
    assert site.kind("mm").phase is Phase.BAU
    await site.pass_ticks(5, {("host-03", "mm"): FAULT})
    found = site.kind("mm")
    assert found.decision is not None
    assert found.decision.everybody is Phase.CRITICAL
    assert found.phase < Phase.ALARM  # one host of sixteen is not the fleet
    (source,) = found.sources
    assert (source.vantage_id, source.label, source.settled) == ("host-03", Label.LOCAL_FAULT, True)
    assert site.kind("blk").sources == ()
    assert found.decision.minimax < 10 < found.decision.largest
    await site.pass_ticks(3)
    assert site.kind("mm").sources == ()


async def test_only_what_the_broker_saw_makes_a_suspect_and_it_ages(site: Site) -> None:
    await site.pass_ticks(120)
    site.watch.note("host-03", Evidence.EQUIVOCATION, (site.tick + 1) * SECOND)
    site.watch.note("host-05", Evidence.CLONE, (site.tick + 1) * SECOND)
    await site.pass_ticks(3, {("host-03", "mm"): FAULT})
    (source,) = site.kind("mm").sources
    assert (source.label, source.evidence) == (Label.SUSPECTED_BYZANTINE, Evidence.EQUIVOCATION)
    site.tick += int(EVIDENCE_S) + 10
    await site.pass_ticks(3, {("host-03", "mm"): FAULT})
    (source,) = site.kind("mm").sources
    assert source.label is Label.LOCAL_FAULT
    assert site.watch._noted == {}


async def test_a_host_whose_own_checks_keep_failing_is_a_suspect_and_only_in_that_kind(site: Site) -> None:
    await site.pass_ticks(120)
    fault = {("host-03", "mm"): FAULT, ("host-05", "blk"): FAULT}
    failing = (("host-03", "mm"), ("host-05", "mm"))
    await site.pass_ticks(IN_A_ROW - 1, fault, fails=failing)
    assert [source.label for source in site.kind("mm").sources] == [Label.LOCAL_FAULT]  # slack does as much
    await site.pass_ticks(1, fault, fails=failing)
    (source,) = site.kind("mm").sources
    assert (source.label, source.evidence) == (Label.SUSPECTED_BYZANTINE, Evidence.WITNESS)
    (other,) = site.kind("blk").sources
    assert (other.vantage_id, other.label) == ("host-05", Label.LOCAL_FAULT)
    # f is 2: three hosts whose checks fail are a check that is wrong.
    await site.pass_ticks(IN_A_ROW, fault, fails=(*failing, ("host-07", "mm")))
    assert [source.label for source in site.kind("mm").sources] == [Label.LOCAL_FAULT]
    # Two of them are set aside, and are not counted any more.
    left = [host for host in HOSTS if host not in ("host-05", "host-07")]
    site.watch.admit(site.cells * len(left), left, 2)
    await site.pass_ticks(IN_A_ROW, fault, fails=(*failing, ("host-07", "mm")))
    assert [source.label for source in site.kind("mm").sources] == [Label.SUSPECTED_BYZANTINE]


async def test_coherence_about_the_median_stands_beside_the_decision_and_forgives_f_hosts(site: Site) -> None:
    await site.pass_ticks(120)
    assert site.kind("mm").coherence is None  # it is shown beside a decision, and this tick was the last without one
    await site.pass_ticks(1)
    quiet = site.kind("mm")
    assert quiet.coherence is not None
    assert quiet.coherent == len(HOSTS)
    await site.pass_ticks(1, liars=("host-03", "host-05"))
    lied = site.kind("mm")
    assert lied.coherence is not None
    assert lied.coherence.c2_gm == pytest.approx(quiet.coherence.c2_gm, abs=0.02)
    assert lied.coherence.c2_gm_seed < quiet.coherence.c2_gm_seed - 0.1
    await site.pass_ticks(1, mute=tuple(HOSTS[:11]))
    few = site.kind("mm")
    assert few.decision is not None
    assert (few.coherent, few.decision.reporting) == (5, 16)
    await site.pass_ticks(1, mute=tuple(HOSTS[:12]))  # four are not more than 2f
    assert site.kind("mm").coherence is None
    assert site.kind("mm").decision is not None


async def test_a_restart_decides_at_once_and_another_f_does_not(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        await Site(watch).pass_ticks(119)
        assert not path.exists()
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        site = Site(watch)
        await site.pass_ticks(120)
        assert path.exists()
        before = site.kind("mm")
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        site = Site(watch)
        await site.pass_ticks(3, {("host-03", "mm"): FAULT})
        assert before.calibrated_ticks == 120
        assert site.kind("mm").calibrated_ticks == 3
        (source,) = site.kind("mm").sources
        assert (source.vantage_id, source.settled) == ("host-03", True)
        assert watch.baselines_error == ""
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        site = Site(watch, f=3)
        await site.pass_ticks(1)
        assert site.kind("mm").phase is Phase.CALIBRATING


async def test_a_kind_that_nobody_reports_any_more_is_not_kept_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        await Site(watch).pass_ticks(120)
    kept = fleet_baselines.load(path)
    assert kept is not None
    fleet_baselines.save(path, kept._replace(kinds={**kept.kinds, "gone": kept.kinds["mm"]}))
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        site = Site(watch)
        await site.pass_ticks(1)
        assert not site.kind("gone").decision.quorate  # type: ignore[union-attr]
        await site.pass_ticks(119)
    again = fleet_baselines.load(path)
    assert again is not None
    assert tuple(again.kinds) == KINDS


async def test_a_file_that_cannot_be_used_or_written_is_said_and_calibration_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    path.write_bytes(b"{broken")
    async with running(FleetWatch(calibration_ticks=120, keep=path)) as watch:
        assert "holds no fleet baselines" in watch.baselines_error
        assert watch.baselines_failures == 1
        site = Site(watch)
        await site.pass_ticks(120)
        assert (site.kind("mm").phase, watch.baselines_error) == (Phase.BAU, "")  # and the file is a good one again
        path.unlink()
        path.mkdir()
        await site.pass_ticks(120)
        assert "cannot be written" in watch.baselines_error
        assert watch.baselines_failures == 2
        assert site.kind("mm").decision is not None


async def test_a_fault_of_many_hosts_is_the_fleets(site: Site) -> None:
    await site.pass_ticks(120)
    await site.pass_ticks(4, {(host, "blk"): FAULT for host in HOSTS[:9]})
    assert site.kind("blk").phase is Phase.CRITICAL
    assert site.kind("blk").sources == ()
    # It teaches nothing while it lasts: after it is over the fleet is in BAU, and the next fault is seen again.
    await site.pass_ticks(130, {(host, "blk"): FAULT for host in HOSTS[:9]})
    assert site.kind("blk").phase is Phase.CRITICAL
    await site.pass_ticks(4)
    assert site.kind("blk").phase is Phase.BAU


async def test_without_a_quorum_there_is_no_decision(site: Site) -> None:
    await site.pass_ticks(120)
    await site.pass_ticks(1, silent=tuple(HOSTS[:12]))
    decision = site.kind("mm").decision
    assert decision is not None
    assert not decision.quorate
    assert decision.reporting == 4


async def test_cells_are_decided_together_and_in_order() -> None:
    watch = FleetWatch(calibration_ticks=10)
    site = Site(watch, cells=2)
    (first_a, first_b), (second_a, second_b), (third_a, third_b) = (site.bundles() for _ in range(3))
    order = []
    watch._decide = lambda bundles, *rest: (
        order.append(  # type: ignore[method-assign]
            (bundles[0].tick_ns // SECOND, len(bundles))
        )
        or watch.view
    )
    async with running(watch):
        for bundle in (first_a, first_b, third_a, third_b, second_b):
            watch.take(bundle)
        watch.passed(2 * SECOND)
        await comes_true(lambda: order == [(1, 2)])
        watch.passed(2 * SECOND)
        await asyncio.sleep(0.05)
        assert order == [(1, 2)]  # the second tick may still be completed
        watch.take(second_a)
        await comes_true(lambda: len(order) == 3)
        assert order == [(1, 2), (2, 2), (3, 2)]
        # A cell that closes nothing is waited for until its deadline, and so are ticks that a clock leaves out.
        watch.take(site.bundles()[0])
        site.tick += 100
        for bundle in site.bundles():
            watch.take(bundle)
        await asyncio.sleep(0.05)
        assert len(order) == 3
        watch.passed(106 * SECOND)
        await comes_true(lambda: order[3:] == [(4, 1), (105, 2)])


async def test_decisions_that_fall_behind_are_passed_over_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvps.broker.fleet_watch._MAX_WAITING", 3)
    watch = FleetWatch()
    site = Site(watch)
    for _ in range(5):
        watch.take(site.bundles()[0])
        watch.passed((site.tick + 1) * SECOND)
    assert (len(watch._closed), watch.counts["passed_over"]) == (3, 2)


async def test_a_defect_of_the_decision_is_counted_and_the_next_tick_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.pass_ticks(120)
    with monkeypatch.context() as broken:
        broken.setattr("mvps.robust.fleet.decide", lambda *_: 1 / 0)
        site.watch.take(site.bundles()[0])
        site.watch.passed((site.tick + 1) * SECOND)
        await comes_true(lambda: site.watch.counts["failed"] == 1)
    assert f"the tick of {site.tick * SECOND} could not be decided: ZeroDivisionError" in site.watch.error
    await site.pass_ticks(1)
    assert site.watch.error == ""


@pytest.mark.parametrize("values", [(0.0,), (1e308,), (-1e308,), (1e308, -1e308), (0.0, 5e-324)])
async def test_whatever_finite_numbers_hosts_say_there_is_a_decision(site: Site, values: tuple[float, ...]) -> None:
    for tick in range(1, 130):
        reports = tuple(
            Report(
                host, tick * SECOND, Status.REPORTED, 0, 0,
                NO_FIGURES._replace(observed=packed(Seen("mm", values[(tick + number) % len(values)]))),
            )
            for number, host in enumerate(HOSTS)
        )  # fmt: skip
        site.watch.take(Bundle(site.cells[0], tick * SECOND, SECOND, 0, reports))
        site.watch.passed((tick + 1) * SECOND)
        await comes_true(lambda tick=tick: site.watch.counts["decided"] == tick)  # type: ignore[misc]
    assert site.kind("mm").decision is not None
    assert site.watch.counts["failed"] == 0


async def test_who_joins_does_not_start_it_again_and_another_f_does(site: Site) -> None:
    await site.pass_ticks(120)
    site.watch.admit(site.cells * (len(HOSTS) + 1), [*HOSTS, "host-000"], 2)
    await site.pass_ticks(2, {("host-03", "mm"): FAULT})
    (source,) = site.kind("mm").sources
    assert (source.vantage_id, source.settled) == ("host-03", False)
    await site.pass_ticks(1, {("host-03", "mm"): FAULT})
    assert site.kind("mm").sources[0].settled
    site.watch.admit(site.cells * len(HOSTS), HOSTS, 1)
    await site.pass_ticks(1)
    assert site.kind("mm").phase is Phase.CALIBRATING


async def test_two_hosts_are_no_fleet() -> None:
    async with running(FleetWatch(calibration_ticks=60)) as watch:
        site = Site(watch, f=0)
        watch.admit(["", ""], HOSTS[:2], 0)
        await site.pass_ticks(70)
        assert watch.view.kinds == ()


async def test_names_that_a_liar_makes_up_take_nobodys_place(site: Site) -> None:
    invented = packed(*(Seen(kind) for kind in KINDS), *(Seen(f"a-{number}") for number in range(500)))
    (bundle,) = site.bundles()
    liars = [r._replace(figures=r.figures._replace(observed=invented)) for r in bundle.reports[:2]]
    site.watch.take(bundle._replace(reports=(*liars, *bundle.reports[2:])))
    site.watch.passed(2 * SECOND)
    await comes_true(lambda: site.watch.counts["decided"] == 1)
    assert tuple(kind.kind for kind in site.watch.view.kinds) == KINDS


async def test_names_that_hosts_make_up_have_a_limit(site: Site) -> None:
    figures = NO_FIGURES._replace(observed=packed(*(Seen(f"kind-{number}") for number in range(500))))
    reports = tuple(Report(host, SECOND, Status.REPORTED, SECOND, 0, figures) for host in HOSTS)
    site.watch.take(Bundle(site.cells[0], SECOND, SECOND, SECOND, reports))
    site.watch.passed(2 * SECOND)
    await comes_true(lambda: site.watch.counts["decided"] == 1)
    assert len(site.watch.view.kinds) == 64


def bound(broker: EmbeddedBroker) -> Distances | None:
    """What the newest checkpoint says of distances."""
    assert broker.broker is not None
    newest = broker.broker._store.evidence.checkpoints.newest
    return parse_checkpoint(newest.text).binding.d2 if newest is not None else None


def test_over_grpc_a_host_that_moves_is_named_in_status_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five hosts at 20 Hz, one of them in quarantine, from their seals to what an operator reads."""
    monkeypatch.setattr(FleetWatch.__init__, "__defaults__", (LEAST_TICKS, lambda view: None, None))
    names = [f"host-{number}" for number in range(5)]
    site = make_site(tmp_path, names, tick_ms=50)
    manifest = dataclasses.replace(site.manifest, faults=1, quarantined=("host-4",))
    site.sign(manifest)
    site = dataclasses.replace(site, manifest=manifest)
    chosen, _ = settings(
        tmp_path,
        key=str(site.broker_key),
        operator=site.operator,
        manifests=site.manifests,
        metrics="127.0.0.1:0",
        check_decisions=False,
        bundle_period_s=1,
    )
    broker = EmbeddedBroker(chosen)
    senders = [StreamClient(broker.address, name, Host(site, name).acks()) for name in names]
    hosts = [Host(site, name) for name in names]
    draw = np.random.default_rng(1)
    moved = threading.Event()
    checks_fail = threading.Event()
    ended = threading.Event()

    def send() -> None:
        tick = time.time_ns() // PERIOD_NS
        while not ended.is_set():
            tick += 1
            time.sleep(max(tick * PERIOD_NS - time.time_ns(), 0) / 1e9)
            for host, sender in zip(hosts, senders, strict=True):
                body = snapshot(host.vantage_id)
                body.tick, body.tick_period_ns, body.tick_time_ns = tick, PERIOD_NS, tick * PERIOD_NS
                for seen in body.surfaces[0].observations:
                    far = FAULT if moved.is_set() and host is hosts[3] and seen.vantage == "mm" else 0.0
                    seen.own_distance = draw.standard_normal() + far
                    seen.violated = float(checks_fail.is_set() and far > 0.0)
                sender.submit(host.seal(body, tick=tick))

    def found(line: str) -> bool:
        ended_with = main(["fleet", "--broker", broker.address])
        return ended_with == exits.FOUND and re.search(line, capsys.readouterr().out) is not None

    try:
        for sender in senders:
            sender.start()
        threading.Thread(target=send).start()
        assert broker.broker is not None
        watch = broker.broker.fleet_watch
        until(lambda: bool(watch.view.kinds) and all(kind.decision is not None for kind in watch.view.kinds))
        ended_well = main(["fleet", "--broker", broker.address])
        said = capsys.readouterr().out
        assert re.search(r"\nmm +BAU .* 1\.000 \(1\.000\) +\d of 4 +-\n", said)  # all show the same distribution
        assert ended_well == exits.OK, said
        until(lambda: bound(broker) is not None and bound(broker).of_fleet)  # type: ignore[union-attr]
        moved.set()
        # Among four hosts a tick may come between in which the noise of the others is too much for theta.
        until(lambda: found(r"! fleet mm: host-3 is the source, LOCAL_FAULT \(.*nothing else speaks against it"))
        assert main(["fleet", "decisions", "--broker", broker.address, "--kind", "mm"]) == exits.OK
        assert re.search(r"\n\S+ +mm +BAU .* of 4 +(host-3 LOCAL_FAULT|-)\n", capsys.readouterr().out)
        assert broker.broker.metrics is not None
        page = f"http://127.0.0.1:{broker.broker.metrics.port}/metrics"
        named = 'mvps_fleet_source{kind="mm",label="LOCAL_FAULT",vantage="host-3"} 1.0'
        until(lambda: named in urllib.request.urlopen(page).read().decode())
        text = urllib.request.urlopen(page).read().decode()
        assert 'mvps_fleet_phase{kind="blk",phase="BAU"} 1.0' in text
        assert 'mvps_fleet_c2_gm{form="trimmed",kind="mm"} 1.0' in text
        checks_fail.set()
        until(lambda: found(r"! fleet mm: host-3 is the source, SUSPECTED_BYZANTINE \(.*its own checks fail"))
        assert main(["fleet", "decisions", "--broker", broker.address, "--kind", "mm", "--json"]) == exits.OK
        newest = json.loads(capsys.readouterr().out)["decisions"][0]
        assert (newest["c2_gm"], newest["c2_gm_seed"]) == (1.0, pytest.approx(1.0))
    finally:
        ended.set()
        for sender in senders:
            sender.stop()
        broker.stop()
