# SPDX-License-Identifier: Apache-2.0
"""``POST /add-checkpoint`` over HTTP (C2SP tlog-witness). TLS and prefixes are left to a proxy in front.

Nothing here needs to be secret or authenticated: requests carry the log's signature, answers the witness's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web

from mvps.trust.witness import MAX_REQUEST, TEXT_TYPE, Witness

_BODY_TIMEOUT_S: Final = 10.0
_HEADER_BYTES: Final = 4096


class ListenError(Exception):
    """The address cannot be had. The message says what to do."""


class WitnessServer:
    """Serves one witness. ``address`` is where it listens, once started.

    listen: host:port or [ipv6]:port; port 0 takes a free one. say: gets one line for every alarm and failure.
    """

    def __init__(self, witness: Witness, listen: str, say: Callable[[str], None]) -> None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit():
            raise ListenError(f"{listen!r} is no address to listen on: write HOST:PORT or [IPV6]:PORT")
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = int(port)
        self._witness = witness
        self._say = say
        # One thread: requests are judged one after another, and the disk does not hold up the event loop.
        self._judge = ThreadPoolExecutor(1, "mvps-witness")
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=MAX_REQUEST)
        app.router.add_post("/add-checkpoint", self._add_checkpoint)
        runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=75.0, max_line_size=_HEADER_BYTES, max_field_size=_HEADER_BYTES
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ListenError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}; ss -ltnp shows who does"
            ) from None
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Finish what is being answered and stop. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._judge.shutdown()

    async def _add_checkpoint(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        loop = asyncio.get_running_loop()
        try:
            reply = await loop.run_in_executor(self._judge, self._witness.add_checkpoint, body, int(time.time()))
        except OSError as error:
            self._say(f"the state cannot be written, so nothing is cosigned: {error}")
            return web.Response(status=500, text="this witness cannot write its state\n")
        if reply.alarm:
            self._say(reply.alarm)
        charset = "utf-8" if reply.content_type == TEXT_TYPE else None
        return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type, charset=charset)
