# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.daemon import config
from mvps.daemon.config import Config
from mvps.settings.toml_file import ConfigError
from mvps.vantages.probe_plan import Destination, ProbePlan


def _problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "agent.toml")
    return [(p.line, p.message) for p in caught.value.problems]


def test_default_file_is_the_default_configuration() -> None:
    assert config.parse(config.default_file()) == Config()


def test_default_file_uncommented_is_the_default_configuration() -> None:
    text = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in config.default_file().splitlines()
    )
    assert "tick_ms = 1000" in text.splitlines()
    assert config.parse(text) == Config()


def test_every_key_is_documented_in_the_default_file() -> None:
    text = config.default_file()
    for section, table in Config().model_dump().items():
        assert f"[{section}]" in text
        for key in table:
            assert f"\n#{key} = " in text


@given(
    tick=st.integers(50, 60_000),
    vantages=st.lists(st.sampled_from(["mm", "blk", "sock"]), max_size=3, unique=True),
    cgroup=st.text("abc\"\\ é/'", max_size=8).map(lambda t: "/" + t),
)
def test_effective_settings_round_trip(tick: int, vantages: list[str], cgroup: str) -> None:
    original = Config.model_validate(
        {"agent": {"tick_ms": tick}, "vantages": {"enable": tuple(vantages)}, "scope": {"cgroup": cgroup}}
    )
    assert config.parse(config.to_toml(original)) == original


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("speed = 3\n", 1, "unknown key"),
        ("[agent]\n# a comment\ntick = 1\n", 3, "known here: tick_ms"),
        ("[agent]\ntick_ms = 49\n", 2, "greater than or equal to 50"),
        ("[agent]\ntick_ms = 60001\n", 2, "less than or equal to 60000"),
        ('[agent]\ntick_ms = "1s"\n', 2, "integer"),
        ("[agent]\ntick_ms = true\n", 2, "integer"),
        ("\n\n[agnet]\ntick_ms = 1000\n", 3, "unknown key"),
        ('agent.vantage_id = "a b"\n', 1, "letters"),
        ('[broker]\n\ntarget = "broker"\n', 3, "not an address"),
        ('[broker]\ntarget = "::1:7447"\n', 2, "brackets"),
        ('[broker]\ntarget = "unix:run/x"\n', 2, "unix:/absolute/path"),
        ('[trust]\nkey = "agent.key"\n', 2, "credential:NAME"),
        ('[local]\nsocket = "agent.sock"\n', 2, "absolute path"),
        ('[local]\nsocket = "/a"\noperator_socket = "/a"\n', 1, "a socket of its own"),
        ('[local]\noperator_group = "ops"\n', 1, "needs operator_socket"),
        ('[log]\nlevel = "loud"\n', 2, "'debug'"),
        ('broker = {target = "a:1", queue = 1}\n', 1, "broker.queue"),
        ('[probe]\nrate = 1\ndestinations = ["example.net"]\n', 3, "names are not resolved"),
        ('[probe]\ndestinations = ["198.19.0.1@95,0"]\n', 2, "no place on Earth"),
        ('[probe]\nsite = "Berlin"\n', 2, "LATITUDE,LONGITUDE"),
        ("[probe]\nrate = 51\n", 2, "less than or equal to 50"),
        ('[probe]\ndestinations = ["198.19.0.1", "198.19.0.1"]\n', 1, "given twice"),
        ("agent = 3\n", 1, "is a table"),
        ("[agent]\ntick_ms = \n", 2, "not TOML"),
        ("[agent]\ntick_ms = 1000\ntick_ms = 1000\n", 3, "not TOML"),
        ('[scope]\ncgroup = """\n/a\nqueue = 1"""\n[broker]\nqueue = 1\n', 6, "broker.queue"),
        ('[broker]\n"queue" = 1\n', 2, "broker.queue"),
    ],
)
def test_an_error_names_its_line(text: str, line: int, words: str) -> None:
    found = _problems(text)
    assert any(at == line and words in message for at, message in found), found


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    found = _problems('[log]\nlevel = "x"\n[agent]\ntick_ms = 1\nfoo = 2\n[zzz]\n')
    assert [line for line, _ in found] == [2, 4, 5, 6]


def test_the_message_has_path_and_line_in_front() -> None:
    with pytest.raises(ConfigError, match=r"^agent\.toml:2: agent\.tick_ms: "):
        config.parse("[agent]\ntick_ms = 1\n", "agent.toml")


def test_only_marked_keys_are_reloadable() -> None:
    new = config.parse('[log]\nlevel = "debug"\n[agent]\ntick_ms = 500\n[broker]\ntarget = "b:1"\nqueue = 99\n')
    safe, unsafe = config.changes(Config(), new)
    assert safe == {"log.level": "debug", "broker.target": "b:1"}
    assert unsafe == {"agent.tick_ms": 500, "broker.queue": 99}
    applied = config.apply_changes(Config(), safe)
    assert (applied.log.level, applied.broker.target) == ("debug", "b:1")
    assert applied.agent.tick_ms == 1000
    assert config.changes(applied, new)[0] == {}
    exported = config.parse("[metrics]\nlateral = true\n")
    assert config.changes(Config(), exported) == ({"metrics.lateral": True}, {})
    assert config.parse(config.to_toml(exported)) == exported


def test_probing_is_off_until_destinations_are_given() -> None:
    assert Config().probe.plan() is None
    assert config.parse('[probe]\nsite = "0,0"\nrate = 9\n').probe.plan() is None
    text = '[probe]\ndestinations = ["198.19.0.1@1.5,2", "2001:db8::1"]\nsite = "3,4"\nrate = 2\ntimeout_ms = 500\n'
    parsed = config.parse(text)
    places = (Destination("198.19.0.1", 1.5, 2.0), Destination("2001:db8::1"))
    assert parsed.probe.plan() == ProbePlan(places, (3.0, 4.0), 2.0, 4, 16, 0.5)
    assert config.parse(config.to_toml(parsed)) == parsed


def test_more_flow_identities_than_allowed_are_a_problem_of_the_section() -> None:
    many = ", ".join(f'"198.19.1.{n}"' for n in range(64))
    found = _problems(f"[probe]\nflows = 16\ndestinations = [{many}]\n")
    assert found == [(1, "probe: 64 destinations with 16 flows each are 1024 flow identities; at most 256")]


def test_vantages_are_chosen_in_registry_order() -> None:
    known = ("mm", "blk", "sock")
    assert Config().choose_vantages(known) == known
    chosen = config.parse('[vantages]\nenable = ["sock", "mm"]\ndisable = ["sock"]\n')
    assert chosen.choose_vantages(known) == ("mm",)
    with pytest.raises(ValueError, match='unknown vantage "gpu"; this version knows mm, blk, sock'):
        config.parse('[vantages]\nenable = ["gpu"]\n').choose_vantages(known)
    with pytest.raises(ValueError, match="every vantage is disabled"):
        config.parse('[vantages]\ndisable = ["mm", "blk", "sock"]\n').choose_vantages(known)


@given(st.text(max_size=80))
def test_any_text_gives_settings_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):  # and nothing else
        assert isinstance(config.parse(text), Config)
