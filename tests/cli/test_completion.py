# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mvps.cli import completion
from mvps.cli.main import VERBS


def _script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    import argparse

    completion.run(argparse.Namespace(shell=shell))
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_verb_and_its_options_are_in_every_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = _script(shell, capsys)
    for verb in VERBS:
        assert verb.name in script
    assert "provoke" in script
    assert "baseline-ticks" in script


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_valid_for_its_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(_script(shell, capsys))
    subprocess.run([shell, "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mvps", "st"], ["status"]),
        (["mvps", "run", "--pro"], ["--provoke"]),
        (["mvps", "run", "--provoke", ""], ["mm", "blk", "cpu", "sock", "path"]),
        (["mvps", "completion", "z"], ["zsh"]),
        (["mvps", "--debug", "doc"], ["doctor"]),
        (["mvps", "key", "gen"], ["generate"]),
        (["mvps", "key", "generate", "op"], ["operator"]),
        (["mvps", "epoch", "new", "--operator-"], ["--operator-id"]),
        (["mvps", "epoch", "new", "--profile", ""], ["cwt", "trust"]),
    ],
)
def test_bash_completes(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mvps.bash"
    path.write_text(_script("bash", capsys))
    quoted = " ".join(f"'{w}'" for w in words)
    script = f'. {path}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _mvps; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
