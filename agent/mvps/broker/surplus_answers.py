# SPDX-License-Identifier: Apache-2.0
"""Tenants as messages: how they stand, the audit trail, a report over the history."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Final

from mvps.broker import surplus_queries
from mvps.broker.history import History
from mvps.broker.surplus_tables import ChangeRow
from mvps.broker.surplus_watch import SurplusWatch, TenantView
from mvps.surplus.fleet_health import state_of
from mvps.surplus.governance import TAKEN_BACK, Governed
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import digest
from mvps.surplus.policy import ACTIONS, Rung
from mvps.trust.limits import MAX_HISTORY_ROWS
from mvps.v1 import stream_pb2 as pb

_DEFAULT_ROWS: Final = 100
_MOST_SLICE: Final = 100


def surplus_state(watch: SurplusWatch) -> pb.SurplusState:
    """Every tenant as it stands."""
    return pb.SurplusState(
        on=watch.settings is not None,
        tenants=[_tenant(view) for view in watch.views],
        health=dict(watch.health),
        minutes=dict(watch.minutes),
        changes=dict(watch.changes),
        refused_policies=watch.refused_policies,
        error=watch.error,
        keep_error=watch.keep_error,
        unhanded=watch.unhanded,
    )


def _tenant(view: TenantView) -> pb.SurplusTenant:
    state = pb.SurplusTenant(tenant=view.tenant, hosts=len(view.hosts), state=state_of(Band.GREEN).value)
    if view.last is not None:
        last, health = view.last, view.last.health
        state.minute_ns, state.told, state.packets = last.minute * MINUTE_NS, last.hosts, last.packets
        state.state, state.bh1, state.bh2 = state_of(health.band).value, health.bh1, health.bh2
        state.lam, state.kl_budget = last.lam, last.kl_budget
        for name, value in (("xi", health.xi), ("sse", health.sse), ("crp_score", health.crp_score)):
            if math.isfinite(value):
                setattr(state, name, value)
        if math.isfinite(health.ssi_score):
            state.ssi_star_score = health.ssi_score
    if view.governed is not None:
        state.policy.CopyFrom(_policy(view.governed, view.inside))
    return state


def _policy(governed: Governed, inside: Iterable[str]) -> pb.SurplusPolicy:
    policy, ladder, step = governed.policy, governed.ladder, governed.step
    message = pb.SurplusPolicy(
        name=policy.tenant,
        version=policy.version,
        digest=digest(policy),
        dry_run=policy.dry_run,
        rung=int(ladder.rung),
        proposed="" if ladder.proposed is None else f"R{int(ladder.proposed)}",
        stage=step.stage.value,
        share=step.share,
        slice=sorted(inside)[:_MOST_SLICE],
        soaked=governed.soaked,
        soak_minutes=policy.rollout.soak_minutes,
        held=governed.held,
        waiting=governed.waiting,
        actions=[action for rung in Rung if rung <= ladder.rung for action in ACTIONS[rung]],
    )
    if (found := governed.comparison) is not None:
        message.verdict = found.verdict.value
        if math.isfinite(found.change):
            message.change, message.low, message.high = found.change, found.low, found.high
    for switch, watched in governed.switches.watched.items():
        shadow = len(watched.before[governed.at - 1].means) if governed.at else 0
        shown = message.switches.add(name=switch.value, blocks=len(watched.now.means), shadow_blocks=shadow)
        if (look := governed.switches.looks.get(switch)) is not None:
            shown.change, shown.low, shown.limit = look.change, look.low, look.limit
    return message


def changes(rows: Iterable[ChangeRow]) -> list[pb.SurplusChange]:
    """Lines of the audit trail."""
    found = []
    for at_ns, one in rows:
        line = pb.SurplusChange(
            time_ns=at_ns,
            tenant=one.tenant,
            what=one.what,
            before=one.before,
            after=one.after,
            why=one.why,
            who=one.by,
            version=one.version,
            dry_run=one.dry_run,
        )
        for name in ("xi", "sse", "crp_score"):
            if math.isfinite(value := getattr(one, name)):
                setattr(line, name, value)
        found.append(line)
    return found


def audit_trail(history: History, request: pb.ListSurplusChangesRequest) -> pb.ListSurplusChangesResponse:
    """The audit trail, newest first. Blocks on the database; HistoryError if that does not answer."""
    rows = history.changes(
        tenant=request.tenant,
        since_ns=request.since_ns,
        until_ns=request.until_ns,
        limit=min(request.limit or _DEFAULT_ROWS, MAX_HISTORY_ROWS),
    )
    return pb.ListSurplusChangesResponse(changes=changes(rows))


def report(history: History, request: pb.GetSurplusReportRequest) -> pb.GetSurplusReportResponse:
    """A tenant over some time; at most ``MAX_HISTORY_ROWS`` of everything, the latest. Blocks as ``audit_trail``."""
    tenant, since_ns, now_ns = request.tenant, request.since_ns, time.time_ns()
    with history.asking() as connection:
        spent = surplus_queries.duty(connection, since_ns, now_ns)
        hours = surplus_queries.hours(connection, since_ns, now_ns)
        leads = surplus_queries.leads(connection, since_ns, now_ns)
        alerts = surplus_queries.raised(connection, tenant, since_ns, now_ns)
        unfounded = surplus_queries.unfounded(connection, tenant, since_ns, now_ns)
    trail = history.changes(tenant=tenant, since_ns=since_ns, limit=MAX_HISTORY_ROWS)
    return pb.GetSurplusReportResponse(
        duty=[
            pb.SurplusDuty(state=one.state, minutes=one.minutes, share=one.share)
            for one in spent
            if one.tenant == tenant
        ],
        hours=[
            pb.SurplusHour(
                time_ns=one.tick_ns,
                host_minutes=one.host_minutes,
                packets=one.packets,
                fallbacks=one.fallbacks,
                lam=one.lam,
                kl_budget=one.kl_budget,
                stress=one.stress,
            )
            for one in hours
            if one.tenant == tenant
        ][-MAX_HISTORY_ROWS:],
        leads=[
            pb.SurplusLead(id=one.id, started_ns=one.started_ns, bh1=one.bh1, bh2=one.bh2)
            for one in leads
            if one.tenant == tenant
        ][-MAX_HISTORY_ROWS:],
        bh1_minutes=sum(one.bh1 for one in alerts),
        bh2_minutes=sum(one.bh2 for one in alerts),
        unfounded_ns=unfounded[-MAX_HISTORY_ROWS:],
        taken_back=changes(row for row in trail if row.change.after == TAKEN_BACK),
    )
