# SPDX-License-Identifier: Apache-2.0
"""What `mvps agent` does around the agent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mvps.cli.agent import RT_LIMIT_US

PROGRAM = """
import os, resource, sys
from mvps.cli.agent import bound_real_time
if sys.argv[1] == "rr":
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        sys.exit(77)
bound_real_time()
print(*resource.getrlimit(resource.RLIMIT_RTTIME))
"""


def limits_under(policy: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, policy], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("a real-time policy needs CAP_SYS_NICE")
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_real_time_agent_is_bounded_once_it_runs() -> None:
    assert limits_under("rr") == [RT_LIMIT_US, RT_LIMIT_US]


def test_an_ordinary_one_is_left_alone() -> None:
    assert limits_under("other") != [RT_LIMIT_US, RT_LIMIT_US]
