# SPDX-License-Identifier: Apache-2.0
"""One replica behind the OpenAI-compatible HTTP API, asked one question at a time.

vLLM, SGLang, llama.cpp and Ollama speak ``POST /chat/completions`` with server-sent events. Whatever a replica does
is an observation: a time-out, an error status, an empty or broken-off answer are outcomes, never exceptions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp

from mvps.ai.outcome import Outcome

# An answer is kept up to here and the stream closed: canaries ask for a few dozen tokens.
MAX_ANSWER_BYTES: Final = 1 << 16
# One event of a stream; an embedding of 4096 numbers as text stays below 128 KiB.
MAX_EVENT_BYTES: Final = 1 << 16
_DONE: Final = "[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replica said and when.

    ttft_s: time to the first token, total_s: to the end, both in seconds from the request; None where there was none.
    tokens: completion tokens as the server counts them, else events with text. logprobs: of the chosen tokens, where
    the server gives them. status: HTTP status, 0 when there was no response.
    """

    outcome: Outcome
    text: str = field(default="", repr=False)  # answers stay out of logs
    ttft_s: float | None = None
    total_s: float | None = None
    tokens: int = 0
    logprobs: tuple[float, ...] = ()
    status: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. seed: None leaves it to the server."""

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None


class Respondent(Protocol):
    """Whoever can be asked a question: a server, or a checkpoint in this process."""

    @property
    def name(self) -> str:
        """Of the replica, as it is reported."""

    async def ask(self, prompt: str, sampling: Sampling) -> Answer:
        """Ask once; never raises for what the replica does."""


class Replica:
    """Client of one replica.

    session: shared; it carries no credentials. url: the API's base, e.g. ``http://10.0.0.1:8000/v1``. key: bearer
    token, "" for none. timeout_s: for a whole answer. logprobs: whether to ask for them (grey box).
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        name: str,
        url: str,
        model: str,
        *,
        key: str = "",
        timeout_s: float = 30.0,
        logprobs: bool = False,
    ) -> None:
        self.name = name
        self._session = session
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout_s
        self._logprobs = logprobs

    async def ask(self, prompt: str, sampling: Sampling) -> Answer:
        """Ask once; never raises for what the replica or the network does."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self._logprobs:
            body["logprobs"] = True
        heard = _Heard(time.monotonic())
        try:
            async with asyncio.timeout(self._timeout):
                # No redirects: a key meant for one server is not to reach another.
                async with self._session.post(
                    self._url, json=body, headers=self._headers, allow_redirects=False
                ) as response:
                    heard.status = response.status
                    if response.status != 200:
                        return heard.answer(Outcome.REFUSED)
                    async for event in _events(response.content):
                        if heard.take(event):
                            break
        except TimeoutError:
            return heard.answer(Outcome.TIMEOUT)
        except _OversizedError:
            return heard.answer(Outcome.OVERSIZED)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):  # not the API we speak
            return heard.answer(Outcome.MALFORMED)
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            return heard.answer(Outcome.BROKEN if heard.status else Outcome.UNREACHABLE)
        except (aiohttp.ClientError, OSError):
            return heard.answer(Outcome.UNREACHABLE)
        return heard.answer(heard.ending())


class _OversizedError(Exception):
    """An answer or event beyond its limit."""


@dataclass(slots=True)
class _Heard:
    """What has arrived of an answer so far."""

    begun: float
    status: int = 0
    parts: list[str] = field(default_factory=list)
    size: int = 0
    first: float | None = None
    tokens: int = 0
    counted: int = 0
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    done: bool = False

    def take(self, event: str) -> bool:
        """Add one event; true when it was the last."""
        if event == _DONE:
            self.done = True
            return True
        said = json.loads(event)
        if not isinstance(said, Mapping):
            raise ValueError("an event is an object")
        if usage := said.get("usage"):
            self.counted = int(usage["completion_tokens"])
        for choice in said.get("choices", ()):
            text = choice.get("delta", {}).get("content") or ""
            if text:
                self.first = self.first if self.first is not None else time.monotonic()
                self.tokens += 1
                self.size += len(text.encode(errors="replace"))
                if self.size > MAX_ANSWER_BYTES:
                    raise _OversizedError
                self.parts.append(text)
            for token in (choice.get("logprobs") or {}).get("content") or ():
                self.logprobs.append(float(token["logprob"]))
            self.finish = choice.get("finish_reason") or self.finish
        return False

    def ending(self) -> Outcome:
        """How a stream that came to its end ended."""
        if not self.done and not self.finish:
            return Outcome.BROKEN
        if not "".join(self.parts).strip():
            return Outcome.EMPTY
        return Outcome.CUT if self.finish == "length" else Outcome.ANSWERED

    def answer(self, outcome: Outcome) -> Answer:
        now = time.monotonic()
        ended = outcome.comparable or outcome is Outcome.EMPTY
        return Answer(
            outcome,
            "".join(self.parts),
            None if self.first is None else self.first - self.begun,
            now - self.begun if ended else None,
            self.counted or self.tokens,
            tuple(self.logprobs),
            self.status,
        )


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Data of each server-sent event; comments and other fields are skipped. _OversizedError for an endless line."""
    pending = bytearray()
    data: list[str] = []
    async for chunk in stream.iter_any():
        pending += chunk
        *lines, rest = pending.split(b"\n")
        pending = bytearray(rest)
        if len(pending) > MAX_EVENT_BYTES:
            raise _OversizedError
        for raw in lines:
            if len(raw) > MAX_EVENT_BYTES:
                raise _OversizedError
            line = raw.rstrip(b"\r").decode()
            if not line:
                if data:
                    yield "\n".join(data)
                    data = []
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
    if data:  # a last event whose blank line did not come
        yield "\n".join(data)
