# SPDX-License-Identifier: Apache-2.0
"""The command as a user runs it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mvps.cli import exits
from mvps.cli.main import VERBS, overview, parser_of
from mvps.daemon.config import Config, parse
from mvps.trust.keys import Kind, generate_key
from mvps.trust.solo import make_site


def mvps(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "MVPS_DEBUG"} | environment
    return subprocess.run(
        [sys.executable, "-m", "mvps.cli.main", *words], capture_output=True, text=True, env=env, check=False
    )


def test_help_lists_every_verb_and_exit_code() -> None:
    done = mvps("--help")
    assert done.returncode == 0
    assert done.stdout == overview()
    for verb in VERBS:
        assert f"\n  {verb.name} " in done.stdout
    for meaning in exits.MEANINGS.values():
        assert meaning in done.stdout


def test_exit_codes_are_those_of_the_operations_manual() -> None:
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \| ", manual, re.M)}
    assert table == set(exits.MEANINGS) == {0, 1, 2, 3, 4, 70, 130}
    assert (exits.FOUND, exits.USAGE, exits.UNREACHABLE, exits.NOT_PERMITTED) == (1, 2, 3, 4)


def test_help_and_completion_import_nothing_heavy() -> None:
    script = (
        "import sys, contextlib, io; from mvps.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main.main(['--help'])\n"
        "for verb in main.VERBS: main.parser_of(verb)\n"
        "print([m for m in ('numpy', 'grpc', 'pydantic', 'google.protobuf', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.name)
def test_every_verb_has_help_with_an_example(verb: object) -> None:
    name = verb.name  # type: ignore[attr-defined]
    done = mvps(name, "--help")
    assert done.returncode == 0
    assert f"mvps {name}" in done.stdout.split("options:")[1]


def test_verbs_that_print_data_can_print_json() -> None:
    for verb in VERBS:
        if verb.name in ("status", "top", "snapshots", "explain", "check", "doctor", "config", "run"):
            assert "--json" in parser_of(verb).format_help()


def test_usage_errors_have_code_two_and_say_what_is_possible() -> None:
    assert mvps().returncode == exits.USAGE
    wrong = mvps("statsu")
    assert wrong.returncode == exits.USAGE
    assert 'did you mean "status"' in wrong.stderr
    assert mvps("--frobnicate").returncode == exits.USAGE
    assert mvps("status", "--frobnicate").returncode == exits.USAGE


def test_version() -> None:
    assert mvps("--version").stdout.startswith("mvps 0.")


@pytest.mark.parametrize("words", [["status"], ["top"], ["explain"], ["snapshots"], ["accept", "kernel"], ["reload"]])
def test_no_agent_has_code_three_and_advice(words: list[str], tmp_path: Path) -> None:
    done = mvps(*words, "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == exits.UNREACHABLE
    assert "systemctl start mvps-agent" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_socket_that_nobody_serves_has_code_three(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
        done = mvps("status", MVPS_SOCKET=str(tmp_path / "dead.sock"))
    assert done.returncode == exits.UNREACHABLE
    assert "does not answer" in done.stderr


def test_config_prints_a_file_that_checks_out(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(mvps("config").stdout)
    assert parse(path.read_text()) == Config()
    assert mvps("config", "--check", str(path)).returncode == 0
    assert json.loads(mvps("config", "--config", str(path), "--json").stdout)["agent"]["tick_ms"] == 1000


def test_a_bad_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[agent]\ntick = 1\n")
    for words in (
        ["config", "--check", str(path)],
        ["agent", "--config", str(path)],
        ["check", "--config", str(path)],
    ):
        done = mvps(*words)
        assert done.returncode == exits.USAGE
        assert f"{path}:2: unknown key" in done.stderr
        assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = mvps("--debug", "config", "--check", str(tmp_path / "none"))
    assert "Traceback" in done.stderr


def test_an_agent_with_a_broker_and_no_key_says_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    operator = generate_key(tmp_path / "operator.key", Kind.OPERATOR).public.text
    path.write_text(
        f'[agent]\nstate_dir = "{tmp_path}"\n[broker]\ntarget = "127.0.0.1:1"\n'
        f'[trust]\nkey = "{tmp_path}/key"\noperator = "{operator}"\n'
    )
    done = mvps("agent", "--config", str(path))
    assert done.returncode == exits.USAGE
    assert "trust.key: no key at" in done.stderr


def test_a_broker_without_a_key_or_with_a_bad_setting_has_code_two(tmp_path: Path) -> None:
    done = mvps("broker", "--listen", "127.0.0.1:0", "--key", str(tmp_path / "none"))
    assert done.returncode == exits.USAGE
    assert "mvps key generate broker" in done.stderr
    path = tmp_path / "broker.toml"
    path.write_text('listne = "x"\n')
    done = mvps("broker", "--config", str(path))
    assert done.returncode == exits.USAGE
    assert "listne" in done.stderr


def test_a_broker_without_a_manifest_says_how_to_get_one(tmp_path: Path) -> None:
    site = make_site(tmp_path, ["host-1"])
    (tmp_path / "empty").mkdir()
    done = mvps(
        *("broker", "--listen", f"unix:{tmp_path}/b.sock", "--database", str(tmp_path / "b.db")),
        *("--key", str(site.broker_key), "--operator", site.operator, "--manifests", str(tmp_path / "empty")),
    )
    assert done.returncode == exits.USAGE
    assert "mvps epoch new" in done.stderr


@pytest.mark.parametrize("tick", ["soon", "10ms", "61s", "-1s", ""])
def test_run_refuses_impossible_ticks(tick: str) -> None:
    done = mvps("run", "--tick", tick)
    assert done.returncode == exits.USAGE
    assert "write 1s" in done.stderr or "50ms to 60s" in done.stderr or "expected" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mvps.cli.main", "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(30) == 0


def test_the_agent_has_no_idle_blas_threads() -> None:
    script = (
        "import os, sys\n"
        "from mvps.cli.main import main\n"
        "main(['--version'])\n"
        "import numpy\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "1"
