# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from operator_desk import Site, mvps

from mvps.cli import exits


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_quarantine_and_release_in_drafts(site: Site) -> None:
    site.new("--faults", "1")
    site.approve(1, "host-a", "host-b", "host-c", "host-d")
    site.sign(1)
    site.next(2)
    done = mvps("fleet", "quarantine", site["2.draft"], "host-b")
    assert (done.returncode, done.stdout) == (exits.OK, "quarantined: host-b; 3 vantages are left\n")
    assert site.sign(2).quarantined == ("host-b",)
    site.next(3)
    assert mvps("fleet", "quarantine", site["3.draft"], "host-c").returncode == exits.OK
    words = ("epoch", "sign", site["3.draft"], "--key", site["operator.key"], "--previous", site["2.manifest"])
    refused = mvps(*words, "--out", site["3.manifest"])
    assert refused.returncode == exits.USAGE
    assert "f must be less than half" in refused.stderr
    assert mvps("fleet", "release", site["3.draft"], "host-b").stdout == "quarantined: host-c; 3 vantages are left\n"
    done = mvps(*words, "--out", site["3.manifest"])
    assert done.returncode == exits.OK
    assert "quarantined: host-c" in done.stdout + done.stderr
    assert "released: host-b" in done.stdout + done.stderr
    assert mvps("fleet", "release", site["3.draft"], "host-b").returncode == exits.USAGE


def test_it_needs_a_draft_and_no_broker(site: Site) -> None:
    site.new()
    site.approve(1, "host-a", "host-b", "host-c")
    site.sign(1)
    signed = mvps("fleet", "quarantine", site["1.manifest"], "host-a")
    assert (signed.returncode, "is signed already" in signed.stderr) == (exits.USAGE, True)
    site.next(2)
    stranger = mvps("fleet", "quarantine", site["2.draft"], "host-z")
    assert stranger.returncode == exits.USAGE
    assert "host-z" in stranger.stderr
