# SPDX-License-Identifier: Apache-2.0
"""What walks add up to, and the child's life: real children, told nothing but what they would be told in service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence.axes import conditional_entropy
from mvps.coherence.causal import RoundTripFloor
from mvps.vantages.probe_plan import Destination, ProbePlan
from mvps.vantages.probing import Findings, FlowHistory, Probed, Prober, Walked, parse_walk

FAR = "198.19.100.1"
OTHER = "198.19.100.2"
PLAN = ProbePlan((Destination(FAR), Destination(OTHER)), flows=4)


def walked(*hops: str | None, reached: bool = True, flow: int = 0, rtt: float = 0.01, to: str = FAR) -> Walked:
    line = [*hops, *((to,) if reached else ())]
    return Walked(to, flow, tuple((hop, rtt) if hop else None for hop in line), reached, {"sent": len(line)})


def history(*walks: Walked) -> FlowHistory:
    made = FlowHistory(1)
    for one in walks:
        made.add(one, 0.0)
    return made


class TestFingerprints:
    def test_the_same_path_has_the_same_fingerprint_and_another_has_another(self) -> None:
        prints = list(history(walked("a", "b"), walked("a", "b"), walked("a", "c"), walked("a", "b")).recent)
        assert prints[0] == prints[1] == prints[3] != prints[2]

    def test_a_silent_hop_is_a_wildcard(self) -> None:
        made = history(walked("a", "b", "c"), walked("a", None, "c"), walked(None, "b", None))
        assert len(set(made.recent)) == 1

    def test_a_gap_is_filled_by_later_answers(self) -> None:
        made = history(walked("a", None), walked("a", "b"), walked("a", "c"))
        assert len(set(made.recent)) == 2
        assert [path.hops for path in made.paths] == [("a", "b", FAR), ("a", "c", FAR)]

    def test_a_longer_or_shorter_path_is_another(self) -> None:
        assert len(set(history(walked("a"), walked("a", "b"), walked()).recent)) == 3

    def test_a_walk_that_fell_short_agrees_as_the_beginning_of_a_path(self) -> None:
        made = history(walked("a", "b"), walked("a", reached=False), walked("a", "b"))
        assert len(set(made.recent)) == 1
        assert len(set(history(walked("a", "b"), walked("x", reached=False)).recent)) == 2
        assert len(set(history(walked("a", "b"), walked("a", "b", "x", "y", reached=False)).recent)) == 2

    def test_a_path_first_seen_in_part_is_completed(self) -> None:
        made = history(walked("a", "b", reached=False), walked("a", "b", "c"))
        assert len(set(made.recent)) == 1
        assert made.paths[0].hops == ("a", "b", "c", FAR)
        assert made.paths[0].reached
        # A destination nearer than a hop that was seen is no continuation of that path.
        assert len(set(history(walked("a", "b", reached=False), walked("a")).recent)) == 2

    def test_silence_is_no_path(self) -> None:
        made = history(walked("a"), walked(reached=False), walked(None, None, reached=False))
        assert list(made.recent) == [made.paths[0].fingerprint]

    @given(st.lists(st.lists(st.sampled_from(["a", "b", None]), max_size=4).map(tuple), min_size=1, max_size=12))
    def test_every_known_path_agrees_with_itself_and_fingerprints_do_not_collide(
        self, walks: list[tuple[str | None, ...]]
    ) -> None:
        made = history(*(walked(*hops) for hops in walks))
        assert all(path.agrees(path.hops, path.reached) for path in made.paths)
        assert len({path.fingerprint for path in made.paths}) == len(made.paths)
        assert made.recent[-1] == made.paths[-1].fingerprint

    def test_paths_of_a_flow_are_bounded_and_the_forgotten_counted(self) -> None:
        made = history(*(walked(f"hop{n}") for n in range(40)))
        assert len(made.paths) == 32
        assert made.forgotten == 8

    def test_edges_stand_while_answers_are_rationed_and_fall_when_the_destination_is_gone(self) -> None:
        made = history(walked("a", "b"))
        whole = set(made.edges.values())
        assert whole == {"self -> a", "a -> b", f"b -> {FAR}"}
        for _ in range(2):
            made.add(walked("a", reached=False), 0.0)
            assert set(made.edges.values()) == whole
        made.add(walked("a", reached=False), 0.0)
        assert set(made.edges.values()) == {"self -> a"}
        made.add(walked("a", "b"), 0.0)
        assert set(made.edges.values()) == whole

    def test_no_edge_spans_a_silent_hop(self) -> None:
        assert set(history(walked("a", None, "c")).edges.values()) == {"self -> a", f"c -> {FAR}"}


def shown(plan: ProbePlan, *walks: Walked) -> Probed:
    findings = Findings(plan)
    for one in walks:
        findings.add(one, 0.0)
    return findings.show(0.0)


class TestFindings:
    def test_healthy_multipath_is_certain_given_the_flow(self) -> None:
        even = [walked("a" if flow % 2 else "b", flow=flow) for flow in range(4) for _ in range(8)]
        seen = shown(PLAN, *even)
        assert len(seen.fingerprints) == 4
        assert conditional_entropy(seen.fingerprints.values()) == (0.0, 32.0)
        flapping = shown(PLAN, *(walked("a" if n % 2 else "b") for n in range(8)))
        entropy = conditional_entropy(flapping.fingerprints.values())
        assert entropy is not None
        assert entropy[0] > 0.9

    def test_a_changed_path_shows_and_settles(self) -> None:
        findings = Findings(PLAN)
        for _ in range(8):
            findings.add(walked("a"), 0.0)
        findings.add(walked("b"), 0.0)
        assert [len(prints) for prints in findings.show(0.0).fingerprints.values()] == [2]
        for _ in range(7):
            findings.add(walked("b"), 0.0)
        assert [len(prints) for prints in findings.show(0.0).fingerprints.values()] == [1]

    def test_nothing_is_claimed_before_the_first_walk_or_long_after_the_last(self) -> None:
        findings = Findings(PLAN)
        assert findings.show(0.0) == Probed()
        findings.add(walked("a"), 100.0)
        assert findings.show(100.0 + 2 * PLAN.longest_sweep_s - 1).objects
        late = findings.show(100.0 + 2 * PLAN.longest_sweep_s + 1)
        assert (late.objects, late.fingerprints, late.checked) == ({}, {}, 0.0)

    def test_without_places_there_is_nothing_to_check(self) -> None:
        assert shown(PLAN, walked("a")).checked == 0.0

    def test_one_impossible_round_trip_violates_the_check_of_its_kind(self) -> None:
        plan = ProbePlan((Destination(FAR, 0.0, 45.0), Destination(OTHER, 0.0, 0.0)), site=(0.0, 0.0))
        honest = shown(plan, walked("a", rtt=0.06), walked("a", rtt=0.001, to=OTHER))
        assert (honest.checked, honest.violated) == (2.0, 0.0)
        # 45 degrees of the equator are 5,004 km: 50 ms there and back. Together they are slow enough.
        lying = shown(plan, walked("a", rtt=0.04), walked("a", rtt=0.02, to=OTHER))
        assert (lying.checked, lying.violated) == (2.0, 1.0)
        assert lying.facts[f"probe.least_ms.{FAR}"] == pytest.approx(50.04, abs=0.01)
        both = shown(plan, walked("a", rtt=0.001), walked("a", rtt=0.001, to=OTHER))
        assert (both.checked, both.violated) == (2.0, 2.0)
        assert both.facts["probe.impossible_pairs"] == 1.0

    def test_the_triangle_needs_no_place_of_our_own(self) -> None:
        plan = ProbePlan((Destination(FAR, 0.0, 45.0), Destination(OTHER, 0.0, 0.0)))
        seen = shown(plan, walked("a", rtt=0.001), walked("a", rtt=0.001, to=OTHER))
        assert (seen.checked, seen.violated) == (1.0, 1.0)

    def test_the_floor_is_kept_per_path(self) -> None:
        slow = [walked("a", rtt=0.05)] * (RoundTripFloor.LEARNED + 1)
        assert (shown(PLAN, *slow).checked, shown(PLAN, *slow).violated) == (1.0, 0.0)
        assert shown(PLAN, *slow, walked("a", rtt=0.01)).violated == 1.0
        assert shown(PLAN, *slow, walked("b", rtt=0.01)).violated == 0.0

    def test_edges_have_names(self) -> None:
        findings = Findings(PLAN)
        findings.add(walked("a"), 0.0)
        objects = findings.show(0.0).objects
        assert set(findings.object_names(objects).values()) == {"self -> a", f"a -> {FAR}"}
        assert findings.object_names([1]) == {}


LINE = {"destination": FAR, "flow": 1, "hops": [["198.19.1.2", 0.001], None], "reached": False, "counts": {"sent": 2}}


def test_a_line_of_the_child_is_a_walk() -> None:
    assert parse_walk(json.dumps(LINE).encode(), PLAN) == Walked(
        FAR, 1, (("198.19.1.2", 0.001), None), False, {"sent": 2}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"destination": "198.19.7.7"},
        {"flow": 4},
        {"flow": "1"},
        {"hops": [["not an address", 0.001]]},
        {"hops": [[1, 0.001]]},
        {"hops": [["198.19.1.2", -1]]},
        {"hops": [["198.19.1.2", float("nan")]]},
        {"hops": [["198.19.1.2", 9.0]]},
        {"hops": [None] * 17},
        {"hops": [[]]},
        {"hops": 3},
        {"counts": []},
        {"counts": {str(n): n for n in range(17)}},
    ],
)
def test_a_line_that_says_something_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any reason will do: the line is counted and left)
        parse_walk(json.dumps({**LINE, **change}).encode(), PLAN)


def wait_for_failure(prober: Prober) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        degraded = prober.read().degraded
        if degraded:
            return degraded
        time.sleep(0.05)
    raise AssertionError("the prober said nothing was wrong")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.net
def test_without_scapy_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scapy.py").write_text("raise ModuleNotFoundError('no scapy here', name='scapy')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    prober = Prober(ProbePlan((Destination("127.0.0.1"),)))
    try:
        assert "pip install mvps[probe]" in wait_for_failure(prober)
        assert prober.pid == 0
        time.sleep(0.1)
        assert "pip install" in prober.read().degraded  # a reason that time does not heal: no restart
        assert prober.losses()["probe.restarts"] == 0
    finally:
        prober.close()


ALONE = """
import sys, time
from mvps.vantages.probe_plan import Destination, ProbePlan
from mvps.vantages.probing import Prober
prober = Prober(ProbePlan((Destination("127.0.0.1"),), rate=0.01))
print(prober.pid, flush=True)
while True:
    seen = prober.read()
    if seen.degraded or seen.objects:
        print(seen.degraded or "walked", flush=True)
        break
    time.sleep(0.05)
