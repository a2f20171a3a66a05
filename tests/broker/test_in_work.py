# SPDX-License-Identifier: Apache-2.0
import asyncio

from mvps.broker.in_work import InWork


async def test_beyond_the_limit_nobody_reads_until_there_is_room() -> None:
    work = InWork(100)
    work.add(60)
    assert not work.full
    await work.room()
    work.add(60)  # was under way already
    assert work.full
    waiting = [asyncio.create_task(work.room()) for _ in range(3)]
    await asyncio.sleep(0)
    work.remove(10)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    work.remove(60)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    assert work.bytes == 50
