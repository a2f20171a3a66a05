# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess

import pytest

from mvps.testbed.lab import Lab, lab, sweep

pytestmark = pytest.mark.net


def namespaces() -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in shown.splitlines()}


def test_a_lab_goes_on_every_way_out() -> None:
    made = set()

    def use() -> None:
        with lab("mvcl-t") as net:
            build(net)
            made.update(net.full(name) for name in ("a", "b"))
            assert made <= namespaces()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        use()
    assert made
    assert not made & namespaces()


def build(net: Lab) -> None:
    net.host("a", "198.18.5.5/32")
    net.host("b")
    net.link("a", "198.18.6.1/30", "b", "198.18.6.2/30")
    net.route("b", "198.18.5.5/32", "198.18.6.1")
    assert "via 198.18.6.1" in net.inside("b", "ip", "route", "get", "198.18.5.5").stdout


def test_what_a_killed_process_left_is_swept_and_nobody_elses() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, ours = f"mvcl-u-{gone.pid}-0-r1", f"mvcl-u-{os.getpid()}-0-r1"
    for name in (left, ours):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        assert sweep("mvcl-u") == [left]
        assert ours in namespaces()
        assert left not in namespaces()
    finally:
        subprocess.run(["ip", "netns", "del", ours], check=True)
