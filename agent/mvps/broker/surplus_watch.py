# SPDX-License-Identifier: Apache-2.0
"""Tenants, live: minutes that hosts closed come in with accepted snapshots, and every minute each tenant is decided.

In the event loop a snapshot that carries minutes is put aside unparsed, which is all that admission ever waits for.
A minute is decided ``wait_s`` after its end by the broker's clock, from what is there then, in a thread
(:mod:`mvps.surplus.governance`); what comes later, or by the backfill lane, is kept and counted as late. Orders of an
operator go the same way, one after the other, and are on disk before they are answered.

Minutes are a host's word about its own tenants. What is malformed, ahead of the clock, too old, said twice, or of more
tenants than there is room for is refused and counted by cause, and touches nothing else.

Rungs, stages and what is held outlive a restart in a file beside the broker's database.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from mvps.broker.surplus_settings import Policies, SurplusSettings, read_policies
from mvps.broker.surplus_tables import ChangeRow, HealthRow, PolicyRow, TenantRow
from mvps.surplus import sealed_health
from mvps.surplus.fleet_health import TenantMinute, combine, limits_of
from mvps.surplus.governance import Change, Governed, Standing
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import MAX_TENANTS, MINUTE_NS, SILENT_MINUTES
from mvps.surplus.packets import MAX_LINE_BYTES, HealthMinute, Packet, Policy, Stage, Thresholds, digest, render
from mvps.surplus.policy import Rung
from mvps.trust import durable, gate
from mvps.v1 import snapshot_pb2 as pb

MAX_FLEET_TENANTS: Final = 512
MAX_WHO: Final = 100
MAX_WHY: Final = 500
MAX_PENDING_BYTES: Final = 64 << 20  # of snapshots that wait for the next look
REFUSED: Final = ("malformed", "oversize", "ahead", "stale", "repeated", "tenants", "overflow")
_AHEAD_NS: Final = 10 * 10**9
_LOOK_S: Final = 1.0
_READ_POLICIES_NS: Final = 10 * 10**9
_MAX_BEHIND: Final = 10  # minutes that are made up for; beyond them they are skipped and counted
_MAX_FILE_BYTES: Final = 64 << 20  # 1024 tenants with soaks of a week and five steps have some 40 MB
_MOST_HANDED_BYTES: Final = 60 * 1024
_NAME_BYTES: Final = sealed_health.NAME.encode()


class OrderError(ValueError):
    """An order that cannot be carried out; the message says why."""


class Order(NamedTuple):
    """What an operator wants of a tenant. what: "rung", "stage", "kill" or "release"; to: R0 to R6, "none", a stage."""

    tenant: str
    what: str
    to: str
    who: str
    why: str


class Rows(NamedTuple):
    """For the history."""

    health: list[HealthRow]
    tenants: list[TenantRow]
    changes: list[ChangeRow]
    policies: list[PolicyRow]


class TenantView(NamedTuple):
    """One tenant as it stands. last: its latest minute. governed: None without a policy. hosts: it has now.

    inside: those of them on which its policy is in force, but for a dry run.
    """

    tenant: str
    last: TenantMinute | None
    governed: Governed | None
    hosts: tuple[str, ...]
    inside: frozenset[str] = frozenset()


class _Kept(Packet):
    """The file."""

    format: Literal[1] = 1
    tenants: Annotated[list[Standing], Field(max_length=2 * MAX_FLEET_TENANTS)]


@dataclass(slots=True)
class _Tenant:
    """hosts: host -> the latest minute it told of."""

    last: TenantMinute | None = None
    governed: Governed | None = None
    hosts: dict[str, int] = field(default_factory=dict)


class SurplusWatch:
    """Every tenant of one broker.

    settings: None watches nothing. on_rows: called in the event loop with what there is to keep. keep: file of what
    outlives a restart. clock: ns since the Unix epoch. ``health``: minutes of hosts by what became of them: "taken", of
    these "late", and the causes of ``REFUSED``. ``minutes``: of tenants: "decided", "skipped" because the clock jumped
    or the broker was busy, "failed" by a defect, which ``error`` names. ``unhanded``: times that a host had more
    policies than one answer carries. ``keep_error``: "" or why the file is not used or not written.
    """

    def __init__(
        self,
        settings: SurplusSettings | None,
        on_rows: Callable[[Rows], None] = lambda rows: None,
        keep: Path | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings: Final = settings
        self._on_rows = on_rows
        self._keep = keep
        self._clock = clock
        self._pending: list[tuple[str, bytes, int]] = []
        self._pending_bytes = 0
        self._told: dict[int, dict[str, dict[str, HealthMinute]]] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._standing: dict[str, Standing] = {}
        self._policies = Policies({}, [])
        self._by_tenant: dict[str, Policy] = {}
        self._policies_due_ns = 0
        self._decided = 0
        self._stamped = 0
        self._lock = asyncio.Lock()
        self.health: Counter[str] = Counter(taken=0, late=0, **dict.fromkeys(REFUSED, 0))
        self.minutes: Counter[str] = Counter(decided=0, skipped=0, failed=0)
        self.changes: Counter[str] = Counter(rung=0, stage=0, hold=0, policy=0)
        self.error = ""
        self.keep_error = ""
        self.views: tuple[TenantView, ...] = ()
        self._of_host: dict[str, list[TenantView]] = {}
        self.serial = 0
        self.unhanded = 0
        if settings is not None and keep is not None:
            self._load(keep)

    @property
    def refused_policies(self) -> tuple[str, ...]:
        """Files that do not count, and why."""
        return tuple(self._policies.refused)

    # ---- in the event loop

    def observe(self, batch: gate.Batch) -> None:
        """A message is settled: minutes that came with it wait for the next look."""
        if self.settings is None:
            return
        for index in batch.with_extensions:
            body = batch.body(index)
            if _NAME_BYTES in body:
                self.put(batch.header(index).vantage_id, body)

    def put(self, vantage_id: str, body: bytes) -> None:
        """One accepted snapshot that carries minutes."""
        if self._pending_bytes + len(body) > MAX_PENDING_BYTES:
            self.health["overflow"] += 1
            return
        self._pending_bytes += len(body)
        self._pending.append((vantage_id, body, self._clock()))

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # a defect here must not end a broker that keeps what is sent
                self.minutes["failed"] += 1
                self.error = f"tenants could not be looked at: {error!r}"
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Take what came, and decide what is due."""
        async with self._lock:
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            work = asyncio.ensure_future(asyncio.to_thread(self._look, pending, self._clock()))
            try:
                await asyncio.shield(work)
            finally:
                # A broker that stops does not lose what was changed meanwhile.
                self._on_rows(await work)

    async def order(self, order: Order) -> list[ChangeRow]:
        """Carry out an order; OrderError if that cannot be."""
        async with self._lock:
            work = asyncio.ensure_future(asyncio.to_thread(self._order, order))
            try:
                await asyncio.shield(work)
            finally:
                # Whoever ordered may be gone: what was changed is in the trail all the same.
                rows = [ChangeRow(self._stamp(), change) for change in await work]
                self._on_rows(Rows([], [], rows, []))
        return rows

    def handed(self, vantage_id: str) -> bytes:
        """Policies of one host's tenants as they stand: lines of policy.v1; b"" where it has none.

        ``serial`` says when to ask again: after every minute that was decided, and after every order.
        """
        now = datetime.fromtimestamp(self._clock() // 10**9, UTC)
        lines: list[bytes] = []
        size = 0
        for view in self._of_host.get(vantage_id, ()):
            if view.governed is None:
                continue
            line = render(view.governed.issue(vantage_id, vantage_id in view.inside, now))
            size += len(line) + 1
            if len(line) > MAX_LINE_BYTES or len(lines) == MAX_TENANTS or size > _MOST_HANDED_BYTES:
                self.unhanded += 1
                break
            lines.append(line)
        return b"\n".join(lines)

    # ---- in the thread, one pass at a time

    def _look(self, pending: Sequence[tuple[str, bytes, int]], now_ns: int) -> Rows:
        rows = Rows([], [], [], [])
        if not self._decided:
            self._decided = self._due(now_ns)
        before = self._decided
        if now_ns >= self._policies_due_ns or now_ns < self._policies_due_ns - _READ_POLICIES_NS:
            self._policies_due_ns = now_ns + _READ_POLICIES_NS
            self._read_policies(now_ns, rows)
        for vantage_id, body, received_ns in pending:
            data = pb.Snapshot.FromString(body).extensions.get(sealed_health.NAME)
            if data is not None:
                self._take(vantage_id, data, received_ns, now_ns, rows.health)
        due = self._due(now_ns)
        if due < self._decided - 1:  # the clock was set back
            self.minutes["skipped"] += 1
            self._decided = due
            self._told.clear()
        behind = due - self._decided - _MAX_BEHIND
        if behind > 0:
            self.minutes["skipped"] += behind
            self._decided += behind
        while self._decided < due:
            self._decided += 1
            self._decide(self._decided, rows)
        self._told = {minute: told for minute, told in self._told.items() if minute > self._decided}
        if rows.changes or rows.tenants:
            self._save()
        if rows.changes or self._decided != before:
            self._show()
        return rows

    def _due(self, now_ns: int) -> int:
        """The latest minute that is to be decided."""
        assert self.settings is not None
        return (now_ns - round(self.settings.wait_s * 1e9)) // MINUTE_NS - 1

    def _take(self, host: str, data: bytes, received_ns: int, now_ns: int, rows: list[HealthRow]) -> None:
        """What one host says of its tenants."""
        assert self.settings is not None
        found, refused = sealed_health.unpack(data)
        self.health.update(refused)
        oldest = now_ns - self.settings.minutes_retention_days * 86400e9
        for one in found:
            minute = round(one.bucket.timestamp()) // 60
            if (minute + 1) * MINUTE_NS > now_ns + _AHEAD_NS:
                self.health["ahead"] += 1
                continue
            if minute * MINUTE_NS < oldest:
                self.health["stale"] += 1
                continue
            if minute > self._decided and not self._tell(minute, host, one):
                continue
            self.health["taken"] += 1
            self.health["late"] += minute <= self._decided
            rows.append(HealthRow(host, received_ns, one))

    def _tell(self, minute: int, host: str, one: HealthMinute) -> bool:
        """Put it with its minute, if there is room and it was not said before."""
        told = self._told.setdefault(minute, {})
        if host in told.get(one.tenant, ()):
            self.health["repeated"] += 1
            return False
        known = one.tenant in self._tenants
        of_host = sum(host in hosts for hosts in told.values())
        if of_host >= MAX_TENANTS or (not known and len(self._tenants) >= MAX_FLEET_TENANTS):
            self.health["tenants"] += 1
            return False
        tenant = self._tenants.setdefault(one.tenant, _Tenant())
        tenant.hosts[host] = max(minute, tenant.hosts.get(host, 0))
        told.setdefault(one.tenant, {})[host] = one
        return True

    def _decide(self, minute: int, rows: Rows) -> None:
        """One minute of every tenant."""
        told = self._told.get(minute, {})
        self.error = ""
        for name, tenant in sorted(self._tenants.items()):
            tenant.hosts = {host: at for host, at in tenant.hosts.items() if at + SILENT_MINUTES > minute}
            policy = self._by_tenant.get(name)
            if policy is not None and tenant.governed is None:
                tenant.governed = self._begun(name, policy, minute, rows)
            said = told.get(name, {})
            try:
                changes = self._step(tenant, minute, said)
            except Exception as error:  # a defect here must not end a broker that keeps what is sent
                self.minutes["failed"] += 1
                self.error = f"{name}: its minute could not be decided: {error!r}"
                continue
            self._note(changes, rows)
            if said and tenant.last is not None:
                self.minutes["decided"] += 1
                rows.tenants.append(self._row(name, tenant, tenant.last))
        for name in [name for name, one in self._tenants.items() if one.governed is None and not one.hosts]:
            del self._tenants[name]

    def _step(self, tenant: _Tenant, minute: int, said: dict[str, HealthMinute]) -> list[Change]:
        if tenant.governed is not None:
            tenant.governed, changes = tenant.governed.minute(minute, said, tenant.hosts)
            tenant.last = tenant.governed.last
            return changes
        if said:
            before = tenant.last.health.band if tenant.last else Band.GREEN
            tenant.last = combine(said, minute, _NO_POLICY_OUTLIERS, limits_of(Thresholds()), before)
        return []

    def _row(self, name: str, tenant: _Tenant, last: TenantMinute) -> TenantRow:
        governed = tenant.governed
        if governed is None:
            return TenantRow(name, self._clock(), _NO_POLICY_OUTLIERS, last, int(Rung.NONE), "", None)
        policy, rung = governed.policy, governed.ladder.rung
        return TenantRow(
            name, self._clock(), policy.outliers, last, int(rung), governed.step.stage.value, policy.version
        )

    def _begun(self, name: str, policy: Policy, minute: int, rows: Rows) -> Governed:
        standing = self._standing.pop(name, None)
        if standing is not None:
            return Governed.restored(policy, standing)
        governed = Governed.begin(name, policy)
        self._note([governed.begun(minute)], rows)
        return governed

    def _read_policies(self, now_ns: int, rows: Rows) -> None:
        assert self.settings is not None
        if self.settings.policies is None:
            return
        before = self._policies
        self._policies = read_policies(self.settings.policies, before)
        known = {digest(policy) for policy in before.by_file.values()}
        fresh = [policy for policy in self._policies.by_file.values() if digest(policy) not in known]
        rows.policies.extend(PolicyRow(now_ns, policy) for policy in fresh)
        self._by_tenant = self._policies.by_tenant
        minute = now_ns // MINUTE_NS
        for name, tenant in self._tenants.items():
            governed, policy = tenant.governed, self._by_tenant.get(name)
            if governed is None:
                continue
            if policy is None:
                self._note([governed.ended(minute)], rows)
                tenant.governed = None
            elif digest(policy) != digest(governed.policy):
                tenant.governed, change = governed.under(policy, minute)
                self._note([change], rows)

    def _note(self, changes: Sequence[Change], rows: Rows) -> None:
        for change in changes:
            self.changes[change.what] += 1
            rows.changes.append(ChangeRow(self._stamp(), change))

    def _stamp(self) -> int:
        """Time of a change: later than that of the one before it, as the trail's rows are told apart by it."""
        self._stamped = max(self._clock(), self._stamped + 1)
        return self._stamped

    def _order(self, order: Order) -> list[Change]:
        check_words(order.who, order.why)
        tenant = self._tenants.get(order.tenant)
        governed = tenant.governed if tenant else None
        if tenant is None or governed is None:
            known = ", ".join(name for name, one in sorted(self._tenants.items()) if one.governed) or "none"
            raise OrderError(f"{order.tenant} has no policy in use; those that have one: {known}")
        minute = self._clock() // MINUTE_NS
        try:
            if order.what == "rung":
                after, changes = governed.ordered_rung(minute, _rung(order.to), order.who, order.why)
            elif order.what == "stage":
                after, changes = governed.ordered_stage(minute, _stage(order.to), order.who, order.why)
            elif order.what == "kill":
                after, changes = governed.killed(minute, order.who, order.why)
            elif order.what == "release":
                after, changes = governed.released(minute, order.who, order.why)
            else:
                raise OrderError(f'"{order.what}" is no order: rung, stage, kill or release')
        except ValueError as error:
            raise OrderError(str(error)) from None
        tenant.governed = after
        self.changes.update(change.what for change in changes)
        self._save()
        self._show()
        return changes

    def _show(self) -> None:
        self.views = tuple(
            TenantView(
                name,
                one.last,
                one.governed,
                tuple(sorted(one.hosts)),
                one.governed.inside(one.hosts) if one.governed else frozenset(),
            )
            for name, one in sorted(self._tenants.items())
        )
        of_host: dict[str, list[TenantView]] = {}
        for view in self.views:
            for host in view.hosts if view.governed else ():
                of_host.setdefault(host, []).append(view)
        self._of_host = of_host
        self.serial += 1

    # ---- on disk

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                kept = _Kept.model_validate_json(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.keep_error = f"{path} cannot be used ({_line(error)}): rungs and stages begin anew"
            return
        self._standing = {one.tenant: one for one in kept.tenants}

    def _save(self) -> None:
        if self._keep is None:
            return
        standing = dict(self._standing)
        standing |= {name: one.governed.standing for name, one in self._tenants.items() if one.governed}
        kept = _Kept(tenants=[standing[name] for name in sorted(standing)][: 2 * MAX_FLEET_TENANTS])
        try:
            durable.replace(self._keep, render(kept))
        except OSError as error:
            self.keep_error = f"{self._keep} cannot be written ({error.strerror}): a restart forgets rungs and stages"
        else:
            self.keep_error = ""


# Without a policy nobody said how many hosts may err.
_NO_POLICY_OUTLIERS: Final = 1


def check_words(who: str, why: str) -> None:
    """OrderError unless a name and a reason can be kept and shown."""
    for what, text, most in (("name", who, MAX_WHO), ("reason", why, MAX_WHY)):
        if len(text) > most or not text.isprintable():
            raise OrderError(f"a {what} is one line of at most {most} characters")


def _rung(text: str) -> Rung:
    names = {"none": Rung.NONE} | {f"r{int(rung)}": rung for rung in Rung if rung is not Rung.NONE}
    if text.lower() not in names:
        raise OrderError(f'"{text}" is no rung: R0 to R6, or none')
    return names[text.lower()]


def _stage(text: str) -> Stage:
    try:
        return Stage(text)
    except ValueError:
        raise OrderError(f'"{text}" is no stage: {", ".join(Stage)}') from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
