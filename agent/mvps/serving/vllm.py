# SPDX-License-Identifier: Apache-2.0
"""The controller as a logits processor of vLLM, for its current and its former model runner.

Loaded by an explicit flag and never as an entry point: the current runner refuses to start with a plug-in of the former
interface, and a package that registers one would stop engines that never asked for it.

    vllm serve MODEL --logits-processors mvps.serving.vllm:RunnerV2           current runner (V2)
    vllm serve MODEL --logits-processors mvps.serving.vllm:RunnerV1           former one (V1): whole batches
    vllm serve MODEL --logits-processors mvps.serving.vllm:RequestV1          former one: one call a request

``MVPS_SURPLUS`` names the settings (``settings``). A request may name its tenant and, as token ids, its goal in
``extra_args``: {"mvps_tenant": "acme", "mvps_goal": [17, 4]}.

The classes are made when they are asked for, on vLLM's own base classes: without vLLM this module can be read, and
tested against stand-ins with its documented interface. **Not run inside the engine yet.** What that interface says:
processors see float32 logits after grammar and penalties and before temperature; in V2 a slot is recycled without a
word, so that ``add_request`` begins anew; a chunk of a prompt has a row that is not sampled from. With speculative
decoding a request has several rows and the drafts are not its text: such batches are left as they are, and counted.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mvps.serving import settings
from mvps.serving.decoding import Decoding
from mvps.serving.settings import Engine
from mvps.serving.tensors import host, likeliest
from mvps.surplus.packets import PacketError, checked_name

TENANT: Final = "mvps_tenant"
GOAL: Final = "mvps_goal"
_BASES: Final = {
    "RunnerV2": ("vllm.v1.worker.gpu.sample.logits_processor", "LogitsProcessor"),
    "RunnerV1": ("vllm.v1.sample.logits_processor", "LogitsProcessor"),
    "RequestV1": ("vllm.v1.sample.logits_processor", "AdapterLogitsProcessor"),
}
_MOST_GOAL_TOKENS: Final = 4096
# Requests that the per-request interface serves at a time; it never says that one has ended.
_REQUESTS: Final = 1024

StartEngine = Callable[[int], Engine]


def start_engine(capacity: int) -> Engine:
    """The engine of the settings that the environment names."""
    return settings.start(settings.load(), capacity)


def check_arguments(sampling_params: Any) -> None:
    """ValueError for arguments of ours that cannot be used; the request is refused then."""
    given = sampling_params.extra_args or {}
    if TENANT in given:
        try:
            checked_name(given[TENANT] if isinstance(given[TENANT], str) else "")
        except PacketError:
            raise ValueError(f"{TENANT} has 1 to 64 letters, digits and . _ : / -") from None
    goal = given.get(GOAL, ())
    if not isinstance(goal, list | tuple) or len(goal) > _MOST_GOAL_TOKENS:
        raise ValueError(f"{GOAL} is a list of at most {_MOST_GOAL_TOKENS} token ids")
    if not all(isinstance(token, int) and token >= 0 for token in goal):
        raise ValueError(f"{GOAL} holds token ids")


@dataclass(slots=True)
class _Request:
    """Its slot; and its output as the engine extends it, where that is how tokens come, with how many are read."""

    slot: int
    output: Sequence[int] = ()
    seen: int = 0


class Batch:
    """Requests of an engine by the engine's own numbers, whatever its interface calls them.

    left_alone: batches and requests that could not be steered.
    """

    def __init__(self, engine: Engine) -> None:
        self.left_alone = 0
        self._decoding: Decoding = engine.decoding
        self._tenant = engine.tenant
        self._requests: dict[int, _Request] = {}
        self._serial = 0

    @property
    def room(self) -> bool:
        """Whether there is a slot for another request."""
        return self._decoding.room > 0

    def open(
        self, number: int, params: Any, prompt: Sequence[int] | npt.NDArray[np.integer], output: Sequence[int] = ()
    ) -> None:
        """A request begins under a number; whatever had it before has ended."""
        self.close(number)
        given = params.extra_args or {}
        slot = self._decoding.take_slot()
        self._serial += 1
        goal = self._decoding.mean_embedding(given[GOAL]) if given.get(GOAL) else None
        tenant = given.get(TENANT, self._tenant)
        self._decoding.open(slot, tenant, b"%d" % self._serial, params.temperature, prompt, goal)
        self._requests[number] = _Request(slot, output, len(output))

    def close(self, number: int) -> None:
        """The request under a number ended."""
        ended = self._requests.pop(number, None)
        if ended is not None:
            self._decoding.close(ended.slot)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """A request changes its number, or two change theirs; without a swap, who had the other number has ended."""
        if not swap:
            self.close(target)
        one, other = self._requests.pop(source, None), self._requests.pop(target, None)
        if one is not None:
            self._requests[target] = one
        if other is not None:
            self._requests[source] = other

    def has(self, number: int) -> bool:
        """Whether a request is open under a number."""
        return number in self._requests

    def read_outputs(self) -> None:
        """Take what the outputs have grown by, one token of each at a time."""
        while True:
            # Negative: a place for a token that the engine does not know yet.
            grown = [one for one in self._requests.values() if one.seen < len(one.output) and one.output[one.seen] >= 0]
            if not grown:
                return
            tokens = [one.output[one.seen] for one in grown]
            self._decoding.sampled(np.array([one.slot for one in grown]), np.array(tokens))
            for one in grown:
                one.seen += 1

    def steer(
        self,
        logits: Any,
        rows: Sequence[int],
        numbers: Sequence[int],
        last: Any = None,
        fresh: Collection[int] = (),
    ) -> None:
        """Move rows of logits in place, which are those of the numbers.

        last: (n,) what every row's request drew before, where that is how tokens come; not for fresh ones.
        """
        found = likeliest(logits, self._decoding.top_k, last)
        slots = np.array([self._requests[number].slot for number in numbers])
        at = np.array(rows)
        if found.last is not None:
            old = np.array([number not in fresh for number in numbers])
            self._decoding.sampled(slots[old], found.last[at[old]])
        self._decoding.step_found(logits, found, slots, at)


def runner_v2(base: Any, start: StartEngine = start_engine) -> Any:
    """The class for the current model runner, on its base class."""

    class RunnerV2(base):  # type: ignore[misc]  # vLLM's, or a stand-in
        """One processor of an engine process; slots are the runner's."""

        def __init__(self, vllm_config: Any, req_states: Any) -> None:
            super().__init__(vllm_config, req_states)
            self._states = req_states
            self._batch = Batch(start(req_states.max_num_reqs))
            self._params: dict[int, Any] = {}
            self._fresh: set[int] = set()

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """See check_arguments."""
            check_arguments(sampling_params)

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            """A request enters a slot. Its prompt is on the device: it is read with the first step."""
            self._batch.close(req_idx)
            self._params[req_idx] = sampling_params
            return True

        def apply(self, logits: Any, ctx: Any) -> Any:
            """Steer the rows that are sampled from."""
            slots = ctx.idx_mapping_np.tolist()
            if logits.shape[0] != len(slots):
                self._batch.left_alone += 1
                return logits
            reached = ctx.seq_lens_upper_bound_np.tolist()
            rows, numbers = [], []
            for row, (slot, length) in enumerate(zip(slots, reached, strict=True)):
                if length < int(self._states.prefill_len.np[slot]):
                    continue  # a chunk of its prompt
                if slot in self._params:
                    self._open(slot)
                if self._batch.has(slot):
                    rows.append(row)
                    numbers.append(slot)
            if rows:
                self._batch.steer(logits, rows, numbers, ctx.input_ids, self._fresh)
            self._fresh.clear()
            return logits

        def _open(self, slot: int) -> None:
            # With what it had said before it was preempted, if it was.
            length = int(self._states.prefill_len.np[slot])
            prompt = host(self._states.all_token_ids.gpu[slot, :length])
            self._batch.open(slot, self._params.pop(slot), prompt)
            self._fresh.add(slot)

    return RunnerV2


