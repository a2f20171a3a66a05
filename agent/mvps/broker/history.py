# SPDX-License-Identifier: Apache-2.0
"""The fleet's history: bundles, ticks of vantages and services, minutes of tenants, as rows to be asked for later.

SQLite by default, PostgreSQL by URL; one schema for both, through SQLAlchemy Core. It is derived data: what was
acknowledged is in the evidence log and in the broker's own database (:mod:`mvps.broker.store`), and nothing waits for
this one. A writer thread takes rows from a queue of bounded length; while the server is away the queue fills, and
beyond its limit the oldest rows are dropped and counted. Who was missing stands in the bundle's row; what came late has
a row of its own, which wins.

One row per (vantage, tick) that was heard, some 120 bytes: 1,000 vantages at 1 Hz are 10 GiB a day, so ``retention_s``
and, for SQLite, ``max_bytes`` bound it, oldest ticks first. Tenants' minutes and the audit trail of their control
(:mod:`mvps.broker.surplus_tables`) are kept for times of their own; the trail is never removed for want of room.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from mvps.broker import surplus_tables
from mvps.broker.bundle import Bundle, Figures, Report, Status
from mvps.broker.surplus_tables import ChangeRow, HealthRow, IncidentRow, PolicyRow, TenantRow

SCHEMA_VERSION: Final = 4
# Columns of a service's tick: axes of z but C_4, which is for operators only (001 sec. 28); distances; limits; routing.
SERVICE_AXES: Final = ("net_c1", "net_c2", "net_c3", "ai_c1", "ai_c2", "ai_c3")
SERVICE_FIGURES: Final = (
    *SERVICE_AXES,
    *("d2_net", "d2_ai", "d2_joint"),
    *("watch_net", "watch_ai", "watch_joint", "alarm_joint"),
    *("exposure", "fall"),
)
_BATCH_ROWS: Final = 20_000
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_PRUNE_EVERY_S: Final = 30.0
_PRUNE_SHARE: Final = 20  # a database that is too large loses this fraction of its time span at a time

_META: Final = sa.MetaData()
_VERSION: Final = sa.Table("mvps_history", _META, sa.Column("version", sa.Integer, primary_key=True))
_BUNDLES: Final = sa.Table(
    "mvps_bundles",
    _META,
    sa.Column("tick_ns", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cell", sa.Text, primary_key=True),
    sa.Column("period_ns", sa.BigInteger, nullable=False),
    sa.Column("closed_ns", sa.BigInteger, nullable=False),
    sa.Column("reported", sa.Integer, nullable=False),
    sa.Column("missing", sa.Integer, nullable=False),
    sa.Column("rejected", sa.Integer, nullable=False),
    sa.Column("absent", sa.Text, nullable=False),  # " name name " of the missing; names hold no space
    sqlite_with_rowid=False,
)
_REPORTS: Final = sa.Table(
    "mvps_reports",
    _META,
    sa.Column("tick_ns", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("vantage", sa.Text, primary_key=True),
    sa.Column("cell", sa.Text, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("received_ns", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.SmallInteger, nullable=False),
    sa.Column("surface", sa.Text, nullable=False),
    sa.Column("d2", sa.Double, nullable=False),
    sa.Column("s", sa.Double, nullable=False),
    sa.Column("lead", sa.Text, nullable=False),
    sa.Index("mvps_reports_by_vantage", "vantage", "tick_ns"),
    sqlite_with_rowid=False,
)
# Since version 2; what an older broker kept has none.
_COHERENCE: Final = (sa.Column("c2_gm", sa.Double), sa.Column("c2_gm_seed", sa.Double))
_KINDS: Final = sa.Table(
    "mvps_fleet_kinds",
    _META,
    sa.Column("tick_ns", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("phase", sa.SmallInteger, nullable=False),
    sa.Column("everybody", sa.SmallInteger, nullable=False),
    sa.Column("d2", sa.Double, nullable=False),
    sa.Column("d2_minimax", sa.Double, nullable=False),
    sa.Column("d2_max", sa.Double, nullable=False),
    sa.Column("moved", sa.Integer, nullable=False),
    sa.Column("reporting", sa.Integer, nullable=False),
    sa.Column("sources", sa.Text, nullable=False),  # "name=LABEL name=LABEL", the settled ones
    *_COHERENCE,
    sqlite_with_rowid=False,
)
# Since version 3. Null where a figure is unknown.
_SERVICES: Final = sa.Table(
    "mvps_services",
    _META,
    sa.Column("tick_ns", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("service", sa.Text, primary_key=True),
    sa.Column("phase", sa.SmallInteger, nullable=False),
    sa.Column("raw_phase", sa.SmallInteger, nullable=False),
    *(sa.Column(name, sa.Double) for name in SERVICE_FIGURES),
    sqlite_with_rowid=False,
)
_TICKS: Final = (_BUNDLES, _REPORTS, _KINDS, _SERVICES)
_TABLES: Final = (*_TICKS, *surplus_tables.MINUTES, *surplus_tables.AUDIT)  # those of tenants since version 4
_Select = TypeVar("_Select", bound=sa.Select[Any])
_Row: TypeAlias = tuple[Any, ...]  # values of one table's columns, in their order


class HistoryError(Exception):
    """The history cannot be opened or asked. The message says what to do, and shows no password."""


class BundleRow(NamedTuple):
    """A closed bundle, and what has come in for its tick since."""

    tick_ns: int
    cell: str
    period_ns: int
    closed_ns: int
    reported: int
    missing: int
    rejected: int
    late: int


class KindRow(NamedTuple):
    """The fleet's decision of one kind of vantage in one tick, once it is calibrated.

    phase, everybody: numbers of mvps.v1.Phase. c2_gm, c2_gm_seed: None where too few hosts had a distribution.
    sources: (vantage id, label) of the settled ones.
    """

    tick_ns: int
    kind: str
    phase: int
    everybody: int
    d2: float
    d2_minimax: float
    d2_max: float
    moved: int
    reporting: int
    c2_gm: float | None = None
    c2_gm_seed: float | None = None
    sources: tuple[tuple[str, str], ...] = ()


class ServiceRow(NamedTuple):
    """One joint tick of a service.

    phase, raw_phase: numbers of mvps.v1.ServicePhase. figures: those of ``SERVICE_FIGURES`` that are known.
    """

    tick_ns: int
    service: str
    phase: int
    raw_phase: int
    figures: Mapping[str, float]


class HistoryStatus(NamedTuple):
    """error: "" or why nothing is written at the moment. waiting: rows that are not written yet."""

    backend: str
    error: str
    written: int
    waiting: int
    dropped: int


class History:
    """The history of one broker. ``put_*`` are for one thread and never wait; reading is for any thread.

    url: an SQLAlchemy database URL, ``sqlite:////path/history.db`` or ``postgresql+psycopg://user@host/database``.
    max_bytes: of an SQLite file. queue_rows: rows kept while the database does not answer. minutes_retention_s,
    audit_retention_s: of tenants' minutes and of the audit trail.
    """

    def __init__(
        self,
        url: str,
        *,
        retention_s: float,
        minutes_retention_s: float = 60 * 86400.0,
        audit_retention_s: float = 730 * 86400.0,
        max_bytes: int = 1 << 40,
        queue_rows: int = 500_000,
    ) -> None:
        seconds = dict.fromkeys(_TICKS, retention_s)
        seconds |= dict.fromkeys(surplus_tables.MINUTES, minutes_retention_s)
        seconds |= dict.fromkeys(surplus_tables.AUDIT, audit_retention_s)
        self._retention_ns = {table.name: int(keep_s * 1e9) for table, keep_s in seconds.items()}
        self._max_bytes = max_bytes
        self._queue_rows = queue_rows
        self._url = _parse(url)
        self._engine = _engine(self._url)
        self._insert = _statements(self._engine.dialect)
        self._queues: dict[str, deque[_Row]] = {table.name: deque() for table in _TABLES}
        self._lock = threading.Condition()
        self._closing = False
        self._error = ""
        self._writing = 0
        self._written = 0
        self._dropped = 0
        self._pruned = 0.0
        if self._url.get_backend_name() == "sqlite":
            _make_private(Path(str(self._url.database)))
            self._prepare()  # a file of our own: what is wrong with it is wrong at start
        self._ready = self._url.get_backend_name() == "sqlite"
        self._writer = threading.Thread(target=self._run, name="mvps-broker-history", daemon=True)
        self._writer.start()

    # ---- writing

    def put_bundle(self, bundle: Bundle) -> None:
        """A bundle closed."""
        rejected = bundle.count(Status.REJECTED)
        row = (
            bundle.tick_ns,
            bundle.cell,
            bundle.period_ns,
            bundle.closed_ns,
            len(bundle.reports) - rejected,
            len(bundle.missing),
            rejected,
            f" {' '.join(bundle.missing)} " if bundle.missing else "",
        )
        self._put(_BUNDLES, [row])
        self._put(_REPORTS, [_row(report, bundle.cell) for report in bundle.reports])

    def put_late(self, report: Report, cell: str) -> None:
        """A report came for a tick whose bundle is closed."""
        self._put(_REPORTS, [_row(report, cell)])

    def put_kinds(self, kinds: Sequence[KindRow]) -> None:
        """The fleet was decided."""
        self._put(_KINDS, [_kind_values(one) for one in kinds])

    def put_services(self, ticks: Sequence[ServiceRow]) -> None:
        """Services were joined."""
        self._put(_SERVICES, [_service_values(one) for one in ticks])

    def put_health(self, rows: Sequence[HealthRow]) -> None:
        """Hosts told of tenants' minutes."""
        self._put(surplus_tables.HEALTH, [one.values() for one in rows])

    def put_tenants(self, rows: Sequence[TenantRow]) -> None:
        """Tenants' minutes were decided."""
        self._put(surplus_tables.TENANTS, [one.values() for one in rows])

    def put_changes(self, rows: Sequence[ChangeRow]) -> None:
        """Something was changed about tenants."""
        self._put(surplus_tables.CHANGES, [one.values() for one in rows])

    def put_policies(self, rows: Sequence[PolicyRow]) -> None:
        """Policies came into use."""
        self._put(surplus_tables.POLICIES, [one.values() for one in rows])

    def put_incident(self, row: IncidentRow) -> None:
        """Somebody recorded an incident."""
        self._put(surplus_tables.INCIDENTS, [row.values()])

    def _put(self, table: sa.Table, rows: Sequence[_Row]) -> None:
        with self._lock:
            waiting = self._queues[table.name]
            waiting.extend(rows)
            while len(waiting) > self._queue_rows:
                waiting.popleft()
                self._dropped += 1
            self._lock.notify()

    def status(self) -> HistoryStatus:
        """Where things stand."""
        with self._lock:
            waiting = sum(map(len, self._queues.values())) + self._writing
            return HistoryStatus(self._url.get_backend_name(), self._error, self._written, waiting, self._dropped)

    def close(self) -> None:
        """Write what waits, if the database answers, and close. Idempotent."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._writer.join()
        self._engine.dispose()

    # ---- writer thread

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            with self._lock:
                while not self._closing and not any(self._queues.values()):
                    self._lock.wait()
                if self._closing and not any(self._queues.values()):
                    return
                taken = [_take(waiting) for waiting in self._queues.values()]
                self._writing = sum(map(len, taken))
            try:
                if not self._ready:
                    self._prepare()
                    self._ready = True
                self._write(taken)
            except (SQLAlchemyError, HistoryError) as error:
                with self._lock:
                    self._writing = 0
                    self._error = _advice(error, self._url)
                    for waiting, rows in zip(self._queues.values(), taken, strict=True):
                        waiting.extendleft(reversed(rows))
                    if self._closing:
                        self._dropped += sum(map(len, self._queues.values()))
                        return
                    self._lock.wait_for(lambda: self._closing, timeout=pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            with self._lock:
                self._error = ""
                self._written += self._writing
                self._writing = 0

    def _prepare(self) -> None:
        try:
            with self._engine.begin() as connection:
                _META.create_all(connection)
                surplus_tables.META.create_all(connection)
                found = connection.execute(sa.select(_VERSION.c.version)).scalar()
                if found is None:
                    connection.execute(_VERSION.insert().values(version=SCHEMA_VERSION))
                elif 1 <= found < SCHEMA_VERSION:
                    _take_over(connection)
                elif found != SCHEMA_VERSION:
                    raise HistoryError(
                        f"{_shown(self._url)} has history schema {found}, this broker knows {SCHEMA_VERSION}: give it "
                        "another database, or move the old one away"
                    )
        except SQLAlchemyError as error:
            raise HistoryError(_advice(error, self._url)) from None

    def _write(self, taken: Sequence[list[_Row]]) -> None:
        # Rows go to the driver as they are: SQLAlchemy's own binding costs as much again as the database.
        with self._engine.begin() as connection:
            for insert, rows in zip(self._insert, taken, strict=True):
                if rows:
                    connection.exec_driver_sql(insert, rows)
        now = time.monotonic()
        if now - self._pruned > _PRUNE_EVERY_S:
            self._pruned = now
            self._prune()

    def _prune(self) -> None:
        now_ns = time.time_ns()
        with self._engine.begin() as connection:
            too_large = self._too_large(connection)
            limit = _trimmed(connection, _BUNDLES) if too_large else 0
            for table in _TABLES:
                oldest = now_ns - self._retention_ns[table.name]
                if table in _TICKS:
                    oldest = max(oldest, limit)
                elif too_large and table in surplus_tables.MINUTES:
                    oldest = max(oldest, _trimmed(connection, table))
                connection.execute(table.delete().where(table.c.tick_ns < oldest))

    def _too_large(self, connection: sa.Connection) -> bool:
        """Whether an SQLite file has outgrown ``max_bytes``."""
        if connection.dialect.name != "sqlite":
            return False
        page, pages, free = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0)
            for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (pages - free) >= self._max_bytes

    # ---- reading

    def bundles(
        self, *, cell: str | None = None, since_ns: int = 0, until_ns: int = 0, limit: int = 100
    ) -> list[BundleRow]:
        """Closed bundles, newest first. until_ns: 0 for now."""
        late = (
            sa.select(sa.func.count())
            .where(
                _REPORTS.c.tick_ns == _BUNDLES.c.tick_ns,
                _REPORTS.c.cell == _BUNDLES.c.cell,
                _REPORTS.c.status.in_([Status.LATE, Status.BACKFILL]),
            )
            .scalar_subquery()
        )
        columns = [column for column in _BUNDLES.columns if column.name != "absent"]
        query = _within(sa.select(*columns, late), _BUNDLES, since_ns, until_ns)
        if cell is not None:
            query = query.where(_BUNDLES.c.cell == cell)
        with self.asking() as connection:
            found = connection.execute(query.order_by(_BUNDLES.c.cell).limit(limit)).all()
        return [BundleRow(*tuple(row)) for row in found]

    def tick(self, tick_ns: int, cell: str | None = None) -> list[tuple[str, Report]]:
        """(cell, report) of everybody in one tick, sorted by cell and name."""
        reports = sa.select(_REPORTS).where(_REPORTS.c.tick_ns == tick_ns)
        absent = sa.select(_BUNDLES.c.cell, _BUNDLES.c.absent).where(_BUNDLES.c.tick_ns == tick_ns)
        if cell is not None:
            reports, absent = reports.where(_REPORTS.c.cell == cell), absent.where(_BUNDLES.c.cell == cell)
        with self.asking() as connection:
            found = {(row.cell, row.vantage): _report(row) for row in connection.execute(reports)}
            for row in connection.execute(absent):
                for name in row.absent.split():
                    found.setdefault((row.cell, name), Report(name, tick_ns, Status.MISSING))
        return [(cell, report) for (cell, _), report in sorted(found.items())]

    def vantage(self, vantage_id: str, *, since_ns: int = 0, until_ns: int = 0, limit: int = 100) -> list[Report]:
        """One vantage's ticks, newest first. until_ns: 0 for now."""
        name = f" {vantage_id} "
        reports = _within(sa.select(_REPORTS).where(_REPORTS.c.vantage == vantage_id), _REPORTS, since_ns, until_ns)
        absent = sa.select(_BUNDLES.c.tick_ns).where(_BUNDLES.c.absent.contains(name, autoescape=True))
        absent = _within(absent, _BUNDLES, since_ns, until_ns)
        with self.asking() as connection:
            found = {
                row.tick_ns: Report(vantage_id, row.tick_ns, Status.MISSING)
                for row in connection.execute(absent.limit(limit))
            }
            found |= {row.tick_ns: _report(row) for row in connection.execute(reports.limit(limit))}
        return [found[tick_ns] for tick_ns in sorted(found, reverse=True)[:limit]]

    def kinds(self, *, kind: str = "", since_ns: int = 0, until_ns: int = 0, limit: int = 100) -> list[KindRow]:
        """The fleet's decisions, newest first, of all kinds or one. until_ns: 0 for now."""
        query = _within(sa.select(_KINDS), _KINDS, since_ns, until_ns).order_by(_KINDS.c.kind)
        if kind:
            query = query.where(_KINDS.c.kind == kind)
        with self.asking() as connection:
            found = connection.execute(query.limit(limit)).all()
        return [KindRow(**(row._asdict() | {"sources": _sources(row.sources)})) for row in found]

    def service(self, service: str, *, since_ns: int = 0, until_ns: int = 0, limit: int = 100) -> list[ServiceRow]:
        """A service's ticks, newest first. until_ns: 0 for now."""
        query = _within(sa.select(_SERVICES), _SERVICES, since_ns, until_ns).where(_SERVICES.c.service == service)
        with self.asking() as connection:
            found = [row._asdict() for row in connection.execute(query.limit(limit))]
        return [
            ServiceRow(
                row["tick_ns"],
                row["service"],
                row["phase"],
                row["raw_phase"],
                {name: row[name] for name in SERVICE_FIGURES if row[name] is not None},
            )
            for row in found
        ]

    def changes(self, *, tenant: str = "", since_ns: int = 0, until_ns: int = 0, limit: int = 100) -> list[ChangeRow]:
        """The audit trail, newest first, of all tenants or one. until_ns: 0 for now."""
        table = surplus_tables.CHANGES
        query = _within(sa.select(table), table, since_ns, until_ns).order_by(table.c.tenant, table.c.what)
        if tenant:
            query = query.where(table.c.tenant == tenant)
        with self.asking() as connection:
            return [ChangeRow.of(row) for row in connection.execute(query.limit(limit))]

    @contextmanager
    def asking(self) -> Iterator[sa.Connection]:
        """A connection to read with; HistoryError if the database does not answer."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise HistoryError(_advice(error, self._url)) from None


def _trimmed(connection: sa.Connection, table: sa.Table) -> int:
    """Where a table that is to lose a part of its time span begins then."""
    first, last = connection.execute(sa.select(sa.func.min(table.c.tick_ns), sa.func.max(table.c.tick_ns))).one()
    return int(first) + (int(last) - int(first)) // _PRUNE_SHARE + 1 if first is not None else 0


def _within(query: _Select, table: sa.Table, since_ns: int, until_ns: int) -> _Select:
    """Rows of a table in that time, newest first. until_ns: 0 for now."""
    query = query.where(table.c.tick_ns >= since_ns).order_by(table.c.tick_ns.desc())
    return query.where(table.c.tick_ns <= until_ns) if until_ns else query


def _row(report: Report, cell: str) -> _Row:
    vantage_id, tick_ns, status, received_ns, reason, said = report
    figures = (said.phase, said.surface, said.d2, said.s, said.lead)
    return (tick_ns, vantage_id, cell, int(status), reason, received_ns, *figures)


def _kind_values(one: KindRow) -> _Row:
    fields = one._asdict() | {"sources": " ".join(f"{name}={label}" for name, label in one.sources)}
    return tuple(fields[column.name] for column in _KINDS.columns)


def _service_values(one: ServiceRow) -> _Row:
    figures = (one.figures.get(name) for name in SERVICE_FIGURES)
    return (one.tick_ns, one.service, one.phase, one.raw_phase, *figures)


def _sources(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (word.rpartition("=") for word in text.split())  # a vantage id may hold "="
    return tuple((name, label) for name, _, label in pairs)


def _report(row: Any) -> Report:
    figures = Figures(row.phase, row.surface, row.d2, row.s, row.lead)
    return Report(row.vantage, row.tick_ns, Status(row.status), row.received_ns, row.reason, figures)


def _take_over(connection: sa.Connection) -> None:
    """From an earlier version. The tables are there already, and whole where they have only just been made."""
    for table in (_KINDS, _SERVICES):
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} DOUBLE PRECISION")
    connection.execute(_VERSION.update().values(version=SCHEMA_VERSION))


def _take(waiting: deque[_Row]) -> list[_Row]:
    return [waiting.popleft() for _ in range(min(len(waiting), _BATCH_ROWS))]


def _statements(dialect: sa.Dialect) -> tuple[str, ...]:
    """Insert a row of each table once; values in column order."""
    insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    return tuple(str(insert(table).on_conflict_do_nothing().compile(dialect=dialect)) for table in _TABLES)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise HistoryError(
            "history: no database URL; write sqlite:////path/history.db or postgresql+psycopg://user@host/database"
        ) from None
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise HistoryError(f"history: {_shown(parsed)} is no sqlite or postgresql URL of a database")


def _engine(url: sa.URL) -> sa.Engine:
    try:
        if url.get_backend_name() == "sqlite":
            engine = sa.create_engine(url)

            @sa.event.listens_for(engine, "connect")
            def prepare(connection: Any, _: object) -> None:
                # Derived data: after a power cut the last seconds may be missing, and the file is whole.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")

            return engine
        # pre-ping: a server that was restarted costs a reconnect and no failed transaction.
        return sa.create_engine(url, paramstyle="format", pool_pre_ping=True, connect_args={"connect_timeout": 5})
    except ImportError:
        raise HistoryError("a history in PostgreSQL needs its driver: pip install 'mvps[postgres]'") from None


def _make_private(path: Path) -> None:
    try:
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise HistoryError(f"cannot open {path}: {error.strerror}; does {path.parent} exist?") from None


def _shown(url: sa.URL) -> str:
    return url.render_as_string(hide_password=True)


def _advice(error: Exception, url: sa.URL) -> str:
    if isinstance(error, HistoryError):
        return str(error)
    cause = " ".join(str(getattr(error, "orig", None) or error).split())
    if isinstance(error, OperationalError) and url.get_backend_name() == "postgresql":
        return f"{_shown(url)} does not answer ({cause}): check the server and history in the settings"
    return f"{_shown(url)}: {cause}"
