# SPDX-License-Identifier: Apache-2.0
"""The bed before anything is loaded: seats by the kernel's own routes, and what a part that does not come up says."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mvps.testbed.answers import Arm
from mvps.testbed.bed import GATEWAY, REPLICAS, SERVICE, Bed, BedError, Size, missing_commands
from mvps.testbed.lab import lab
from mvps.testbed.plan import FULL_WEIGHT

pytestmark = pytest.mark.net


def hops(made: Bed) -> dict[str, str]:
    """Next hop of each user, by the kernel."""
    lines = "".join(f"route get {SERVICE} from {source}\n" for source in made.users)
    words = ["ip", "-n", made.net.full(GATEWAY), "-batch", "-"]
    shown = subprocess.run(words, input=lines, capture_output=True, text=True, check=True).stdout
    found = (line.split() for line in shown.splitlines() if " via " in line)
    return {line[line.index("from") + 1]: line[line.index("via") + 1] for line in found}


def test_users_are_seated_evenly_and_follow_the_route(tmp_path: Path) -> None:
    assert missing_commands() == []
    with lab("mvcl-t") as net:
        made = Bed(net, tmp_path, Arm.PLACEBO, Size(users=8), seed=0)
        made.build()
        every = {f"198.18.{number}.2" for number in range(1, 5)}
        before = hops(made)
        assert Counter(before.values()) == dict.fromkeys(every, 8)
        made.route({"r1": 0, "r2": FULL_WEIGHT, "r3": FULL_WEIGHT, "r4": FULL_WEIGHT})
        withdrawn = hops(made)
        assert set(withdrawn.values()) == every - {"198.18.1.2"}
        assert set(withdrawn) == set(before)
        made.route(dict.fromkeys(REPLICAS, FULL_WEIGHT))
        assert hops(made) == before
    # Linux divides the hash space anew: users move whose own replica is still there (000 sec. 3.2 has them stay).
    others = [user for user, hop in before.items() if hop != "198.18.1.2"]
    assert 0 < sum(withdrawn[user] != before[user] for user in others) < len(others)


def test_more_users_than_addresses_are_refused(tmp_path: Path) -> None:
    with lab("mvcl-t") as net, pytest.raises(BedError, match="take fewer users"):
        Bed(net, tmp_path, Arm.PLACEBO, Size(users=120), seed=0).build()


def test_a_part_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    with lab("mvcl-t") as net:
        made = Bed(net, tmp_path, Arm.PLACEBO, Size(), seed=0)
        try:
            made._run("r1", None, "-m", "mvps.testbed.replica", given={"name": "r1", "arm": "no such arm"})
            with pytest.raises(BedError, match=r"r1 ended with 1: (.|\n)*no such arm"):
                made._wait(lambda: False, 30, "r1")
        finally:
            made.close()
