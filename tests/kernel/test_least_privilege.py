# SPDX-License-Identifier: Apache-2.0
"""An ordinary user with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN attaches everything; with less it is told what lacks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ATTACH = """
import json, os, time
from mvps.vantages.registry import VANTAGES, VantageSet
vantages = VantageSet.open(VANTAGES)
vantages.read()
time.sleep(0.5)
seen = vantages.read()
status = open("/proc/self/status").read()
print(json.dumps({
    "uid": os.getuid(),
    "caps": status.split("CapEff:")[1].split()[0],
    "states": {name: [s.state, s.reason] for name, s in vantages.states().items()},
    "switches": seen["sched"].events if "sched" in seen else 0,
}))
vantages.close()
"""


ROOT = Path(__file__).resolve().parents[2]


def run_as_nobody(directory: Path, capabilities: str) -> dict[str, object]:
    """Run the attach script as uid 65534 holding exactly these capabilities.

    The checkout may lie where that user cannot go, so it is bind-mounted at ``directory`` in a mount namespace.
    """
    for tool in ("setpriv", "unshare"):
        assert shutil.which(tool), f"{tool} is missing: apt-get install util-linux"
    inside = directory / Path(sys.executable).relative_to(ROOT)
    privileges = [
        *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
        *(f"--inh-caps=-all{capabilities}", f"--ambient-caps=-all{capabilities}"),
        *(f"--bounding-set=-all{capabilities}", "--no-new-privs"),
    ]
    mounted = f'mount --bind {shlex.quote(str(ROOT))} {shlex.quote(str(directory))} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", *privileges, str(inside), "-c", ATTACH],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(directory / "agent"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mvps-privilege-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    made.rmdir()


def test_three_capabilities_are_enough(directory: Path) -> None:
    answer = run_as_nobody(directory, ",+bpf,+perfmon,+net_admin")
    assert answer["uid"] == 65534
    held = int(str(answer["caps"]), 16)
    assert held == 1 << 12 | 1 << 38 | 1 << 39  # linux/capability.h: NET_ADMIN, PERFMON, BPF
    states = answer["states"]
    assert isinstance(states, dict)
    assert {name: state for name, state in states.items() if state[0] != "ok"} == {}
    assert float(str(answer["switches"])) > 0


def test_without_them_every_vantage_says_what_it_needs(directory: Path) -> None:
    states = run_as_nobody(directory, "")["states"]
    assert isinstance(states, dict)
    assert {state for state, _ in states.values()} == {"failed"}
    assert all("CAP_BPF" in reason for _, reason in states.values()), states