def runner_v1(base: Any, start: StartEngine = start_engine) -> Any:
    """The class for the former model runner, on its base class."""

    class RunnerV1(base):  # type: ignore[misc]  # vLLM's, or a stand-in
        """One processor of an engine process; requests are known by their place in the batch."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self._batch = Batch(start(vllm_config.scheduler_config.max_num_seqs))

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """See check_arguments."""
            check_arguments(sampling_params)

        def is_argmax_invariant(self) -> bool:
            """No: a sampled row's likeliest token may change, and before temperature is where we want to be."""
            return False

        def update_state(self, batch_update: Any) -> None:
            """Removed, added, moved, in this order; then what the requests drew."""
            self._batch.read_outputs()
            if batch_update is None:
                return
            for index in batch_update.removed:
                self._batch.close(index)
            for index, params, prompt, output in batch_update.added:
                self._batch.open(index, params, prompt or (), output)
            for source, target, direction in batch_update.moved:
                self._batch.move(source, target, swap=direction.name == "SWAP")

        def apply(self, logits: Any) -> Any:
            """Steer all rows that are requests."""
            rows = [row for row in range(logits.shape[0]) if self._batch.has(row)]
            if rows:
                self._batch.steer(logits, rows, rows)
            return logits

    return RunnerV1


def request_v1(base: Any, start: StartEngine = start_engine) -> Any:
    """The class for the former model runner's wrapper of one callable a request."""

    class RequestV1(base):  # type: ignore[misc]  # vLLM's, or a stand-in
        """Makes a callable (prompt, output, logits) -> logits for every request."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            super().__init__(vllm_config, device, is_pin_memory)
            self._batch = Batch(start(_REQUESTS))
            self._made = 0
            self._lock = threading.Lock()

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """See check_arguments."""
            check_arguments(sampling_params)

        def is_argmax_invariant(self) -> bool:
            """No, see RunnerV1."""
            return False

        def new_req_logits_processor(self, params: Any) -> Callable[[list[int], list[int], Any], Any]:
            """The callable of a new request. None says when a request ends: the oldest makes room for the newest."""
            with self._lock:
                number = self._made
                self._made += 1
            batch = self._batch

            def steer(prompt: list[int], output: list[int], logits: Any) -> Any:
                if not batch.has(number):
                    batch.close(number - _REQUESTS)
                    if output or not batch.room:
                        batch.left_alone += 1  # it made room for another, or finds none
                        return logits
                    batch.open(number, params, prompt, output)
                batch.read_outputs()
                batch.steer(logits.reshape(1, -1), [0], [number])
                return logits

            return steer

    return RequestV1


_MADE: Final = {"RunnerV2": runner_v2, "RunnerV1": runner_v1, "RequestV1": request_v1}


def __getattr__(name: str) -> Any:
    """The classes of this module, made on vLLM's base classes when they are asked for."""
    if name not in _MADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, base = _BASES[name]
    made = _MADE[name](getattr(importlib.import_module(module), base))
    globals()[name] = made  # the engine compares classes: there is one of each
    return made
