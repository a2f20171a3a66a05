# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread, task or process brings about: looked at again and again, never for ever.

The limits are for a machine under load, far above what anything here takes; they say that a test hangs, and are no
statement about speed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LOOK_S = 0.01
SECONDS = 60.0


def until(condition: Callable[[], bool], what: str = "it", seconds: float = SECONDS) -> None:
    """Returns when the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds:g} s")
        time.sleep(LOOK_S)


async def comes_true(condition: Callable[[], bool], what: str = "it", seconds: float = SECONDS) -> None:
    """As until(), and lets the event loop go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds:g} s")
        await asyncio.sleep(LOOK_S)
