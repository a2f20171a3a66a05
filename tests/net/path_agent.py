# SPDX-License-Identifier: Apache-2.0
"""V_path in a namespace, one JSON line a tick."""

from __future__ import annotations

import json
from typing import Any

from mvps.testbed.lab import Lab


class Agent:
    """A process in a namespace that runs V_path there and answers one JSON line per tick it is asked for."""

    SCRIPT = """
import json, os, sys
from mvps.vantages.cells import Scope
from mvps.vantages.probe_plan import Destination, ProbePlan
from mvps.vantages.registry import VantageSet
asked = json.loads(sys.argv[1])
plan = None
if asked:
    destinations = tuple(Destination(*one) for one in asked.pop("destinations"))
    plan = ProbePlan(destinations, **asked)
vantages = VantageSet.open(["path"], Scope(netns=os.stat("/proc/self/ns/net").st_ino), probe=plan)
for line in sys.stdin:
    seen = vantages.read()
    if not seen:
        raise SystemExit(vantages.states()["path"].reason)
    keys = {k for one in seen.values() for k in one.objects or {}}
    names = vantages.object_names(keys)
    prober = vantages._running["path"]._prober
    answer = {
        name: {
            "objects": sorted(names.get(k, "?") for k in one.objects),
            "prints": {str(k): {str(p): n for p, n in v.items()} for k, v in one.fingerprints.items()},
            "checked": one.checked, "violated": one.violated, "facts": dict(one.facts),
            "events": one.events, "bins": int((one.histogram > 0).sum()),
        }
        for name, one in seen.items()
    }
    answer["state"] = [vantages.states()["path"].state, vantages.states()["path"].reason]
    answer["losses"] = vantages.losses()
    answer["child"] = prober.pid if prober else 0
    answer["paths"] = [[*key, hops] for key, hops in prober.findings.paths().items()] if prober else []
    print(json.dumps(answer), flush=True)
vantages.close()
"""

    def __init__(self, lab: Lab, host: str, plan: dict[str, Any] | None = None) -> None:
        self.process = lab.python(host, self.SCRIPT, json.dumps(plan))

    def tick(self) -> dict[str, Any]:
        """One tick's observations, the vantage's state and losses."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("tick\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the agent in the namespace ended; its words are above"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
