# SPDX-License-Identifier: Apache-2.0
"""OpenMetrics of the broker over HTTP, made when somebody asks.

Series do not grow with the fleet: vantages are counted by what they are, and named only while something is wrong with
them (a suspected clone, a counter used twice, refusals).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from mvps.limiter import counters
from mvps.limiter.attach import LimiterError
from mvps.limiter.flows import Flows
from mvps.v1 import snapshot_pb2, stream_pb2

# Vantages that are named at a time; the alarms' totals are always whole.
_MOST_NAMED: Final = 100
# Sources of dropped packets; an attacker chooses their names.
_MOST_SOURCES: Final = 10


class BrokerCollector(Collector):
    """The broker's state as metric families.

    info, vantages: what the broker answers to ServerInfo and ListVantages. flows: of a broker behind a limiter.
    """

    def __init__(
        self,
        info: Callable[[], stream_pb2.ServerInfo],
        vantages: Callable[[], stream_pb2.ListVantagesResponse],
        flows: Flows | None = None,
    ) -> None:
        self._info = info
        self._vantages = vantages
        self._flows = flows

    def collect(self) -> Iterator[Metric]:
        """All families."""
        info = self._info()
        known = list(self._vantages().vantages)
        yield InfoMetricFamily(
            "mvps_broker",
            "Version, epoch and profile in force.",
            value={"version": info.version, "epoch": str(info.epoch_id), "profile": info.profile},
        )
        yield GaugeMetricFamily("mvps_broker_streams", "Open streams.", value=info.streams)
        yield CounterMetricFamily("mvps_broker_accepted", "Snapshots accepted.", value=info.accepted)
        yield CounterMetricFamily(
            "mvps_broker_duplicates", "Accepted snapshots that came again.", value=info.duplicates
        )
        rejected = CounterMetricFamily("mvps_broker_rejected", "Snapshots refused, by reason.", labels=["reason"])
        for reason, count in sorted(info.rejected.items()):
            rejected.add_metric([reason], count)
        yield rejected
        yield CounterMetricFamily(
            "mvps_broker_decisions_checked", "Decisions that were recomputed.", value=info.decisions_checked
        )
        yield CounterMetricFamily(
            "mvps_broker_decision_mismatches", "Recomputed decisions that differ.", value=info.decision_mismatches
        )
        yield CounterMetricFamily(
            "mvps_broker_decisions_unchecked",
            "Snapshots whose decisions nobody recomputed, for want of time.",
            value=info.decisions_unchecked,
        )
        yield CounterMetricFamily(
            "mvps_broker_distributions_impossible",
            "Snapshots with a distribution that the events beside it cannot have given.",
            value=info.distributions_impossible,
        )
        yield from _limits(info)
        yield GaugeMetricFamily("mvps_broker_store_failing", "1 while nothing is committed.", bool(info.store_error))
        yield from _store(info.store)
        yield CounterMetricFamily("mvps_broker_clock_steps", "Times its clock was set.", value=info.clock_steps)
        yield GaugeMetricFamily(
            "mvps_broker_manifests_refused",
            "Manifests in its directory that do not count.",
            len(info.refused_manifests),
        )
        yield from _evidence(info.evidence)
        yield from _bundles(info)
        yield from _fleet(known)
        yield from _fleet_decision(info.fleet)
        yield from _services(info.services)
        if info.surplus.on:
            yield from _surplus(info.surplus)
        if self._flows is not None:
            yield from _limiter(self._flows)


def _limits(info: stream_pb2.ServerInfo) -> Iterator[Metric]:
    refused = CounterMetricFamily(
        "mvps_broker_streams_refused", "Streams that were not taken or were ended, by cause.", labels=["cause"]
    )
    for cause, count in sorted(info.streams_refused.items()):
        refused.add_metric([cause], count)
    yield refused
    throttled = CounterMetricFamily(
        "mvps_broker_throttled", "Times a stream was not read: its vantage was beyond its rate.", labels=["lane"]
    )
    seconds = CounterMetricFamily("mvps_broker_throttled_seconds", "How long, in all.", labels=["lane"])
    for lane in sorted(info.throttled):
        throttled.add_metric([lane], info.throttled[lane])
        seconds.add_metric([lane], info.throttled_seconds[lane])
    yield throttled
    yield seconds
    yield GaugeMetricFamily(
        "mvps_broker_in_work_bytes", "Received and not committed yet, of all streams.", value=info.bytes_in_work
    )


def _store(store: stream_pb2.StoreRoom) -> Iterator[Metric]:
    yield GaugeMetricFamily("mvps_store_bytes", "Database and log segments.", value=store.bytes)
    yield GaugeMetricFamily("mvps_store_limit_bytes", "What they may grow to.", value=store.max_bytes)
    yield GaugeMetricFamily(
        "mvps_store_kept_from_seconds",
        "Sealing time from which on everything is kept, Unix time; 0 while nothing has gone.",
        value=store.backfill_from_ns / 1e9,
    )
    yield CounterMetricFamily(
        "mvps_store_removed_early", "Accepted snapshots that a full store removed.", value=store.removed_early
    )


def _evidence(evidence: stream_pb2.Evidence) -> Iterator[Metric]:
    yield GaugeMetricFamily("mvps_log_leaves", "Leaves in the evidence log.", value=evidence.size)
    yield GaugeMetricFamily("mvps_log_checkpoint_leaves", "Leaves under a checkpoint.", value=evidence.checkpoint_size)
    yield GaugeMetricFamily("mvps_log_cosigned_leaves", "Leaves under a quorum.", value=evidence.cosigned_size)
    yield GaugeMetricFamily(
        "mvps_log_checkpoint_seconds", "End of the newest checkpoint's period, Unix time.", evidence.checkpoint_ns / 1e9
    )
    failing = GaugeMetricFamily("mvps_log_witness_failing", "1 for a witness in trouble.", labels=["witness"])
    for name in sorted(evidence.witness_errors):
        failing.add_metric([name], 1)
    yield failing


def _bundles(info: stream_pb2.ServerInfo) -> Iterator[Metric]:
    counts = info.bundles
    yield CounterMetricFamily("mvps_bundles_closed", "Ticks closed, one per cell.", value=counts["closed"])
    yield CounterMetricFamily("mvps_bundles_complete", "Ticks closed with nobody missing.", value=counts["complete"])
    yield CounterMetricFamily("mvps_bundles_skipped", "Ticks its clock jumped over.", value=counts["skipped"])
    reports = CounterMetricFamily("mvps_bundle_reports", "Vantages' ticks by outcome.", labels=["status"])
    for status in ("reported", "late", "missing", "rejected", "backfill", "repeated", "unkept"):
        reports.add_metric([status], counts[status])
    yield reports
    if info.history.backend:
        yield CounterMetricFamily("mvps_history_rows", "Rows written to the history.", value=info.history.written)
        yield GaugeMetricFamily("mvps_history_waiting", "Rows not yet written.", value=info.history.waiting)
        yield CounterMetricFamily("mvps_history_dropped", "Rows dropped.", value=info.history.dropped)
        yield GaugeMetricFamily("mvps_history_failing", "1 while nothing is written.", bool(info.history.error))


def _fleet_decision(state: stream_pb2.FleetState) -> Iterator[Metric]:
    phases = GaugeMetricFamily("mvps_fleet_phase", "1 for the phase a kind of vantage is in.", labels=["kind", "phase"])
    distances = GaugeMetricFamily(
        "mvps_fleet_d2", "D^2 of a kind across hosts: with all, and the least and most without up to f.",
        labels=["kind", "removed"],
    )  # fmt: skip
    moved = GaugeMetricFamily("mvps_fleet_moved", "Hosts beyond their cut-off.", labels=["kind"])
    sources = GaugeMetricFamily(
        "mvps_fleet_source", "1 for a host that is the source in the latest ticks.", labels=["kind", "vantage", "label"]
    )
    coherence = GaugeMetricFamily(
        "mvps_fleet_c2_gm",
        "C_2 of a kind across hosts about their geometric median: the f farthest left out, and as the seed states it.",
        labels=["kind", "form"],
    )
    for kind in state.kinds:
        phases.add_metric([kind.kind, snapshot_pb2.Phase.Name(kind.phase).removeprefix("PHASE_")], 1)
        if not kind.reporting:
            continue
        for name, value in (("nobody", kind.d2), ("minimax", kind.d2_minimax), ("worst", kind.d2_max)):
            distances.add_metric([kind.kind, name], value)
        moved.add_metric([kind.kind], kind.moved)
        if kind.coherent:
            coherence.add_metric([kind.kind, "trimmed"], kind.c2_gm)
            coherence.add_metric([kind.kind, "seed"], kind.c2_gm_seed)
        for source in kind.sources:
            if source.settled:
                label = stream_pb2.SourceLabel.Name(source.label).removeprefix("SOURCE_LABEL_")
                sources.add_metric([kind.kind, source.vantage_id, label], 1)
    yield from (phases, distances, moved, coherence, sources)
    ticks = CounterMetricFamily("mvps_fleet_ticks", "Ticks of the whole fleet by outcome.", labels=["outcome"])
    for outcome, number in sorted(state.ticks.items()):
        ticks.add_metric([outcome], number)
    yield ticks
    yield CounterMetricFamily(
        "mvps_fleet_baselines_failures",
        "Times the fleet's baselines could not be read from their file or written to it.",
        value=state.baselines_failures,
    )


def _services(state: stream_pb2.ServicesState) -> Iterator[Metric]:
    phases = GaugeMetricFamily("mvps_service_phase", "1 for the phase a service is in.", labels=["service", "phase"])
    distances = GaugeMetricFamily(
        "mvps_service_d2", "D^2 of its network, its AI surface, and both.", labels=["service", "surface"]
    )
    limits = GaugeMetricFamily("mvps_service_d2_watch", "WATCH limit of that.", labels=["service", "surface"])
    axes = GaugeMetricFamily("mvps_service_coherence", "Axes of its joint vector.", labels=["service", "axis"])
    leads = GaugeMetricFamily("mvps_service_lead", "1 for the surface that moved first.", labels=["service", "lead"])
    missing = GaugeMetricFamily(
        "mvps_service_missing", "1 for a source without a reading that stands.", labels=["service", "source"]
    )
    learned = GaugeMetricFamily("mvps_service_calibrated_ticks", "Usable ticks.", labels=["service"])
    needed = GaugeMetricFamily("mvps_service_needed_ticks", "Ticks that a baseline needs.", labels=["service"])
    norms = GaugeMetricFamily(
        "mvps_service_r_cross", "||R_cross||_F in BAU, and what it is without coupling.", labels=["service", "form"]
    )
    p_values = GaugeMetricFamily("mvps_service_coupling_p", "p-value of R_cross = 0.", labels=["service"])
    exposures = GaugeMetricFamily(
        "mvps_service_exposure",
        "Requests that are new to their replica, and BAU's limit.",
        labels=["service", "source", "form"],
    )
    falls = GaugeMetricFamily(
        "mvps_service_c2_fall",
        "Fall of C_2^W2 below BAU, and what routing explains of it.",
        labels=["service", "source", "form"],
    )
    for one in state.services:
        for routing in one.routing:
            if not routing.replicas:
                continue
            exposures.add_metric([one.name, routing.source, "measured"], routing.exposure)
            exposures.add_metric([one.name, routing.source, "limit"], routing.limit)
            for form in ("fall", "predicted"):
                if routing.HasField(form):
                    falls.add_metric(
                        [one.name, routing.source, "measured" if form == "fall" else form], getattr(routing, form)
                    )
        phases.add_metric([one.name, stream_pb2.ServicePhase.Name(one.phase).removeprefix("SERVICE_PHASE_")], 1)
        learned.add_metric([one.name], one.calibrated_ticks)
        needed.add_metric([one.name], one.needed_ticks)
        for surface in ("net", "ai", "joint"):
            if one.HasField(surface):
                distance = getattr(one, surface)
                distances.add_metric([one.name, surface], distance.d2)
                limits.add_metric([one.name, surface], distance.watch)
        for axis, value in sorted(one.axes.items()):
            axes.add_metric([one.name, axis], value)
        for source in sorted(one.missing):
            missing.add_metric([one.name, source], 1)
        if one.lead not in (stream_pb2.SERVICE_LEAD_UNSPECIFIED, stream_pb2.SERVICE_LEAD_NOBODY):
            leads.add_metric([one.name, stream_pb2.ServiceLead.Name(one.lead).removeprefix("SERVICE_LEAD_")], 1)
        if one.HasField("coupling") and not one.coupling.refused:
            norms.add_metric([one.name, "measured"], one.coupling.frobenius)
            norms.add_metric([one.name, "uncoupled"], one.coupling.frobenius_null)
            p_values.add_metric([one.name], one.coupling.p_value)
    yield from (phases, distances, limits, axes, leads, missing, learned, needed, norms, p_values, exposures, falls)
    ticks = CounterMetricFamily("mvps_service_ticks", "Joint ticks of all services by outcome.", labels=["outcome"])
    for outcome, number in sorted(state.ticks.items()):
        ticks.add_metric([outcome], number)
    yield ticks
    snapshots = CounterMetricFamily(
        "mvps_service_snapshots", "Accepted snapshots of services' hosts by outcome.", labels=["outcome"]
    )
    for outcome, number in sorted(state.snapshots.items()):
        snapshots.add_metric([outcome], number)
    yield snapshots
    yield CounterMetricFamily(
        "mvps_service_windows_failures",
        "Times the services' windows could not be read from their file or written to it.",
        value=state.windows_failures,
    )


def _surplus(state: stream_pb2.SurplusState) -> Iterator[Metric]:
    states = GaugeMetricFamily("mvps_surplus_state", "1 for the state of a tenant.", labels=["tenant", "state"])
    alerts = GaugeMetricFamily("mvps_surplus_alert", "1 while it is raised.", labels=["tenant", "alert"])
    xi = GaugeMetricFamily("mvps_surplus_xi", "Xi of a tenant over its hosts.", labels=["tenant"])
    hosts = GaugeMetricFamily("mvps_surplus_hosts", "Hosts of a tenant: in the last hour, and in its latest minute.",
                              labels=["tenant", "told"])  # fmt: skip
    rungs = GaugeMetricFamily("mvps_surplus_rung", "Rung of its ladder; -1 for none.", labels=["tenant"])
    shares = GaugeMetricFamily("mvps_surplus_stage_share", "Share of its hosts.", labels=["tenant", "stage"])
    held = GaugeMetricFamily("mvps_surplus_held", "1 while its policy waits to be released.", labels=["tenant"])
    for one in state.tenants:
        states.add_metric([one.tenant, one.state], 1)
        for alert, up in (("BH-1", one.bh1), ("BH-2", one.bh2)):
            alerts.add_metric([one.tenant, alert], up)
        if one.HasField("xi"):
            xi.add_metric([one.tenant], one.xi)
        hosts.add_metric([one.tenant, "hour"], one.hosts)
        hosts.add_metric([one.tenant, "minute"], one.told)
        if one.HasField("policy"):
            rungs.add_metric([one.tenant], one.policy.rung)
            shares.add_metric([one.tenant, one.policy.stage], one.policy.share)
            held.add_metric([one.tenant], bool(one.policy.held))
    yield from (states, alerts, xi, hosts, rungs, shares, held)
    health = CounterMetricFamily("mvps_surplus_health", "Hosts' minutes by what became of them.", labels=["outcome"])
    minutes = CounterMetricFamily("mvps_surplus_minutes", "Tenants' minutes likewise.", labels=["outcome"])
    changes = CounterMetricFamily("mvps_surplus_changes", "Audited changes by kind.", labels=["what"])
    for family, counts in ((health, state.health), (minutes, state.minutes), (changes, state.changes)):
        for outcome, count in sorted(counts.items()):
            family.add_metric([outcome], count)
        yield family
    yield GaugeMetricFamily(
        "mvps_surplus_policies_refused", "Files of policies that do not count.", len(state.refused_policies)
    )
    yield CounterMetricFamily(
        "mvps_surplus_unhanded", "Times a host had more policies than one answer carries.", value=state.unhanded
    )
    yield GaugeMetricFamily("mvps_surplus_failing", "1 while rungs and stages are not kept.", bool(state.keep_error))


def _fleet(known: list[stream_pb2.VantageSummary]) -> Iterator[Metric]:
    connected = sum(vantage.connected for vantage in known)
    states = GaugeMetricFamily("mvps_broker_vantages", "Known vantages by connection.", labels=["state"])
    states.add_metric(["connected"], connected)
    states.add_metric(["silent"], len(known) - connected)
    yield states
    phases: Counter[tuple[str, str]] = Counter()
    for vantage in known:
        for surface in vantage.latest.surfaces:
            phase = snapshot_pb2.Phase.Name(surface.decision.phase) if surface.HasField("decision") else "CALIBRATING"
            phases[surface.name, phase.removeprefix("PHASE_")] += 1
    by_phase = GaugeMetricFamily("mvps_broker_surfaces", "Surfaces by phase.", labels=["surface", "phase"])
    for labels, count in sorted(phases.items()):
        by_phase.add_metric(labels, count)
    yield by_phase
    alarms = GaugeMetricFamily("mvps_broker_vantage_alarm", "1 while it holds.", labels=["vantage", "alarm"])
    clones = [vantage.vantage_id for vantage in known if vantage.clone_suspected]
    twice = [vantage.vantage_id for vantage in known if vantage.rejected.get("equivocation")]
    for alarm, names in (("clone", clones), ("equivocation", twice)):
        for name in names[:_MOST_NAMED]:
            alarms.add_metric([name, alarm], 1)
    yield alarms
    yield GaugeMetricFamily("mvps_broker_clones", "Vantages that may have been cloned.", value=len(clones))


def _limiter(flows: Flows) -> Iterator[Metric]:
    try:
        reading = counters.read(flows.folder, top=_MOST_SOURCES)
    except (LimiterError, OSError):
        reading = None
    failing = bool(flows.trouble) or reading is None
    yield GaugeMetricFamily("mvps_limiter_failing", "1 while the limiter cannot be used or read.", value=failing)
    yield GaugeMetricFamily("mvps_limiter_proven_flows", "Peers with a budget of their own.", value=len(flows))
    refused = CounterMetricFamily("mvps_limiter_flows_refused", "Peers not entered, by cause.", labels=["cause"])
    for cause, count in sorted(flows.refused.items()):
        refused.add_metric([cause], count)
    yield refused
    if reading is None:
        return
    interfaces = GaugeMetricFamily(
        "mvps_limiter_interface", "1: attached, 0: severed.", labels=["interface", "state", "mode"]
    )
    for place in reading.places:
        interfaces.add_metric([place.interface, place.state, place.mode], place.state == "attached")
    yield interfaces
    packets = CounterMetricFamily("mvps_limiter_packets", "Packets judged, by verdict.", labels=["verdict"])
    size = CounterMetricFamily("mvps_limiter_bytes", "Their bytes, Ethernet header included.", labels=["verdict"])
    for verdict, (number, length) in reading.verdicts.items():
        packets.add_metric([verdict], number)
        size.add_metric([verdict], length)
    yield packets
    yield size
    yield CounterMetricFamily(
        "mvps_limiter_idle_flow_packets", "Packets of flows idle for too long.", value=reading.idle_flows
    )
    # Gauges: who is shown changes, and its figure begins anew after it was pushed out.
    sources = GaugeMetricFamily("mvps_limiter_source_packets", "Dropped, by source; about.", labels=["source"])
    for source in reading.sources:
        sources.add_metric([str(source.network)], source.packets)
    yield sources


class MetricsEndpoint:
    """``GET /metrics`` in the broker's event loop. address: ``host:port``; port 0 takes a free one."""

    def __init__(self, collector: BrokerCollector, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        # A registry of its own: the library's default one carries this process's own series.
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. OSError if the address cannot be had."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host.strip("[]"), int(self._port))
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, _: web.Request) -> web.Response:
        text: bytes = generate_latest(self._registry)  # type: ignore[no-untyped-call]
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
