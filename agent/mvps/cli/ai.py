# SPDX-License-Identifier: Apache-2.0
"""``mvps ai``: ask the replicas of a language model the same questions and watch how coherent they are."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mvps.cli import exits
from mvps.cli.actions import actions_of

if TYPE_CHECKING:
    import aiohttp

    from mvps.ai.config import AiConfig
    from mvps.ai.encoder import Clouds
    from mvps.ai.group import Group, Report
    from mvps.ai.load_meter import LoadMeter
    from mvps.ai.replica import Respondent
    from mvps.ai.whitebox import LocalModel, Reader
    from mvps.v1.snapshot_pb2 import Surface


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Actions of ``mvps ai``."""
    add = actions_of(parser)
    probe = add(
        "probe",
        "ask the replicas in turn, for ever, and report each round",
        "examples:\n"
        "  mvps ai probe --config /etc/mvps/ai.toml\n"
        "  mvps ai probe --config ai.toml --rounds 500 --json > rounds.jsonl\n"
        "exit codes: 0 ended, 2 bad settings, 4 the AI vantage's packages are missing",
    )
    probe.add_argument("--rounds", type=int, default=0, metavar="N", help="end after N rounds; 0: Ctrl-C")
    probe.add_argument("--json", action="store_true", help="one JSON object a round: scalars only")
    check = add(
        "check",
        "ask every replica and the encoder once",
        "examples:\n  mvps ai check --config ai.toml\n"
        "exit codes: 0 all answered, 1 one did not, 2 bad settings, 4 the AI vantage's packages are missing",
    )
    limits = add(
        "limits",
        "choose the limits of C_4 from rounds whose answers were graded",
        "examples:\n"
        "  mvps ai probe --config ai.toml --rounds 2000 --json > rounds.jsonl\n"
        "  mvps ai limits rounds.jsonl >> ai.toml\n"
        "exit codes: 0 chosen, 1 too few prompts of either kind, 2 no rounds in the files",
    )
    limits.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what mvps ai probe --json printed")
    limits.add_argument("--json", action="store_true", help="with intervals, as one JSON object")
    conformance = add(
        "conformance",
        "which of the conditions of L-AI-A4 these settings meet",
        "examples:\n  mvps ai conformance --config ai.toml\nexit codes: 0 at least one holds, 1 none, 2 bad settings",
    )
    for action in (check, conformance):
        action.add_argument("--json", action="store_true", help="as one JSON object")
    for action in (probe, check, conformance):
        action.add_argument("--config", metavar="FILE", type=Path, required=True, help="settings; see mvps ai example")
    example = add("example", "print settings to start from", "examples:\n  mvps ai example > ai.toml")
    example.add_argument("--whitebox", action="store_true", help="for checkpoints that are loaded into the process")
    parser.epilog = (
        "examples:\n"
        "  mvps ai example > ai.toml\n"
        "  mvps ai check --config ai.toml\n"
        "  mvps ai probe --config ai.toml\n"
        "exit codes: 0 done, 1 something did not answer or no condition holds, 2 bad settings, 4 packages missing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    return _ACTIONS[arguments.action](arguments)


def _read(path: Path) -> AiConfig:
    from mvps.ai import config
    from mvps.settings.toml_file import ConfigError

    try:
        return config.load(path)
    except ConfigError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None


def _need_packages() -> None:
    """Failure that says what to install where the client or the statistics cannot be imported."""
    try:
        import mvps.ai.probe  # noqa: F401 - and with it aiohttp and scipy
    except ImportError as error:
        advice = "apt-get install mvps-broker, or pip install 'mvps[ai]'"
        raise exits.Failure(exits.NOT_PERMITTED, f"{error.name} is missing: {advice}") from None


def _key(source: str) -> str:
    from mvps.ai.config import read_key

    try:
        return read_key(source)
    except ValueError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None


def _session(config: AiConfig) -> aiohttp.ClientSession:
    import aiohttp

    # Cookies of one replica are nothing to another; each question has its own time limit.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=len(config.replica) + 1),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _encoder(session: aiohttp.ClientSession, config: AiConfig) -> Clouds:
    from mvps.ai.encoder import Encoder, EncoderError

    named = config.encoder
    assert named is not None
    if named.url is not None:
        return Encoder(session, named.url, named.model, key=_key(named.key_file), timeout_s=named.timeout_s)
    from mvps.ai import sentence_model

    try:
        return sentence_model.load(named)
    except EncoderError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None


def _checkpoints(config: AiConfig) -> list[LocalModel]:
    """The replicas of a white-box group, loaded."""
    from mvps.ai import whitebox

    assert config.whitebox is not None
    try:
        return whitebox.load_all(config.whitebox)
    except whitebox.WhiteboxError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None


def _asked(session: aiohttp.ClientSession, config: AiConfig) -> tuple[list[Respondent], Clouds, Reader | None]:
    """Who is asked, what makes points of answers, and what reads tokens where weights are in this process."""
    if config.whitebox is not None:
        from mvps.ai.whitebox import LocalReplica, OwnEmbedding, Reader

        models, turn = _checkpoints(config), asyncio.Lock()
        reader = Reader(models, hidden=config.whitebox.points == "hidden", most=config.whitebox.tokens)
        return [LocalReplica(model, turn) for model in models], OwnEmbedding(models[0]), reader
    from mvps.ai.replica import Replica

    servers: list[Respondent] = [
        Replica(
            session,
            one.name,
            one.url,
            one.model,
            key=_key(one.key_file),
            timeout_s=one.timeout_s,
            logprobs=config.profile == "grey",
        )
        for one in config.replica
    ]
    return servers, _encoder(session, config), None


def _meters(session: aiohttp.ClientSession, config: AiConfig) -> dict[str, LoadMeter]:
    """What reads the engines' own counters, by replica; nothing where the settings name no page of theirs."""
    from mvps.ai.load_meter import LoadMeter

    return {
        one.name: LoadMeter(
            session,
            one.metrics,
            one.model,
            # The token is for the API: a page elsewhere does not get it.
            key=_key(one.key_file) if urlsplit(one.metrics)[:2] == urlsplit(one.url)[:2] else "",
        )
        for one in config.replica
        if one.metrics is not None
    }


def _probe(arguments: argparse.Namespace) -> int:
    _need_packages()
    config = _read(arguments.config)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_rounds(config, arguments.rounds, _as_json if arguments.json else _as_line))
    return exits.OK


