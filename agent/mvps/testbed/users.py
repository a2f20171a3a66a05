# SPDX-License-Identifier: Apache-2.0
"""The gateway's users as a process: ``python -m mvps.testbed.users '{"target": ..., "users": {...}, "rate": 1.0}'``.

Every user is a session with an address of its own, asks at random times (exponential gaps), each time over a new TCP
connection from that address, and always about its own context. Which replica answers is the kernel's multipath route's
choice. Failed requests are counted by what failed; the counts go to standard output once a second as JSON lines. It
ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

PATIENCE_S: Final = 2.0


async def ask(target: str, port: int, source: str, context: str) -> None:
    """One question over one connection. OSError or TimeoutError where it fails."""
    body = json.dumps(
        {"model": "testbed", "stream": True, "messages": [{"role": "user", "content": f"[ctx {context}] And then?"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(target, port, local_addr=(source, 0))
        try:
            writer.write(head + body)
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    if not answer.startswith(b"HTTP/1.1 200") or b"[DONE]" not in answer:
        raise ConnectionError("no whole answer")


async def _user(target: str, port: int, source: str, context: str, rate: float, seed: int, seen: Counter[str]) -> None:
    draw = random.Random(f"{seed} {context}")
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + draw.expovariate(rate), loop.time())
        await asyncio.sleep(due - loop.time())
        try:
            await ask(target, port, source, context)
            seen["answered"] += 1
        except TimeoutError:
            seen["timeout"] += 1
        except ConnectionResetError:
            seen["reset"] += 1
        except OSError:
            seen["failed"] += 1


async def _until_end(held: asyncio.StreamReader, ended: asyncio.Event) -> None:
    await held.read(-1)
    ended.set()


async def _run(given: Mapping[str, Any]) -> None:
    seen: Counter[str] = Counter()
    tasks = [
        asyncio.create_task(
            _user(given["target"], int(given["port"]), source, context, given["rate"], given["seed"], seen)
        )
        for source, context in given["users"].items()
    ]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    held = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(held), sys.stdin)
    tasks.append(asyncio.create_task(_until_end(held, ended)))
    while not ended.is_set():
        print(json.dumps({"at": time.time(), **seen}), flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"at": time.time(), **seen}), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.argv[1])))
