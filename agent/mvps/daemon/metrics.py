# SPDX-License-Identifier: Apache-2.0
"""OpenMetrics 1.0 text of the agent's state, served on a loopback port.

Rendered only when somebody asks, from the published :class:`~mvps.daemon.state.AgentState`. Labels are
surfaces, axes, vantages and causes: all from fixed lists, and tenants, of which there are at most 32, so that the
number of series does not grow with load.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvps.daemon.config import split_address
from mvps.daemon.state import AgentState, Distribution, EngineFigures
from mvps.v1.snapshot_pb2 import Lateral, Phase, Surface

if TYPE_CHECKING:
    from mvps.probes.cost import RunTotals

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
AXES = ("c1", "c2", "c3", "c2_plain")
PHASES = ("CALIBRATING", "BAU", "WATCH", "ALARM", "CRITICAL", "SHIFTED")
LATERALS = ("NONE", "COHERENT_BUT_FALSE")
VANTAGE_STATES = ("ok", "degraded", "failed")
TENANT_STATES = ("Green", "Caution", "Action", "Emergency")

# A scraper that does not speak for this long loses its turn; requests are served one at a time.
REQUEST_SECONDS = 2.0

Labels = Mapping[str, str]


def render(state: AgentState, programs: Mapping[str, RunTotals] | None = None, *, lateral: bool = False) -> str:
    """The whole exposition, ended by ``# EOF``.

    programs: ``signal/program`` -> totals, while the kernel counts them; None or empty leaves those families out.
    lateral: whether C_4 and the label that follows from it are exported too. Whoever may scrape is no operator by that
    alone, so that it is for the settings to say.
    """
    return "\n".join((*_lines(state, programs or {}, lateral), "# EOF", ""))


def _lines(state: AgentState, programs: Mapping[str, RunTotals], lateral: bool) -> Iterator[str]:
    yield from _family("mvps_build", "info", "Version of the running agent.")
    yield _sample("mvps_build_info", {"version": state.version, "vantage_id": state.vantage_id}, 1)

    surfaces = state.snapshot.surfaces
    yield from _family("mvps_coherence", "gauge", "Coherence axes of the last tick, 1 is coherent.")
    for surface in surfaces:
        for axis in (*AXES, "c4") if lateral else AXES:
            if surface.vector.HasField(axis):
                labels = {"surface": surface.name, "axis": axis}
                yield _sample("mvps_coherence", labels, getattr(surface.vector, axis))
    yield from _family("mvps_hamiltonian", "gauge", "H = -sum log C_k of the last tick.")
    for surface in surfaces:
        yield _sample("mvps_hamiltonian", {"surface": surface.name}, surface.vector.hamiltonian)
    decided = [surface for surface in surfaces if surface.HasField("decision")]
    yield from _family("mvps_d2", "gauge", "Squared Mahalanobis distance to the BAU baseline.")
    for surface in decided:
        yield _sample("mvps_d2", {"surface": surface.name}, surface.decision.d2)
    yield from _family("mvps_phi_d", "gauge", "exp(-D^2/6.25) of the last tick.")
    for surface in decided:
        yield _sample("mvps_phi_d", {"surface": surface.name}, surface.decision.phi_d)
    yield from _family("mvps_phase", "stateset", "Phase of each surface after hysteresis.")
    for surface in surfaces:
        yield from _states("mvps_phase", {"surface": surface.name}, PHASES, phase_name(surface))
    watched = [surface for surface in surfaces if surface.lateral or surface.vector.HasField("c4")]
    yield from _family("mvps_lateral_withheld", "gauge", "1 while C_4 and mvps_lateral of a surface are not exported.")
    for surface in watched:
        yield _sample("mvps_lateral_withheld", {"surface": surface.name}, int(not lateral))
    yield from _family("mvps_lateral", "stateset", "Label beside the phase, where a language model is watched.")
    if lateral:
        for surface in (one for one in watched if one.lateral):
            label = Lateral.Name(surface.lateral).removeprefix("LATERAL_")
            yield from _states("mvps_lateral", {"surface": surface.name}, LATERALS, label)
    yield from _family("mvps_s", "gauge", "Largest standardised own distance of a surface.")
    for surface in surfaces:
        yield _sample("mvps_s", {"surface": surface.name}, surface.vector.s)
    observations = [(surface.name, o) for surface in surfaces for o in surface.observations]
    yield from _family("mvps_lead", "stateset", "Vantage that leads over all surfaces; none when nothing moved.")
    # A replica that another process reports may be called like one of our vantages.
    yield from _states("mvps_lead", {}, dict.fromkeys(o.vantage for _, o in observations), state.snapshot.lead)
    yield from _family("mvps_own_distance", "gauge", "Standardised distance of a vantage to its own BAU law.")
    for name, observation in observations:
        if observation.HasField("own_distance"):
            labels = {"surface": name, "vantage": observation.vantage}
            yield _sample("mvps_own_distance", labels, observation.own_distance)
    yield from _family("mvps_vantage_events", "gauge", "Events each vantage saw in the last tick.")
    for name, observation in observations:
        labels = {"surface": name, "vantage": observation.vantage}
        yield _sample("mvps_vantage_events", labels, observation.events)

    yield from _family("mvps_baseline_ticks", "gauge", "Ticks the baseline has learned so far.")
    for surface in surfaces:
        yield _sample("mvps_baseline_ticks", {"surface": surface.name}, surface.calibrated_ticks)
    yield from _family("mvps_baseline_ticks_needed", "gauge", "Ticks the baseline needs.")
    for surface in surfaces:
        yield _sample("mvps_baseline_ticks_needed", {"surface": surface.name}, surface.needed_ticks)

    yield from _family("mvps_vantage_state", "stateset", "Whether each vantage is attached and complete.")
    for name, vantage in state.vantages.items():
        yield from _states("mvps_vantage_state", {"vantage": name}, VANTAGE_STATES, vantage.state)

    yield from _family("mvps_ticks", "counter", "Ticks worked on.")
    yield _sample("mvps_ticks_total", {}, state.ticks)
    yield from _family("mvps_ticks_irregular", "counter", "Late, skipped and repeated ticks, by cause.")
    for cause, count in state.irregular.items():
        yield _sample("mvps_ticks_irregular_total", {"cause": cause}, count)
    yield from _family("mvps_tick_period_seconds", "gauge", "T of the lattice.", "seconds")
    yield _sample("mvps_tick_period_seconds", {}, state.tick_ns / 1e9)
    yield from _family(
        "mvps_tick_lateness_seconds",
        "histogram",
        "From a tick's due time to the start of its work.",
        "seconds",
    )
    yield from _histogram("mvps_tick_lateness_seconds", state.lateness)
    yield from _family(
        "mvps_sealed_after_seconds", "histogram", "From a tick's due time to its sealed snapshot.", "seconds"
    )
    yield from _histogram("mvps_sealed_after_seconds", state.sealed_after)
    yield from _family("mvps_losses", "counter", "Everything lost before a snapshot was sealed, by cause.")
    for cause, count in sorted(state.losses.items()):
        yield _sample("mvps_losses_total", {"cause": cause}, count)

    stream = state.stream
    yield from _family("mvps_snapshots", "counter", "Sealed snapshots by what became of them.")
    for name in ("produced", "recovered", "acknowledged", "rejected", "dropped"):
        yield _sample("mvps_snapshots_total", {"state": name}, getattr(stream, name))
    yield from _family("mvps_snapshots_rejected", "counter", "Snapshots the broker refused, by reason.")
    for reason, count in sorted(stream.rejected_by_reason.items()):
        yield _sample("mvps_snapshots_rejected_total", {"reason": reason}, count)
    yield from _family("mvps_snapshots_dropped", "counter", "Snapshots dropped on this host, by cause.")
    for cause, count in sorted(stream.dropped_by_cause.items()):
        yield _sample("mvps_snapshots_dropped_total", {"cause": cause}, count)
    yield from _family("mvps_snapshots_queued", "gauge", "Snapshots without an answer that are in memory only.")
    yield _sample("mvps_snapshots_queued", {}, stream.queued)
    yield from _family("mvps_snapshots_spooled", "gauge", "Snapshots without an answer that are on disk.")
    yield _sample("mvps_snapshots_spooled", {}, stream.spooled)
    yield from _family("mvps_spool_bytes", "gauge", "Size of the spool.", "bytes")
    yield _sample("mvps_spool_bytes", {}, stream.spool_bytes)
    yield from _family("mvps_spool_failing", "gauge", "1 while the spool's disk takes nothing.")
    yield _sample("mvps_spool_failing", {}, int(bool(stream.spool_error)))
    yield from _family("mvps_acks_forged", "counter", "Answers whose seal, nonce or digest did not hold.")
    yield _sample("mvps_acks_forged_total", {}, stream.forged_acks)
    yield from _family("mvps_broker_connected", "gauge", "1 while the stream to the broker is up.")
    yield _sample("mvps_broker_connected", {}, int(stream.state == "connected"))

    yield from _family("mvps_snapshots_backfilled", "counter", "Snapshots sealed again for the backfill lane.")
    yield _sample("mvps_snapshots_backfilled_total", {}, stream.backfilled)
    if stream.epoch_id:
        yield from _family("mvps_epoch", "gauge", "Epoch that seals now.")
        yield _sample("mvps_epoch", {"profile": stream.profile}, stream.epoch_id)
        yield from _family("mvps_epoch_until_seconds", "gauge", "When that epoch ends, Unix time.", "seconds")
        yield _sample("mvps_epoch_until_seconds", {}, stream.epoch_until_ns / 1e9)
    if stream.HasField("clock_offset_ns"):
        yield from _family("mvps_broker_clock_offset_seconds", "gauge", "The broker's clock minus ours.", "seconds")
        yield _sample("mvps_broker_clock_offset_seconds", {}, stream.clock_offset_ns / 1e9)

    # Only while someone keeps the kernel's run-time statistics on (`mvps cost --live`): absent is not zero.
    if programs:
        yield from _family("mvps_program_runs", "counter", "Runs of a BPF program while statistics were on.")
        for program, totals in programs.items():
            yield _sample("mvps_program_runs_total", {"program": program}, totals.runs)
        yield from _family(
            "mvps_program_run_seconds", "counter", "Time in a BPF program while statistics were on.", "seconds"
        )
        for program, totals in programs.items():
            yield _sample("mvps_program_run_seconds_total", {"program": program}, totals.ns / 1e9)

    if state.engines is not None:
        yield from _engines(state.engines)

    usage = process_usage()
    yield from _family("mvps_agent_cpu_seconds", "counter", "CPU time of the agent, user and system.", "seconds")
    yield _sample("mvps_agent_cpu_seconds_total", {}, usage.cpu_seconds)
    yield from _family("mvps_agent_resident_bytes", "gauge", "Resident memory of the agent.", "bytes")
    yield _sample("mvps_agent_resident_bytes", {}, usage.resident_bytes)


def _engines(engines: EngineFigures) -> Iterator[str]:
    """Tenants are at most minutes.MAX_TENANTS."""
    yield from _family("mvps_engines_connected", "gauge", "Serving engines whose stream is open.")
    yield _sample("mvps_engines_connected", {}, engines.connected)
    yield from _family("mvps_engine_packets", "counter", "Audit packets whose chain was verified.")
    yield _sample("mvps_engine_packets_total", {}, engines.packets)
    yield from _family("mvps_engine_refused", "counter", "Streams, packets and figures that did not count, by cause.")
    for cause, count in engines.refused.items():
        yield _sample("mvps_engine_refused_total", {"cause": cause}, count)
    yield from _family("mvps_tenant_lambda", "gauge", "How hard engines are told to push.")
    for name, tenant in engines.tenants.items():
        yield _sample("mvps_tenant_lambda", {"tenant": name}, tenant.lam)
    yield from _family("mvps_tenant_kl_budget", "gauge", "Budget of the trust region in nats a token.")
    for name, tenant in engines.tenants.items():
        yield _sample("mvps_tenant_kl_budget", {"tenant": name}, tenant.kl_budget)
    yield from _family("mvps_tenant_xi", "gauge", "Xi of the last minute, where it is known.")
    for name, tenant in engines.tenants.items():
        if tenant.xi is not None:
            yield _sample("mvps_tenant_xi", {"tenant": name}, tenant.xi)
    yield from _family("mvps_tenant_state", "stateset", "Band of each tenant.")
    for name, tenant in engines.tenants.items():
        yield from _states("mvps_tenant_state", {"tenant": name}, TENANT_STATES, tenant.state)


def phase_name(surface: Surface) -> str:
    """Phase of a surface as an upper-case word, ``CALIBRATING`` while there is no decision."""
    if not surface.HasField("decision"):
        return "CALIBRATING"
    return Phase.Name(surface.decision.phase).removeprefix("PHASE_")


@dataclass(frozen=True, slots=True)
class Usage:
    """What this process has used: CPU seconds so far and resident bytes now."""

    cpu_seconds: float
    resident_bytes: int


def process_usage() -> Usage:
    """Own CPU time and resident memory, from times(2) and /proc/self/statm."""
    spent = os.times()
    with open("/proc/self/statm", encoding="ascii") as file:
        resident_pages = int(file.read().split()[1])
    return Usage(spent.user + spent.system, resident_pages * os.sysconf("SC_PAGE_SIZE"))


def _family(name: str, kind: str, text: str, unit: str = "") -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {text}"


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _states(name: str, labels: Labels, states: Iterable[str], current: str) -> Iterator[str]:
    for state in states:
        yield _sample(name, {**labels, name: state}, int(state == current))


def _histogram(name: str, distribution: Distribution) -> Iterator[str]:
    running = 0
    for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
        running += count
        yield _sample(f"{name}_bucket", {"le": _number(float(bound))}, running)
    yield _sample(f"{name}_count", {}, running)
    yield _sample(f"{name}_sum", {}, distribution.total)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class MetricsServer:
    """Serves ``GET /metrics`` from one thread that sleeps until somebody connects.

    address: ``host:port``; port 0 picks a free one.
    produce: returns the exposition.
    """

    def __init__(self, address: str, produce: Callable[[], str]):
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        handler = _handler(produce)
        server_class = type("_Server", (http.server.HTTPServer,), {"address_family": family})
        try:
            self._server: http.server.HTTPServer = server_class((host, port), handler)
        except OSError as error:
            raise OSError(
                error.errno,
                f"metrics cannot listen on {address}: {error.strerror}; "
                'choose another [metrics] address, or "" for none',
            ) from None
        self._server.timeout = 0
        self.port = int(self._server.server_address[1])
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="mvps-metrics", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._server.fileno(), select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while self._stop not in (descriptor for descriptor, _ in poll.poll()):
            with contextlib.suppress(OSError):  # the client went away in mid-answer
                self._server.handle_request()

    def close(self) -> None:
        """Stop listening."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._server.server_close()
        os.close(self._stop)


def _handler(produce: Callable[[], str]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            if self.path.split("?")[0] != "/metrics":
                self.send_error(404, explain="Metrics are at /metrics.")
                return
            body = produce().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass  # a line per scrape is no news

    return Handler
