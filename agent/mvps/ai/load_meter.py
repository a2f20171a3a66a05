# SPDX-License-Identifier: Apache-2.0
"""Reads an engine's own counters over HTTP, round by round. Whatever goes wrong is counted and costs one round."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

from mvps.ai.replica_load import ReplicaLoad, totals
from mvps.engine_metrics.exposition import MAX_BYTES

_FAILED: Final = (TimeoutError, aiohttp.ClientError, OSError, ValueError, OverflowError)


class LoadMeter:
    """One replica's counters, round by round. ``failures``: rounds without them, by cause. ``problem``: why the latest
    round has none, "" if the engine told.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str, *, key: str = "", timeout_s: float = 5.0
    ) -> None:
        self._session = session
        self._url = url
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout_s
        self._before: ReplicaLoad | None = None
        self.failures: dict[str, int] = {}
        self.problem = ""

    async def read(self, own: int = 0) -> ReplicaLoad | None:
        """What was counted since the last time, less ``own`` requests of the vantage itself. None where that is not
        known: the first time, after a reset, and whenever the engine does not tell.
        """
        try:
            now = totals(await self._fetch(), self._model)
        except _FAILED as error:
            name = type(error).__name__
            self.failures[name] = self.failures.get(name, 0) + 1
            told = str(error) or f"no answer within {self._timeout:g} s"
            self.problem = f"{self._url}: {told}; the replica's `metrics` names its engine's Prometheus page"
            self._before = None  # a difference over two rounds would count another round's requests
            return None
        self.problem = ""
        before, self._before = self._before, now
        if before is None:
            return None
        requests = now.requests - before.requests
        prompt, cached = now.prompt_tokens - before.prompt_tokens, now.cached_tokens - before.cached_tokens
        if min(requests, prompt, cached) < 0:
            return None
        return ReplicaLoad(max(requests - own, 0), prompt, min(cached, prompt))

    async def _fetch(self) -> str:
        async with asyncio.timeout(self._timeout):
            # No redirects: a key meant for one server is not to reach another.
            async with self._session.get(self._url, headers=self._headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise aiohttp.ClientError(f"status {response.status}")
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise ValueError(f"more than {MAX_BYTES} bytes")
        return body.decode()
