# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import pytest
from aiohttp import web

from mvps.ai.encoder import Encoder
from mvps.ai.outcome import Outcome
from mvps.ai.replica import Answer, Sampling
from mvps.ai.replica import Replica as Client
from mvps.testbed.answers import Arm, tokens_of
from mvps.testbed.replica import Replica


async def served(replica: Replica) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(replica.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


async def test_the_ai_vantage_reads_it_and_the_counters_have_vllms_names() -> None:
    replica = Replica("r1", Arm.COUPLED, 100_000, seed=1)
    runner, url = await served(replica)
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(session, "r1", f"{url}/v1", "testbed", logprobs=True)

            async def ask(context: str) -> Answer:
                return await client.ask(f"[ctx {context}] Which?", Sampling())

            cold, warm, again = [await ask("user-1") for _ in range(3)]
            assert (cold.outcome, warm.outcome) == (Outcome.ANSWERED, Outcome.ANSWERED)
            assert warm.tokens == 40
            assert warm.logprobs
            words = [
                [word.partition("-")[0] for word in one.text.replace(".", "").split()] for one in (cold, warm, again)
            ]
            assert words[1] == words[2] != words[0]
            await ask("canary-1")
            counts = replica.counts
            assert (counts.users, counts.cold_users, counts.missed_tokens) == (3, 1, tokens_of("user-1"))
            assert (counts.canaries, counts.cold_canaries) == (1, 1)
            async with session.get(f"{url}/metrics") as response:
                lines = dict(
                    line.split("} ") for line in (await response.text()).splitlines() if not line.startswith("#")
                )
            queries = 3 * tokens_of("user-1") + tokens_of("canary-1")
            assert lines['vllm:prefix_cache_queries_total{model_name="testbed"'] == str(queries)
            assert lines['vllm:prefix_cache_hits_total{model_name="testbed"'] == str(2 * tokens_of("user-1"))
            vectors = await Encoder(session, f"{url}/v1", "words").encode(["w001 w002.", "w001 w002."])
            assert vectors[0].tolist() == vectors[1].tolist()
            assert (await client.ask("no context at all", Sampling())).outcome is Outcome.REFUSED
    finally:
        await runner.cleanup()


async def test_what_is_injected_takes_effect_at_once() -> None:
    replica = Replica("r1", Arm.COUPLED, 100_000, seed=1)
    runner, url = await served(replica)
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(session, "r1", f"{url}/v1", "testbed")

            async def words() -> list[str]:
                said = (await client.ask("[ctx user-1] Which?", Sampling())).text
                return [word.partition("-")[0] for word in said.replace(".", "").split()]

            await words()
            warm = await words()
            replica.inject({"capacity": 1})
            assert await words() != warm
            replica.inject({"capacity": 100_000, "corrupt": 1.0})
            await words()
            other = await words()
            assert sum(a == b for a, b in zip(other, warm, strict=True)) < 10
            replica.inject({"corrupt": 0.0})
            assert await words() == warm
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("last_words", [None, b'{"capacity": 0}\n'], ids=["end of input", "what cannot be obeyed"])
async def test_the_process_ends_with_its_input_or_with_a_command_it_cannot_obey(last_words: bytes | None) -> None:
    given = {"name": "r1", "arm": "placebo", "capacity": 10_000, "seed": 0, "port": 0, "period_s": 0.05}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mvps.testbed.replica",
        json.dumps(given),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        first = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert (first["users"], first["usage"]) == (0, 0.0)
        if last_words is not None:
            process.stdin.write(last_words)
            await process.stdin.drain()
        else:
            process.stdin.close()
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == (0 if last_words is None else 1)
        assert (b"at least a token" in said) == (last_words is not None)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least a token"):
        Replica("r1", Arm.PLACEBO, 0, seed=0)
