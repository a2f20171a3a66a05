# SPDX-License-Identifier: Apache-2.0
"""Puts an agent together from its settings: attaches vantages, loads baselines, opens the road to the broker.

Everything that can go wrong before the first tick goes wrong here, as :class:`StartError` with advice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.daemon import baselines, log
from mvps.daemon.config import Config
from mvps.daemon.identity import RECEIVED, Identity, TrustError
from mvps.daemon.local_api import LocalApi, LocalApiError
from mvps.daemon.notify import Notifier
from mvps.daemon.service import Agent, NoUplink, Uplink
from mvps.daemon.uplink import BrokerUplink
from mvps.probes.bcc import chosen
from mvps.probes.kernel import too_old
from mvps.stream.spool import Spool, SpoolError
from mvps.trust.counter import Counter, CounterError
from mvps.trust.keys import KeySourceError, Kind, ObjectHasher, SecretKey, load_public
from mvps.trust.seal import check_vantage_id
from mvps.vantages.registry import VANTAGES, VantageSet, resolve_scope

if TYPE_CHECKING:
    import grpc

_log = log.logger("start")


class Cause(Enum):
    """What kind of thing keeps the agent from starting."""

    SETTINGS = "settings"
    PRIVILEGE = "privilege"


class StartError(Exception):
    """The agent cannot start; the message says what to do."""

    def __init__(self, cause: Cause, message: str):
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Started:
    """A put-together agent that has not ticked yet, and its local API: for everybody who may, and for operators."""

    agent: Agent
    local_apis: tuple[LocalApi, ...]

    def run(self) -> None:
        """Tick until stopped, then close everything."""
        try:
            self.agent.run()
        finally:
            for api in self.local_apis:
                api.close()


def attach(settings: Config) -> VantageSet:
    """Attach the configured vantages. StartError when a setting is wrong or none of them works."""
    if reason := too_old(platform.release()):
        raise StartError(Cause.PRIVILEGE, reason)
    try:
        names = settings.choose_vantages(tuple(VANTAGES))
        scope = resolve_scope(settings.scope.cgroup, settings.scope.netns)
    except (ValueError, FileNotFoundError) as error:
        raise StartError(Cause.SETTINGS, str(error)) from None
    vantages = VantageSet.open(names, scope, probe=settings.probe.plan(), loader=settings.vantages.loader)
    if not vantages.surfaces():
        # One reason is usually shared by all: say it once.
        reasons = "; ".join(
            dict.fromkeys(s.reason.removeprefix(f"loading {s.name}: ") for s in vantages.states().values())
        )
        vantages.close()
        raise StartError(
            Cause.PRIVILEGE, f"no vantage could be attached ({reasons}); `mvps doctor` says what is missing"
        )
    return vantages


def start(settings: Config, config_path: str = "", *, notifier: Notifier | None = None, serve: bool = True) -> Started:
    """Put an agent together. ``serve`` also opens the local API and /metrics.

    Raises StartError; nothing stays attached or listening then.
    """
    with contextlib.ExitStack() as undo:
        state_dir = _state_directory(settings)
        identity = _identity(settings, state_dir)
        vantages = attach(settings)
        undo.callback(vantages.close)
        surfaces = vantages.surfaces()
        model_settings = ModelSettings(
            calibration_ticks=settings.baseline.calibration_ticks,
            cutoff_mode=settings.baseline.cutoffs,
            hysteresis=settings.baseline.hysteresis,
        )
        purposes = [_purpose(settings, model_settings, name, surfaces[name]) for name in surfaces]
        models = {
            p.surface: SurfaceModel(
                p.surface, p.vantages, model_settings, baselines.load(state_dir, p) if state_dir else None
            )
            for p in purposes
        }
        saver = None
        if state_dir:
            saver = baselines.Saver(state_dir, purposes)
            undo.callback(saver.close)
        uplink = _uplink(settings, identity, state_dir)
        undo.callback(uplink.close)
        # Without a broker nothing leaves the host, and a key of this run's own is as good as any.
        hasher = ObjectHasher(identity.key if identity else SecretKey(secrets.token_bytes(32), Kind.HOST))
        agent = Agent(settings, config_path, vantages, uplink, models, surfaces, saver, hasher, notifier)
        local_apis: list[LocalApi] = []
        if serve:
            local = settings.local
            try:
                local_apis.append(LocalApi(agent, Path(local.socket), local.group))
                undo.callback(local_apis[-1].close)
                if local.operator_socket:
                    local_apis.append(
                        LocalApi(agent, Path(local.operator_socket), local.operator_group, operators=True)
                    )
                    undo.callback(local_apis[-1].close)
                agent.start_metrics()
            except (LocalApiError, OSError) as error:
                raise StartError(Cause.SETTINGS, str(error)) from None
        undo.pop_all()
    log.event(
        _log, logging.INFO, "started", vantage_id=settings.vantage_id, tick_ms=settings.agent.tick_ms,
        surfaces=list(surfaces), broker=settings.broker.target, key_id=uplink.key_id,
        metrics=settings.metrics.address if serve else "", loader=chosen(settings.vantages.loader),
    )  # fmt: skip
    return Started(agent, tuple(local_apis))


def _state_directory(settings: Config) -> Path | None:
    """The writable state directory; None, said in the log, when there is none and none is needed."""
    path = Path(settings.agent.state_dir)
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o750, exist_ok=True)
    if path.is_dir() and os.access(path, os.W_OK | os.X_OK):
        return path
    if settings.broker.target:
        raise StartError(
            Cause.PRIVILEGE,
            f"agent.state_dir {path} is not a writable directory, and sealing needs one for its counter: "
            "create it for this user, or set another",
        )
    log.event(
        _log, logging.WARNING, "no_state_dir", path=path, effect="every start calibrates anew",
        advice="create it for the agent's user",
    )  # fmt: skip
    return None


def _identity(settings: Config, state_dir: Path | None) -> Identity | None:
    if not settings.broker.target or state_dir is None:
        return None
    trust = settings.trust
    try:
        operator = load_public(trust.operator, Kind.OPERATOR)
    except KeySourceError as error:
        raise StartError(Cause.SETTINGS, f"trust.operator: {error}") from None
    try:
        return Identity(trust.key, operator, Path(trust.manifests), state_dir / RECEIVED, settings.vantage_id)
    except KeySourceError as error:
        raise StartError(Cause.SETTINGS, f"trust.key: {error}") from None
    except TrustError as error:
        raise StartError(Cause.SETTINGS, f"trust.manifests: {error}") from None


def _uplink(settings: Config, identity: Identity | None, state_dir: Path | None) -> Uplink:
    if identity is None or state_dir is None:
        return NoUplink()
    try:
        counter = Counter(state_dir / "counter")
    except CounterError as error:
        raise StartError(Cause.SETTINGS, str(error)) from None
    spool = None
    try:
        spool = _spool(settings, state_dir)
        return BrokerUplink(
            settings.broker.target,
            settings.vantage_id,
            identity,
            counter,
            settings.broker.queue,
            spool=spool,
            late_rate=settings.late_rate,
            credentials=_credentials(settings),
        )
    except (ValueError, StartError) as error:
        counter.close()
        if spool is not None:
            spool.close()
        raise (
            error if isinstance(error, StartError) else StartError(Cause.SETTINGS, f"agent.vantage_id: {error}")
        ) from None


def _spool(settings: Config, state_dir: Path) -> Spool | None:
    if not settings.spool.max_mib:
        return None
    check_vantage_id(settings.vantage_id)  # it names the folder
    root = Path(settings.spool.path or state_dir / "spool")
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        return Spool(
            root / settings.vantage_id,
            max_bytes=settings.spool.max_mib << 20,
            max_age_s=settings.spool.max_age_h * 3600.0,
        )
    except OSError as error:
        raise StartError(
            Cause.PRIVILEGE, f"spool.path {root}: {error.strerror}; create it for this user, or set another"
        ) from None
    except SpoolError as error:
        raise StartError(Cause.PRIVILEGE, f"spool.path: {error}") from None


def _credentials(settings: Config) -> Callable[[], grpc.ChannelCredentials] | None:
    broker = settings.broker
    if not broker.tls_ca:
        return None
    from mvps.trust.tls import ClientTls  # only where it is used: X.509 costs memory

    tls = ClientTls(Path(broker.tls_ca), *(Path(name) if name else None for name in (broker.tls_cert, broker.tls_key)))
    try:
        tls.credentials()
    except ValueError as error:
        raise StartError(Cause.SETTINGS, f"broker.tls: {error}") from None
    return tls.credentials


def _purpose(settings: Config, model: ModelSettings, surface: str, vantages: tuple[str, ...]) -> baselines.Purpose:
    # Cut-off mode, statistic and hysteresis act on a baseline and are not learned into it.
    learned_with: dict[str, str | int | float] = {
        "calibration_ticks": model.calibration_ticks,
        "pseudo_count": model.pseudo_count,
        "labels": model.labels,
        "object_window": model.object_window,
        "object_limit": model.object_limit,
        "cgroup": settings.scope.cgroup,
        "netns": settings.scope.netns,
    }
    plan = settings.probe.plan()
    if plan and "path" in vantages:  # probing adds hop edges and fingerprints of its own
        learned_with["probe"] = plan.to_json()
    return baselines.Purpose(surface, vantages, settings.tick_ns, learned_with)
