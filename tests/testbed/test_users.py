# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import sys
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from mvps.testbed.answers import Arm
from mvps.testbed.replica import Replica
from mvps.testbed.users import ask


async def served(replica: Replica) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(replica.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, int(runner.addresses[0][1])


async def test_a_user_asks_from_its_own_address_and_about_its_own_context() -> None:
    replica = Replica("r1", Arm.PLACEBO, 10_000, seed=0)
    runner, port = await served(replica)
    try:
        await ask("127.0.0.1", port, "127.0.0.9", "user-9")
        await ask("127.0.0.1", port, "127.0.0.9", "user-9")
        assert (replica.counts.users, replica.counts.cold_users) == (2, 1)
        with pytest.raises(ConnectionError, match="no whole answer"):
            await ask("127.0.0.1", port, "127.0.0.9", "no such context!")
    finally:
        await runner.cleanup()
    with pytest.raises(OSError, match="Connect call failed"):
        await ask("127.0.0.1", port, "127.0.0.9", "user-9")


async def test_the_process_counts_what_came_of_its_questions_and_ends_with_its_input() -> None:
    replica = Replica("r1", Arm.PLACEBO, 100_000, seed=0)
    runner, port = await served(replica)
    users = {f"127.0.0.{number}": f"user-{number}" for number in range(2, 8)}
    given = {"target": "127.0.0.1", "port": port, "rate": 20.0, "seed": 1, "users": users}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mvps.testbed.users",
        json.dumps(given),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1].get("answered", 0) < 20:
            seen.append(json.loads(await asyncio.wait_for(process.stdout.readline(), 30)))
        process.stdin.close()
        rest, _ = await asyncio.wait_for(process.communicate(), 30)
        seen += [json.loads(line) for line in rest.splitlines()]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await runner.cleanup()
    assert all(a["at"] <= b["at"] and a.get("answered", 0) <= b.get("answered", 0) for a, b in pairwise(seen))
    assert set(seen[-1]) == {"at", "answered"}
    assert replica.counts.cold_users == len(users)
