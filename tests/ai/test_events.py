# SPDX-License-Identifier: Apache-2.0
"""Rounds as OpenTelemetry events: what the convention asks for, numbers and names alone, and C_4 only where it may."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.ai.test_group import Source, after, group, watching

from mvps.ai import events
from mvps.ai.config import EventsSection
from mvps.ai.group import Report


@pytest.fixture(scope="module")
def report() -> Report:
    made, source = watching(12)
    seen = after(made, source, 32, slow=1, brittle="sums")
    assert seen.family == "sums"
    return dataclasses.replace(seen, graded=(1, 4))


def plain(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Attributes of every event, decoded; AssertionError for anything that OTLP's JSON does not have."""
    (resource,) = made["resourceLogs"]
    (scope,) = resource["scopeLogs"]
    found = []
    for record in scope["logRecords"]:
        assert record["eventName"] == "gen_ai.evaluation.result"
        assert record["timeUnixNano"] == record["observedTimeUnixNano"] == "1700000000000000001"
        assert record.keys() == {"eventName", "timeUnixNano", "observedTimeUnixNano", "severityNumber", "attributes"}
        attributes = {}
        for one in record["attributes"]:
            ((kind, value),) = one["value"].items()
            assert isinstance(value, {"stringValue": str, "doubleValue": float}[kind])
            attributes[one["key"]] = value
        found.append(attributes | {"severity": record["severityNumber"]})
    return found


def events_of(report: Report, lateral: bool = False) -> dict[str, dict[str, Any]]:
    made = plain(events.request(report, "llama", 1_700_000_000_000_000_001, lateral=lateral))
    assert {one["mvps.group"] for one in made} == {"llama"}
    return {one["gen_ai.evaluation.name"]: one for one in made}


def test_every_event_has_a_name_and_says_what_the_report_said(report: Report) -> None:
    found = events_of(report)
    assert set(found) == {"mvps.c1", "mvps.c2_w2", "mvps.phase", "mvps.expected"}
    assert found["mvps.c1"]["gen_ai.evaluation.score.value"] == report.axes["c1"]
    assert found["mvps.phase"]["gen_ai.evaluation.score.label"] == report.phase
    assert found["mvps.phase"]["gen_ai.evaluation.score.value"] == report.phi_d
    assert report.phase in {"ALARM", "CRITICAL"}
    assert (found["mvps.phase"]["severity"], found["mvps.c1"]["severity"]) == (13, 9)
    assert found["mvps.expected"]["gen_ai.evaluation.score.value"] == 0.75


def test_c4_its_label_and_the_topic_are_there_only_if_the_settings_say_so(report: Report) -> None:
    assert report.c4 is not None
    closed = json.dumps(events.request(report, "llama", 1, lateral=False))
    assert not [word for word in ("c4", "sums", "COHERENT", "CBF", str(report.c4)) if word in closed]
    opened = events_of(report, lateral=True)["mvps.c4"]
    assert opened["gen_ai.evaluation.score.value"] == report.c4
    assert report.lateral == "CBF"
    assert opened["gen_ai.evaluation.score.label"] == "COHERENT_BUT_FALSE"
    assert opened["mvps.family"] == "sums"


def test_before_there_is_anything_to_say_there_is_no_event() -> None:
    assert events_of(group().step(Source(13).round())).keys() == {"mvps.expected"}


def test_a_number_that_is_none_is_left_out(report: Report) -> None:
    odd = dataclasses.replace(report, phi_d=float("nan"))
    assert "gen_ai.evaluation.score.value" not in events_of(odd)["mvps.phase"]
    json.loads(json.dumps(events.request(odd, "g", 1, lateral=True)), parse_constant=pytest.fail)


@contextlib.asynccontextmanager
async def collecting(status: int = 200) -> AsyncIterator[tuple[str, list[tuple[Any, str]]]]:
    """A collector: its address, and what it was sent, with the header Authorization."""
    taken: list[tuple[Any, str]] = []

    async def logs(request: web.Request) -> web.Response:
        taken.append((await request.json(), request.headers.get("Authorization", "")))
        return web.json_response({}, status=status)

    app = web.Application()
    app.router.add_post("/v1/logs", logs)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", taken
    finally:
        await runner.cleanup()


async def test_a_collector_gets_them_and_a_file_gets_a_line_a_round(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with collecting() as (url, taken), aiohttp.ClientSession() as session:
        sender = events.Sender(session, EventsSection(otlp=f"{url}/", file=path), "llama", "token")
        assert [await sender.send(report) for _ in range(2)] == ["", ""]
    assert [key for _, key in taken] == ["Bearer token"] * 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [body for body, _ in taken]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sender.dropped == 0


async def test_what_does_not_arrive_is_said_and_counted(report: Report, tmp_path: Path) -> None:
    async with collecting(503) as (url, _), aiohttp.ClientSession() as session:
        sender = events.Sender(session, EventsSection(otlp=url), "llama")
        assert await sender.send(report) == "events: the collector answered with status 503"
    async with aiohttp.ClientSession() as session:
        sender = events.Sender(session, EventsSection(otlp=url, file=tmp_path / "none" / "x"), "llama")
        told = await sender.send(report)
    assert "cannot be reached" in told
    assert "cannot write" in told
    assert sender.dropped == 1


def test_events_go_somewhere() -> None:
    with pytest.raises(ValueError, match="set otlp or file"):
        EventsSection()
