# SPDX-License-Identifier: Apache-2.0
"""A broker as a process of its own, or in a thread of another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Callable

from mvps.broker.server import Broker, BrokerError
from mvps.broker.settings import BrokerSettings


def calm_process() -> None:
    """For a process that is a broker and nothing else: fewer interruptions of the work itself.

    The collector of cycles runs rarely: messages leave none behind, and what it walks through each time grows with
    every open stream. And gRPC's many threads wake each other for every message: as batch work they do not take the
    processor from each other for that.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    # A policy that a unit or `chrt` chose stays: it is what keeps a broker ahead of whatever else its host does.
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # forbidden by a sandbox: it works without
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def serve(settings: BrokerSettings, ready: Callable[[str], None]) -> None:
    """Run a broker until cancelled. ``ready`` gets the address once it listens.

    Raises BrokerError, StoreError or KeySourceError when it cannot start.
    """
    calm_process()
    broker = Broker(settings)
    try:
        await broker.start()
        ready(broker.address)
        await broker.failed.wait()
        raise BrokerError(f"the broker has a defect and stops: {broker.failure!r}")
    finally:
        await broker.stop()


class EmbeddedBroker:
    """A broker in a thread of its own, for ``mvps run`` and for tests.

    Construction returns once it listens, or raises what :func:`serve` raises.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self.broker: Broker | None = None
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._settings = settings
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mvps-broker", daemon=True)
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.broker.address if self.broker else ""

    def stop(self) -> None:
        """Stop and wait for the end. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self._failure = error  # raised in the thread that constructs
        finally:
            self._loop.close()
            self._listening.set()

    async def _serve(self) -> None:
        broker = Broker(self._settings)
        try:
            await broker.start()
            self.broker = broker
            self._listening.set()
            await broker.failed.wait()
        finally:
            await broker.stop()
