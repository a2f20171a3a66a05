# SPDX-License-Identifier: Apache-2.0
"""A report as OpenTelemetry events ``gen_ai.evaluation.result``, over OTLP/HTTP or as lines of a file. Off by default.

The event belongs to OpenTelemetry's conventions for generative AI (status: development): a name, a number and a label
for each evaluation. Ours are of a group of replicas and a round, not of one response, so that there is no response id
and no span to belong to. Numbers and names alone; ``explanation``, which is free text, is never written.

| gen_ai.evaluation.name | score.value | score.label |
|---|---|---|
| mvps.c1, mvps.c2_w2, ... | the axis, 1 is coherent | |
| mvps.phase | Phi_D, 1 is usual | BAU, WATCH, ALARM, CRITICAL |
| mvps.expected | share of graded answers that held what was expected | |
| mvps.c4 | C_4 of the round's topic; ``mvps.family`` names it | NONE, COHERENT_BUT_FALSE |

The last is for operators only (001 sec. 28 b), and left out unless the settings say that whoever reads the events is
one. A line, like a request, is one ExportLogsServiceRequest in OTLP's JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Final

import aiohttp

import mvps
from mvps.ai.config import EventsSection
from mvps.ai.group import Report

EVENT: Final = "gen_ai.evaluation.result"
# Axes that follow from C_4 or are other forms of one that is there.
_LEFT_OUT: Final = frozenset({"c4", "c2_w2_seed"})
_INFO, _WARN = 9, 13  # OpenTelemetry's severity numbers


def evaluations(report: Report, *, lateral: bool) -> list[dict[str, str | float]]:
    """Attributes of every event of a round, by name. lateral: C_4, its label and the topic too."""
    made: list[dict[str, str | float]] = [
        _evaluation(f"mvps.{axis}", value)
        for axis, value in report.axes.items()
        if value is not None and axis not in _LEFT_OUT
    ]
    if report.phase is not None:
        made.append(_evaluation("mvps.phase", report.phi_d, report.phase))
    wrong, graded = report.graded
    if graded:
        made.append(_evaluation("mvps.expected", 1.0 - wrong / graded))
    if lateral and report.c4 is not None:
        label = "COHERENT_BUT_FALSE" if report.lateral == "CBF" else report.lateral
        made.append(_evaluation("mvps.c4", report.c4, label) | {"mvps.family": report.family})
    return made


def request(report: Report, group: str, time_ns: int, *, lateral: bool) -> dict[str, Any]:
    """The round as an OTLP export request. group: the name of the replica group; time_ns: since the Unix epoch."""
    bad = report.phase in {"ALARM", "CRITICAL"}
    records = [
        {
            "timeUnixNano": str(time_ns),  # 64-bit numbers are strings in OTLP's JSON
            "observedTimeUnixNano": str(time_ns),
            "severityNumber": _WARN if bad and one["gen_ai.evaluation.name"] == "mvps.phase" else _INFO,
            "eventName": EVENT,
            "attributes": _attributes({**one, "mvps.group": group}),
        }
        for one in evaluations(report, lateral=lateral)
    ]
    resource = {"service.name": "mvps-ai", "service.version": mvps.__version__}
    scope = {"scope": {"name": "mvps.ai", "version": mvps.__version__}, "logRecords": records}
    return {"resourceLogs": [{"resource": {"attributes": _attributes(resource)}, "scopeLogs": [scope]}]}


class Sender:
    """Sends rounds where the settings say. session: carries no credentials. key: bearer token, "" for none.

    dropped: rounds that did not arrive; they are not sent again.
    """

    def __init__(self, session: aiohttp.ClientSession, section: EventsSection, group: str, key: str = "") -> None:
        self._session = session
        self._section = section
        self._group = group
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.dropped = 0

    async def send(self, report: Report) -> str:
        """Send one round; "" or why it did not arrive everywhere."""
        made = request(report, self._group, time.time_ns(), lateral=self._section.lateral)
        if not made["resourceLogs"][0]["scopeLogs"][0]["logRecords"]:
            return ""
        problems = [await self._post(made)] if self._section.otlp is not None else []
        if self._section.file is not None:
            problems.append(await asyncio.to_thread(_append, self._section.file, made))
        told = "; ".join(problem for problem in problems if problem)
        self.dropped += bool(told)
        return told

    async def _post(self, made: dict[str, Any]) -> str:
        url = f"{(self._section.otlp or '').rstrip('/')}/v1/logs"
        try:
            async with asyncio.timeout(self._section.timeout_s):
                # No redirects: a key meant for one collector is not to reach another.
                async with self._session.post(url, json=made, headers=self._headers, allow_redirects=False) as answer:
                    return "" if answer.status == 200 else f"events: the collector answered with status {answer.status}"
        except TimeoutError:
            return f"events: the collector did not answer within {self._section.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"events: the collector cannot be reached ({type(error).__name__})"


def _append(path: Path, made: dict[str, Any]) -> str:
    """One line more; its first one makes the file, for its owner only."""
    line = json.dumps(made, separators=(",", ":")).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"events: cannot write {path}: {error.strerror}"
    return ""


def _evaluation(name: str, value: float | None, label: str = "") -> dict[str, str | float]:
    made: dict[str, str | float] = {"gen_ai.evaluation.name": name}
    if value is not None and math.isfinite(value):
        made["gen_ai.evaluation.score.value"] = float(value)
    if label:
        made["gen_ai.evaluation.score.label"] = label
    return made


def _attributes(named: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"doubleValue": value}}
        for key, value in named.items()
    ]