async def _rounds(config: AiConfig, most: int, show: Callable[[Report], str]) -> None:
    from mvps.ai import kept, prompts
    from mvps.ai.events import Sender
    from mvps.ai.group import Group
    from mvps.ai.probe import Probe
    from mvps.ai.surface import surface_of
    from mvps.semantic import cbf, profiles
    from mvps.settings.toml_file import ConfigError

    try:
        canaries = prompts.load(config.prompts).canaries()
    except ConfigError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    limits = {cbf.POOLED: (config.c4.alarm, config.c4.watch)}
    limits |= {one.family: (one.alarm, one.watch) for one in config.limits}
    group = Group(
        config.names,
        profiles.PROFILES[config.sees],
        config.encoder_name,
        limits,
        scale_ticks=config.calibration.scale_ticks,
        baseline_ticks=config.calibration.baseline_ticks,
        cutoffs=config.calibration.cutoffs,
        hidden=config.whitebox is not None and config.whitebox.points == "hidden",
    )
    of = kept.identity(config, canaries)
    saved = _restore(config.state, of, group)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with _session(config) as session:
        replicas, encoder, reader = _asked(session, config)
        meters = _meters(session, config)
        probe = Probe(config, canaries, replicas, encoder, group, reader=reader, meters=meters)
        events = Sender(session, config.events, config.name, _key(config.events.key_file)) if config.events else None
        done = 0
        said: dict[str, str] = {}

        def once(where: str, told: str, again: str) -> None:
            """Say what went wrong once for each change, not once a round."""
            if told != said.get(where, ""):
                print(told or again, file=sys.stderr)
            said[where] = told

        due = time.monotonic()
        with contextlib.suppress(asyncio.CancelledError):
            while not most or done < most:
                report = await probe.round()
                done += 1
                if config.state is not None and not saved and (learned := group.learned) is not None:
                    saved = _keep(config.state, kept.dump(of, *learned))
                for name, meter in meters.items():
                    once(
                        f"load of {name}",
                        meter.problem and f"{name}: {meter.problem}",
                        f"{name}: its engine tells again",
                    )
                if report is not None:
                    print(show(report), flush=True)
                    if config.agent:
                        surface = surface_of(report, config.name, of[:16], config.calibration.cutoffs)
                        told = await asyncio.to_thread(_tell, config.agent, surface, _stands_ns(config))
                        once("agent", told, f"{config.agent} takes the reports again")
                    if events is not None:
                        once("events", await events.send(report), "events arrive again")
                # A round that took longer than the period is not caught up with: the replicas are busy enough.
                due = max(due + config.pace.period_s, time.monotonic())
                if not most or done < most:
                    await asyncio.sleep(due - time.monotonic())
        skipped = ", ".join(f"{count} {what}" for what, count in probe.skipped.items() if count)
        print(f"{probe.requests} questions; over the budget: {skipped or 'nothing'}", file=sys.stderr)
        for name, meter in meters.items():
            if meter.failures:
                causes = ", ".join(f"{count} {cause}" for cause, count in sorted(meter.failures.items()))
                print(f"{name}: its engine's counters could not be read: {causes}", file=sys.stderr)
        if events is not None and events.dropped:
            print(f"events of {events.dropped} rounds did not arrive", file=sys.stderr)


