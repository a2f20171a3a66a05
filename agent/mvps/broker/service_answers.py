# SPDX-License-Identifier: Apache-2.0
"""The services as messages and as rows of the history.

C_4 may be an axis and is not shown: which beliefs give way is for operators (001 sec. 28), who have the snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mvps.broker.history import SERVICE_AXES, History, ServiceRow
from mvps.broker.service_settings import ServiceSettings
from mvps.broker.service_watch import ServiceView, ServiceWatch
from mvps.coupling.joint import C4_AXIS
from mvps.coupling.lead_lag import Lead
from mvps.coupling.phases import ICPhase, advice
from mvps.coupling.routing import CALIBRATION_WINDOWS, Routing
from mvps.coupling.service import Coupling
from mvps.trust.limits import MAX_HISTORY_ROWS
from mvps.v1 import stream_pb2 as pb

_DEFAULT_ROWS: Final = 100
_CALIBRATING: Final = (
    "Calibrating: no phase yet. It needs business as usual on both surfaces; until then read them one by one."
)
_NO_LOADS: Final = (
    "no snapshot has said yet how the requests are shared among replicas: name the engines' metrics in the settings of "
    "mvps ai probe"
)
_NO_TRANSFER: Final = "nothing is predicted from them: the service has no drift transfer (mvps service transfer)"
_NANOSECONDS: Final = 1e9


def services_state(watch: ServiceWatch) -> pb.ServicesState:
    """Every service as it stands; one that has had no tick yet is CALIBRATING."""
    return pb.ServicesState(
        services=[_state(settings, watch.views.get(settings.name)) for settings in watch.services],
        ticks=dict(watch.ticks),
        snapshots=watch.snapshots,
        error=watch.error,
        windows_error=watch.windows_error,
        windows_failures=watch.windows_failures,
    )


def _state(settings: ServiceSettings, view: ServiceView | None) -> pb.ServiceState:
    state = pb.ServiceState(
        name=settings.name,
        phase=pb.SERVICE_PHASE_CALIBRATING,
        raw_phase=pb.SERVICE_PHASE_CALIBRATING,
        advice=_CALIBRATING,
        needed_ticks=settings.calibration_ticks,
        network=map(str, settings.network),
        ai_surfaces=map(str, settings.ai),
        drift=_NO_LOADS,
    )
    if view is None:
        return state
    tick = view.tick
    if view.routing:
        state.drift = "" if settings.transfer is not None else _NO_TRANSFER
    state.routing.extend(_routing(source, found) for source, found in sorted(view.routing.items()))
    state.tick_time_ns = view.tick_ns
    state.used.extend(view.used)
    shown = zip(view.axes, tick.z, strict=True)
    state.axes.update({name: value for name, value in shown if name != C4_AXIS and not math.isnan(value)})
    state.missing.update(view.missing)
    if C4_AXIS not in view.axes and not math.isnan(tick.h[2]):  # it would give C_4 away
        state.hamiltonian = tick.h[2]
    state.calibrated_ticks, state.needed_ticks = view.calibrated, view.needed
    state.problem, state.untaught = view.problem, view.untaught
    if tick.phase is None or tick.raw is None:
        return state
    state.phase, state.raw_phase = _phase(tick.phase), _phase(tick.raw)
    state.advice = advice(tick.phase, _predicted(view))
    state.posterior.extend(tick.posterior)
    state.lead = _lead(tick.lead)
    for message, block in ((state.net, 0), (state.ai, 1), (state.joint, 2)):
        if math.isnan(tick.d2[block]) or view.limits is None:
            continue
        message.d2, message.p_value = tick.d2[block], math.exp(tick.log_p[block])
        message.watch = view.limits[block]
        if block == 2:
            message.alarm = view.limits.joint_alarm
        elif (since := tick.moved[block]) is not None:
            message.moved_ns = round(since * _NANOSECONDS)
    if view.coupling is not None:
        state.coupling.CopyFrom(_coupling(view.coupling))
    return state


def _most_moved(view: ServiceView) -> Routing | None:
    """Of the AI sources whose requests are known, the one that is farthest over its limit."""
    known = [found for found in view.routing.values() if isinstance(found, Routing)]
    return max(known, key=lambda one: one.exposure - one.limit, default=None)


def _predicted(view: ServiceView) -> float:
    """Fall of C_2^W2 that routing is about to bring; NaN where that is not known of every AI source."""
    known = [found.predicted if isinstance(found, Routing) else math.nan for found in view.routing.values()]
    return math.nan if not known or any(map(math.isnan, known)) else max(known)


def _routing(source: str, found: Routing | int) -> pb.ServiceRouting:
    message = pb.ServiceRouting(
        source=source, calibrated_windows=CALIBRATION_WINDOWS, needed_windows=CALIBRATION_WINDOWS
    )
    if isinstance(found, int):
        message.calibrated_windows = found
        return message
    for name, *figures in zip(found.replicas, found.shares, found.before, found.missing, strict=True):
        share, before, missing = map(float, figures)
        message.replicas.add(name=name, share=share, before=before, missing=missing)
    message.measured, message.moved = found.measured, found.moved
    message.exposure, message.limit = found.exposure, found.limit
    if not math.isnan(found.fall):
        message.fall = found.fall
    if found.attribution is not None:
        said = found.attribution
        message.predicted, message.residual = said.predicted, said.residual
        message.residual_alarm, message.verdict = said.alarm, said.verdict.value
    return message


def _coupling(found: Coupling) -> pb.ServiceCoupling:
    message = pb.ServiceCoupling(
        tick_time_ns=round(found.time * _NANOSECONDS),
        ticks=found.ticks,
        refused=found.refused,
        recent_ticks=found.recent,
        lead_refused=found.lead_refused,
    )
    if found.tested is not None:
        tested, strongest = found.tested, found.tested.strongest
        message.effective, message.p_value, message.least_p = tested.effective, tested.p_value, tested.least_p
        message.frobenius, message.frobenius_null = tested.frobenius, tested.frobenius_null
        message.condition = tested.condition
        message.net_axis, message.ai_axis = strongest.net, strongest.ai
        message.r, message.r_low, message.r_high = strongest.r, strongest.low, strongest.high
    if found.lead is not None:
        lead, step = found.lead, found.step
        message.lead, message.lead_p_value = _lead(lead.lead), lead.p_value
        message.lag_s, message.lag_low_s, message.lag_high_s = lead.tau * step, lead.low * step, lead.high * step
    return message


def service_rows(views: Sequence[ServiceView]) -> list[ServiceRow]:
    """What the history keeps of joint ticks."""
    return [
        ServiceRow(
            view.tick_ns,
            view.name,
            _phase(view.tick.phase),
            _phase(view.tick.raw),
            {name: value for name, value in _figures(view) if not math.isnan(value)},
        )
        for view in views
    ]


def _figures(view: ServiceView) -> Iterator[tuple[str, float]]:
    tick = view.tick
    yield from zip(SERVICE_AXES, tick.z[: len(SERVICE_AXES)], strict=True)
    yield from zip(("d2_net", "d2_ai", "d2_joint"), tick.d2, strict=True)
    if view.limits is not None:
        yield from zip(("watch_net", "watch_ai", "watch_joint", "alarm_joint"), view.limits, strict=True)
    if (moved := _most_moved(view)) is not None:
        yield from (("exposure", moved.exposure), ("fall", moved.fall))


def service_ticks(history: History, request: pb.ListServiceTicksRequest) -> pb.ListServiceTicksResponse:
    """A service's ticks, newest first. Blocks on the database; HistoryError if that does not answer."""
    rows = history.service(
        request.service,
        since_ns=request.since_ns,
        until_ns=request.until_ns,
        limit=min(request.limit or _DEFAULT_ROWS, MAX_HISTORY_ROWS),
    )
    return pb.ListServiceTicksResponse(
        ticks=[
            pb.ServiceTick(
                tick_time_ns=row.tick_ns,
                phase=row.phase,  # type: ignore[arg-type]  # the stored numbers are the schema's
                raw_phase=row.raw_phase,  # type: ignore[arg-type]
                axes={name: value for name, value in row.figures.items() if name in SERVICE_AXES},
                **{name: value for name, value in row.figures.items() if name not in SERVICE_AXES},
            )
            for row in rows
        ]
    )


def _phase(phase: ICPhase | None) -> Any:
    return pb.ServicePhase.Value(f"SERVICE_PHASE_{phase.name if phase is not None else 'CALIBRATING'}")


def _lead(lead: Lead) -> Any:
    return pb.ServiceLead.Value(f"SERVICE_LEAD_{lead.name}")
