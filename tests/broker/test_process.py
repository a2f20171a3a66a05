# SPDX-License-Identifier: Apache-2.0
"""A broker as a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from wire_samples import settings

from mvps.broker.process import serve
from mvps.broker.server import Broker
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc


async def test_serve_runs_until_cancelled(tmp_path: Path) -> None:
    chosen, _ = settings(tmp_path)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(chosen, listening.set_result))
    async with grpc.aio.insecure_channel(await listening) as channel:
        await stream_pb2_grpc.BrokerStub(channel).ServerInfo(pb.ServerInfoRequest())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await running_again(chosen)


async def running_again(chosen: object) -> None:
    broker = Broker(chosen)  # type: ignore[arg-type]
    await broker.start()
    await broker.stop()
    await broker.stop()


@pytest.mark.parametrize(("chosen", "after"), [("SCHED_OTHER", "SCHED_BATCH"), ("SCHED_IDLE", "SCHED_IDLE")])
def test_a_scheduling_policy_that_was_chosen_stays(chosen: str, after: str) -> None:
    code = (
        "import os; from mvps.broker.process import calm_process\n"
        f"os.sched_setscheduler(0, os.{chosen}, os.sched_param(0)); calm_process()\n"
        f"assert os.sched_getscheduler(0) == os.{after}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