sys.stdin.read()
"""


@pytest.mark.net
def test_without_the_capability_it_says_which() -> None:
    without = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--no-new-privs")
    done = subprocess.run(
        [*without, sys.executable, "-c", ALONE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "needs CAP_NET_RAW" in done.stdout


@pytest.mark.net
class TestChild:
    def test_it_keeps_no_privilege_and_learns_none_of_our_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MVPS_TEST_SECRET", "do not pass on")
        prober = Prober(ProbePlan((Destination("127.0.0.1"),)))
        try:
            deadline = time.monotonic() + 30
            while not prober.read().fingerprints and time.monotonic() < deadline:
                time.sleep(0.05)
            status = Path(f"/proc/{prober.pid}/status").read_text()
            held = {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
            assert {held[name] for name in ("CapEff:", "CapPrm:", "CapInh:", "CapAmb:")} == {"0" * 16}
            assert "NoNewPrivs:\t1" in status
            environment = Path(f"/proc/{prober.pid}/environ").read_bytes()
            assert b"do not pass on" not in environment
            assert b"HOME=/nonexistent" in environment  # scapy makes directories where it finds a home
            assert b"127.0.0.1" not in Path(f"/proc/{prober.pid}/cmdline").read_bytes()
        finally:
            prober.close()

    def test_it_ends_with_the_agent_that_is_killed(self) -> None:
        alone = [sys.executable, "-c", ALONE]
        agent = subprocess.Popen(alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert agent.stdin is not None
        assert agent.stdout is not None
        with agent.stdin, agent.stdout:
            child = int(agent.stdout.readline())
            assert agent.stdout.readline() == "walked\n"
            assert alive(child)  # and about to wait 100 s before it has another word to say
            agent.kill()
            agent.wait()
        deadline = time.monotonic() + 30
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(child)

    def test_closing_ends_it(self) -> None:
        prober = Prober(ProbePlan((Destination("127.0.0.1"),)))
        child = prober.pid
        prober.close()
        prober.close()
        assert not alive(child)

    def test_one_that_dies_leaves_no_claims_and_is_started_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mvps.vantages.probing._RESTART_S", 0.0)
        prober = Prober(ProbePlan((Destination("127.0.0.1"),), rate=50.0))
        try:
            deadline = time.monotonic() + 30
            while not prober.read().objects and time.monotonic() < deadline:
                time.sleep(0.05)
            first, sent = prober.pid, prober.read().facts["probe.sent"]
            assert sent > 0
            os.kill(first, 9)
            degraded = wait_for_failure(prober)
            assert "started again" in degraded
            while not prober.read().objects and time.monotonic() < deadline:
                time.sleep(0.05)
            assert prober.pid not in (0, first)
            assert prober.losses()["probe.restarts"] == 1
            assert prober.read().facts["probe.sent"] > sent  # totals go on
        finally:
            prober.close()
