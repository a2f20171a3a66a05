# SPDX-License-Identifier: Apache-2.0
"""``mvps ai`` as a user runs it, against servers on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.ai.scripted import Reply, Scripted, serving

from mvps.cli.main import main


@contextlib.asynccontextmanager
async def two(tmp_path: Path, extra: str = "") -> AsyncIterator[tuple[Path, list[Scripted]]]:
    """Two replicas that say "Paris." to everything, and a settings file for them."""
    async with serving(lambda _: Reply("Paris.")) as one, serving(lambda _: Reply("Paris.")) as other:
        path = tmp_path / "ai.toml"
        replicas = "".join(
            f'[[replica]]\nname = "{name}"\nurl = "{server.url}"\nmodel = "m"\n'
            for name, server in (("a", one), ("b", other))
        )
        encoder = f'[encoder]\nurl = "{one.url}"\nmodel = "e"\n'
        path.write_text(f'name = "g"\n{replicas}{encoder}[pace]\nperiod_s = 0.1\nrequests_per_hour = 1000000\n{extra}')
        yield path, [one, other]


async def mvps(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mvps", *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_probe_reports_every_round_and_ends(tmp_path: Path) -> None:
    async with two(tmp_path) as (path, _):
        code, out, err = await mvps("ai", "probe", "--config", str(path), "--rounds", "3", "--json")
    assert code == 0, err
    reports = [json.loads(line) for line in out.splitlines()]
    assert [report["index"] for report in reports] == [0, 1, 2]
    assert reports[-1]["state"] == "scales"
    assert reports[-1]["outcomes"]["a"].keys() == {"answered"}
    assert "over the budget: nothing" in err
    assert "Paris" not in out + err


async def test_an_agent_that_is_not_there_is_said_once_and_rounds_go_on(tmp_path: Path) -> None:
    async with two(tmp_path) as (path, _):
        path.write_text(path.read_text().replace('name = "g"', f'name = "g"\nagent = "{tmp_path}/none.sock"', 1))
        code, out, err = await mvps("ai", "probe", "--config", str(path), "--rounds", "3", "--json")
    assert (code, len(out.splitlines())) == (0, 3)
    assert err.count("not in the snapshots: no agent at") == 1


async def test_rounds_become_events_where_they_are_wanted(tmp_path: Path) -> None:
    wanted = f'[events]\nfile = "{tmp_path}/events.jsonl"\notlp = "http://127.0.0.1:9"\n'
    async with two(tmp_path, wanted) as (path, _):
        prompts = tmp_path / "prompts.toml"
        prompts.write_text('[[family]]\nname = "f"\n[[family.prompt]]\ntext = "Where?"\nexpect = "Paris"\n')
        path.write_text(path.read_text().replace('name = "g"', f'name = "g"\nprompts = "{prompts}"', 1))
        code, _, err = await mvps("ai", "probe", "--config", str(path), "--rounds", "3", "--json")
    assert code == 0, err
    assert err.count("events: the collector cannot be reached") == 1
    assert "events of 3 rounds did not arrive" in err
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all("mvps.expected" in line and "Paris" not in line and "Where" not in line for line in lines)


async def test_probe_prints_a_line_for_people(tmp_path: Path) -> None:
    async with two(tmp_path) as (path, _):
        code, out, _ = await mvps("ai", "probe", "--config", str(path), "--rounds", "1")
    assert code == 0
    assert "scales 1/120" in out


async def test_check_says_who_answers(tmp_path: Path) -> None:
    async with two(tmp_path) as (path, servers):
        code, out, _ = await mvps("ai", "check", "--config", str(path))
        assert code == 0
        assert "256 dimensions" in out
        servers[1].reply = lambda _: Reply(status=401)
        code, out, _ = await mvps("ai", "check", "--config", str(path), "--json")
    found = json.loads(out)
    assert code == 1
    assert found["a"]["ok"]
    assert not found["b"]["ok"]
    assert "status 401" in found["b"]["said"]


async def test_bad_settings_and_unsafe_keys_end_with_what_to_do(tmp_path: Path) -> None:
    async with two(tmp_path, "perod_s = 1\n") as (path, _):
        code, _, err = await mvps("ai", "probe", "--config", str(path))
        assert (code, "known here" in err) == (2, True)
    key = tmp_path / "key"
    key.write_text("token")
    key.chmod(0o644)
    async with two(tmp_path) as (path, _):
        path.write_text(path.read_text().replace('model = "e"', f'model = "e"\nkey_file = "{key}"'))
        code, _, err = await mvps("ai", "check", "--config", str(path))
    assert code == 4
    assert "chmod 600" in err
    assert "token" not in err.replace("a token", "")


@pytest.mark.parametrize("package", ["scipy", "aiohttp"])
def test_a_package_that_is_missing_is_named_with_what_to_install(tmp_path: Path, package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; from mvps.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "ai", "probe", "--config", str(tmp_path / "ai.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"{package}" in done.stderr
    assert "apt-get install mvps-broker" in done.stderr


def test_example_is_what_config_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ai", "example"]) == 0
    path = tmp_path / "ai.toml"
    path.write_text(capsys.readouterr().out)
    assert main(["ai", "conformance", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert "L-AI-A4.a    no" in said
    assert "A4 conformant by" in said


def test_example_for_checkpoints_is_what_config_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ai", "example", "--whitebox"]) == 0
    path = tmp_path / "ai.toml"
    path.write_text(capsys.readouterr().out)
    assert main(["ai", "conformance", "--config", str(path)]) in {0, 1}
    assert "L-AI-A4.a" in capsys.readouterr().out


def test_a_rephraser_that_is_the_encoder_costs_condition_c(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["ai", "example"])
    path = tmp_path / "ai.toml"
    path.write_text(capsys.readouterr().out + '[[rephraser]]\nmodel = "all-minilm-l6-v2"\npipeline = "x"\n')
    main(["ai", "conformance", "--config", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["holds"] for one in found["conditions"]}["L-AI-A4.c"] is False


def rounds(tmp_path: Path, pairs: list[tuple[str, float | None, tuple[int, int]]]) -> str:
    path = tmp_path / "rounds.jsonl"
    lines = [json.dumps({"family": f, "axes": {"c4": c4}, "graded": graded}) for f, c4, graded in pairs]
    path.write_text("\n".join(lines) + "\n" + '{"family": "cut o')
    return str(path)


def test_limits_are_chosen_on_graded_rounds_and_fit_into_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs: list[tuple[str, float | None, tuple[int, int]]] = []
    for n in range(20):
        pairs += [("capitals", 0.2 + 0.01 * n, (3, 4)), ("capitals", 0.8 + 0.01 * n, (0, 4)), ("words", None, (0, 4))]
    assert main(["ai", "limits", rounds(tmp_path, pairs)]) == 0
    chosen = capsys.readouterr().out
    assert main(["ai", "example"]) == 0
    path = tmp_path / "ai.toml"
    path.write_text(capsys.readouterr().out + chosen)
    assert main(["ai", "conformance", "--config", str(path)]) == 0
    assert "20 false, 20 true; F1 1.00" in chosen
    assert 'family = "capitals"' in chosen


def test_too_few_graded_rounds_choose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few: list[tuple[str, float | None, tuple[int, int]]] = [("f", 0.1, (4, 4))] * 3 + [("f", 0.9, (0, 4))] * 30
    assert main(["ai", "limits", rounds(tmp_path, few)]) == 1
    assert "label at least" in capsys.readouterr().err
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    assert main(["ai", "limits", str(tmp_path / "other.jsonl")]) == 2
