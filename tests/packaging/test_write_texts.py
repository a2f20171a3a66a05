# SPDX-License-Identifier: Apache-2.0
"""The texts that the packages ship: a page for each verb, and settings files that hold every key and are good."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from mvps.broker.settings import BrokerSettings
from mvps.cli.main import VERBS
from mvps.daemon import config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    specification = importlib.util.spec_from_file_location("write_texts", ROOT / "packaging/write_texts.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(writer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1790000000")
        patch.setenv("COLUMNS", "100")
        writer.main(folder)
    return folder


def test_every_verb_has_a_page(texts: Path) -> None:
    assert {page.name for page in (texts / "man").iterdir()} == {"mvps.1"} | {f"mvps-{v.name}.1" for v in VERBS}
    for page in (texts / "man").iterdir():
        head = page.read_text().splitlines()[0]
        assert re.fullmatch(r'\.TH [A-Z-]+ 1 "2026-09-21" "mvps [\d.]+" "User Commands"', head)


def test_pages_name_options_of_actions_too(texts: Path) -> None:
    assert "\\-\\-interface IF" in (texts / "man/mvps-broker.1").read_text()


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff: apt-get install groff-base")
def test_pages_are_good_roff(texts: Path) -> None:
    for page in (texts / "man").iterdir():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), page.name


def test_roff_takes_no_text_for_a_request(writer: ModuleType) -> None:
    assert writer.escape(".so /etc/passwd\n'x\\n-a") == "\\&.so /etc/passwd\n\\&'x\\en\\-a"


def test_the_agent_s_settings_are_the_defaults_with_the_unit_s_key(writer: ModuleType, texts: Path) -> None:
    given = config.load(texts / "etc/agent.toml")
    assert given.trust.key == writer.UNIT_KEY
    assert given == config.Config(trust=config.TrustSection(key=writer.UNIT_KEY))
    name = writer.UNIT_KEY.removeprefix("credential:")
    assert f"LoadCredential={name}:" in (ROOT / "systemd/mvps-agent.service").read_text()


def test_the_broker_s_settings_hold_every_key_at_its_default(texts: Path) -> None:
    text = (texts / "etc/broker.toml").read_text()
    assert tomllib.loads(text) == {}
    uncommented = tomllib.loads(re.sub(r"^#(?=\w+ = )", "", text, flags=re.M))
    assert set(uncommented) == set(BrokerSettings.model_fields) - {"key"}
    set_ones = {name: value for name, value in uncommented.items() if value != ""}
    assert BrokerSettings.model_validate(set_ones) == BrokerSettings()


def test_completion_for_every_shell(texts: Path) -> None:
    assert {path.name for path in (texts / "completion").iterdir()} == {"bash", "zsh", "fish"}