def _restore(path: Path | None, of: str, group: Group) -> bool:
    """Whether the group goes on with what the file holds."""
    from mvps.ai import kept

    if path is None:
        return False
    try:
        with path.open("rb") as file:
            group.restore(*kept.load(file.read(kept.MAX_BYTES + 1), of))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise exits.Failure(exits.NOT_PERMITTED, f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        print(f"{path}: {error}; calibrating anew", file=sys.stderr)
        return False
    return True


def _keep(path: Path, content: bytes) -> bool:
    """Always true: a disk that takes nothing now is not asked again every round."""
    from mvps.trust import durable

    try:
        durable.replace(path, content)
    except OSError as error:
        print(f"cannot write {path}: {error.strerror}; the next start calibrates anew", file=sys.stderr)
    return True


def _stands_ns(config: AiConfig) -> int:
    """A report stands for three periods: one lost round is no missing surface."""
    return min(round(3e9 * (config.pace.period_s + config.slowest_s)), 3600 * 10**9)


def _tell(socket: str, surface: Surface, valid_ns: int) -> str:
    """Give a surface to the agent; "" or why it does not travel."""
    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1.local_pb2 import ReportSurfaceRequest

    try:
        with agent_at(socket) as agent:
            answer = agent.ReportSurface(ReportSurfaceRequest(surface=surface, valid_ns=valid_ns), timeout=CALL_SECONDS)
    except exits.Failure as error:
        return f"not in the snapshots: {error}"
    return "" if answer.taken else f"not in the snapshots: {answer.detail}"


def _as_json(report: Report) -> str:
    return json.dumps(dataclasses.asdict(report), separators=(",", ":"))


def _as_line(report: Report) -> str:
    """One line a round, for people."""
    axes = " ".join(f"{name} {value:.2f}" for name, value in report.axes.items() if value is not None)
    state = f"{report.state} {report.done}/{report.needed}" if report.phase is None else report.phase
    parts = [f"{report.index:>6} {report.family:14} {state:16} {axes}"]
    if report.d2 is not None:
        parts.append(f"D2 {report.d2:.1f} p {report.p_value:.3g}")
    if report.brittle:
        graded = {family: f" ({wrong}/{asked} wrong)" for family, (wrong, asked) in report.golden.items()}
        named = ", ".join(family + graded.get(family, "") for family in report.brittle)
        parts.append(f"COHERENT_BUT_FALSE? {named}")
    for one in report.suspects[:2]:
        where = "" if one.family == "*" else f" on {one.family}"
        parts.append(f"{one.replica}{where}: {one.by} (p {one.p_value:.3g})")
    return "  ".join(parts)


def _check(arguments: argparse.Namespace) -> int:
    _need_packages()
    config = _read(arguments.config)
    found = asyncio.run(_ask_once(config))
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, facts in found.items():
            print(f"{name:20} {'ok' if facts['ok'] else 'FAILED':7} {facts['said']}")
    return exits.OK if all(facts["ok"] for facts in found.values()) else exits.FOUND


async def _ask_once(config: AiConfig) -> dict[str, dict[str, Any]]:
    from mvps.ai.encoder import EncoderError
    from mvps.ai.replica import Sampling

    found: dict[str, dict[str, Any]] = {}
    async with _session(config) as session:
        replicas, encoder, _ = _asked(session, config)
        for replica in replicas:
            answer = await replica.ask("Say yes.", Sampling(config.pace.max_tokens, config.pace.temperature))
            took = f"first token after {answer.ttft_s * 1e3:.0f} ms" if answer.ttft_s is not None else ""
            status = f"status {answer.status}" if answer.status not in {0, 200} else ""
            said = ", ".join(part for part in (str(answer.outcome), status, took) if part)
            found[replica.name] = {"ok": answer.outcome.comparable, "said": said}
        try:
            cloud = (await encoder.clouds(["yes"]))["yes"].cloud
            said = f"{cloud.shape[1]} dimensions" if cloud is not None else "no point for a word"
            found["encoder"] = {"ok": cloud is not None, "said": said}
        except EncoderError as error:
            found["encoder"] = {"ok": False, "said": str(error)}
    return found


def _conformance(arguments: argparse.Namespace) -> int:
    from mvps.semantic.conformance import Configuration, Model, conformance

    config = _read(arguments.config)
    encoder = Model(config.encoder_name, config.encoder_pipeline)
    found = conformance(
        Configuration(
            {config.name: encoder},
            {config.name: config.encoder_name},  # this vantage's baseline is always made with its encoder
            tuple(Model(one.model, one.pipeline) for one in config.rephraser),
            True,
        )
    )
    if arguments.json:
        conditions = [one._asdict() for one in found.conditions]
        print(json.dumps({"conditions": conditions, "holds": found.holds, "verdict": found.verdict}))
    else:
        for one in found.conditions:
            print(f"{one.name:12} {'holds' if one.holds else 'no':6} {one.reason} ({one.covers})")
        print(found.verdict)
    return exits.OK if found.holds else exits.FOUND


def _limits(arguments: argparse.Namespace) -> int:
    try:
        import numpy as np

        from mvps.semantic import cbf
    except ImportError as error:
        raise exits.Failure(exits.NOT_PERMITTED, f"{error.name} is missing: pip install 'mvps[ai]'") from None

    values, false, families = [], [], []
    for report in _reports(arguments.files):
        wrong, graded = report["graded"]
        if report["axes"].get("c4") is not None and graded:
            values.append(float(report["axes"]["c4"]))
            false.append(2 * wrong > graded)  # of the consensus: more than half of the replicas
            families.append(str(report["family"]))
    try:
        found = cbf.limits_by_topic(np.array(values), np.array(false, dtype=bool), families)
    except ValueError as error:
        raise exits.Failure(exits.FOUND, f"{len(values)} graded rounds with C_4: {error}") from None
    if arguments.json:
        print(json.dumps({family: one._asdict() | {"informative": one.informative} for family, one in found.items()}))
        return exits.OK
    for family, one in found.items():
        table = "[c4]" if family == cbf.POOLED else f'[[limits]]\nfamily = "{family}"'
        worth = "" if one.informative else ": it does not tell false from true here, do not use it"
        print(
            f"# {one.false} false, {one.true} true; F1 {_with_interval(one.f1, one.f1_interval)}, "
            f"AUROC {_with_interval(one.auroc, one.auroc_interval)}{worth}\n"
            f"{table}\nalarm = {one.alarm:.4f}\nwatch = {one.watch:.4f}\n"
        )
    return exits.OK


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _reports(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rounds in files of JSON lines; what ends a file in the middle of a line is left out."""
    for path in files:
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith("\n"):
                        break
                    report = json.loads(line)
                    if not {"axes", "family", "graded"} <= report.keys():
                        raise exits.Failure(exits.USAGE, f"{path}:{number}: this is no round of mvps ai probe --json")
                    yield report
        except OSError as error:
            raise exits.Failure(exits.USAGE, f"cannot read {path}: {error.strerror}") from None
        except (ValueError, AttributeError):
            raise exits.Failure(exits.USAGE, f"{path}: not JSON lines of mvps ai probe --json") from None


def _example(arguments: argparse.Namespace) -> int:
    from mvps.ai.config import EXAMPLE, EXAMPLE_WHITEBOX

    print(EXAMPLE_WHITEBOX if arguments.whitebox else EXAMPLE, end="")
    return exits.OK


_ACTIONS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "probe": _probe,
    "check": _check,
    "conformance": _conformance,
    "limits": _limits,
    "example": _example,
}
