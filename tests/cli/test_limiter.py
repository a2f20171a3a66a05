# SPDX-License-Identifier: Apache-2.0
"""``mvps broker attach | limits | detach``; what they do is tested in tests/limiter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from mvps.cli import exits
from mvps.cli.main import main
from mvps.trust.solo import Site, make_site

kernel = pytest.mark.kernel


@pytest.fixture
def interface() -> Iterator[str]:
    name = f"mc{os.getpid() % 1_000_000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path, ["a", "b"])
    first, second = site.manifest.vantages
    site.sign(replace(site.manifest, vantages=(first._replace(prefixes=(ip_network("10.0.0.5/32"),)), second)))
    return site


@pytest.fixture
def pins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    yield str(tmp_path / "pins")
    main(["broker", "detach", "--limiter", str(tmp_path / "pins")])
    capsys.readouterr()


@kernel
def test_the_way_from_attach_to_detach(
    site: Site, interface: str, pins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifests", str(site.manifests), "--operator", site.operator, "--limiter", pins]
    assert main(["broker", "attach", "--interface", interface, *words]) == exits.OK
    said = capsys.readouterr().err
    assert "in force for port 7447: 1 prefixes, 1 hosts expected from anywhere else" in said
    assert f"{interface}: attached native" in said
    assert main(["broker", "limits", "--limiter", pins]) == exits.OK
    shown = capsys.readouterr().out
    assert f"{interface}: attached native" in shown
    assert "plan 1, 0 proven flows" in shown
    assert main(["broker", "limits", "--json", "--limiter", pins]) == exits.OK
    answer = json.loads(capsys.readouterr().out)
    assert answer["interfaces"] == [{"name": interface, "state": "attached", "mode": "native"}]
    assert answer["verdicts"]["proven"] == {"packets": 0, "bytes": 0}
    assert main(["broker", "detach", "--limiter", pins]) == exits.OK
    assert f"removed from {interface}" in capsys.readouterr().err
    assert main(["broker", "limits", "--limiter", pins]) == exits.UNREACHABLE
    assert main(["broker", "detach", "--limiter", pins]) == exits.UNREACHABLE


@kernel
def test_options_may_stand_before_the_action_or_behind_it(
    site: Site, interface: str, pins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifests", str(site.manifests), "--operator", site.operator]
    assert main(["broker", "--limiter", pins, *words, "attach", "--interface", interface]) == exits.OK
    assert "1 prefixes" in capsys.readouterr().err
    assert main(["broker", "--limiter", pins, "limits"]) == exits.OK


@kernel
def test_the_port_is_that_of_the_settings(
    site: Site, interface: str, pins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(
        f'listen = "0.0.0.0:9999"\nlimiter = "{pins}"\nmanifests = "{site.manifests}"\noperator = "{site.operator}"\n'
    )
    attach = ["broker", "attach", "--interface", interface, "--config", str(config)]
    assert main(attach) == exits.OK
    assert "port 9999" in capsys.readouterr().err
    assert main([*attach, "--port", "9998"]) == exits.OK
    assert main(["broker", "limits", "--json", "--config", str(config)]) == exits.OK
    answer = json.loads(capsys.readouterr().out)
    assert (answer["port"], answer["plan"]) == (9998, 2)


@kernel
def test_a_severed_link_ends_with_1(site: Site, interface: str, pins: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "attach", "--interface", interface, "--limiter", pins]) == exits.OK
    subprocess.run(["ip", "link", "del", interface], check=True)
    assert main(["broker", "limits", "--limiter", pins]) == exits.FOUND
    assert f"! {interface}: severed" in capsys.readouterr().out


@kernel
def test_a_refused_mode_ends_with_4(pins: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "attach", "--interface", "lo", "--limiter", pins]) == exits.NOT_PERMITTED
    assert "--mode generic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--listen", "unix:/run/x"], "--port"),
        (["--manifests", "/nowhere"], "no directory of manifests"),
    ],
)
def test_what_cannot_be_planned_ends_with_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "attach", "--interface", "lo", *words]) == exits.USAGE
    assert says in capsys.readouterr().err


@kernel
def test_root_with_the_services_capabilities_attaches(site: Site, interface: str, tmp_path: Path) -> None:
    """As systemd/mvps-limiter.service runs it: the mount is there, and only its capabilities are left."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0750", "bpf", folder], check=True)
    unit = (Path(__file__).parents[2] / "systemd/mvps-limiter.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")]
    caps = ",".join("+" + cap.removeprefix("CAP_").lower() for cap in line.partition("=")[2].split())
    words = [
        "broker", "attach", "--interface", interface, "--limiter", str(folder), "--manifests", str(site.manifests),
        "--operator", site.operator,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            ["setpriv", f"--bounding-set=-all,{caps}", "--no-new-privs", sys.executable, "-m", "mvps.cli.main", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"{interface}: attached native" in done.stderr
        less = caps.replace("+net_admin,", "")
        refused = subprocess.run(
            ["setpriv", f"--bounding-set=-all,{less}", "--no-new-privs", sys.executable, "-m", "mvps.cli.main", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == exits.NOT_PERMITTED
        assert "CAP_NET_ADMIN" in refused.stderr
    finally:
        assert main(["broker", "detach", "--limiter", str(folder)]) == exits.OK
