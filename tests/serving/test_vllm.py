# SPDX-License-Identifier: Apache-2.0
"""The three interfaces as vLLM documents them, on stand-ins of its base classes and runners: not in the engine."""

from __future__ import annotations

import enum
import inspect
import math
import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mvps.serving import vllm
from mvps.serving.decoding import Decoding
from mvps.serving.settings import Engine
from mvps.surplus.controller import Controller, Requests, Settings, Terrain
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import Directive
from mvps.surplus.packets import Cap

VOCABULARY, DIMENSIONS, CAPACITY = 500, 16, 4
ON = Directive("", 0.6, 0.01, 0.1, math.nan, Band.GREEN, False, False, False)
EMBEDDINGS = np.random.default_rng(11).normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)


class Desk:
    """An engine's decoding that keeps its packets."""

    def __init__(self) -> None:
        self.packets: list[Cap] = []
        terrain = Terrain(EMBEDDINGS, np.zeros((DIMENSIONS, 0), dtype=np.float32))
        self.controller = Controller(Settings(), terrain, Requests(CAPACITY, DIMENSIONS))
        self.decoding = Decoding(self.controller, "m", b"s" * 16, lambda _: ON, self.packets.append)
        self.asked = 0

    def start(self, capacity: int) -> Engine:
        self.asked = capacity
        return Engine(self.decoding, None, "default")  # type: ignore[arg-type]

    @property
    def open(self) -> int:
        return CAPACITY - self.decoding.room


def params(temperature: float = 0.8, **extra: Any) -> Any:
    return SimpleNamespace(temperature=temperature, extra_args=extra or None)


def logits(rows: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 3).astype(np.float32)


def moved(before: np.ndarray, after: np.ndarray) -> list[bool]:
    return [bool(row) for row in (before != after).any(axis=1)]


# ---- Runner V2


class BaseV2:
    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.config = vllm_config

    def apply_staged_writes(self) -> None:
        pass


class RunnerV2:
    """What the runner keeps: slots, tokens and lengths; and the context of a step."""

    def __init__(self) -> None:
        self.tokens = np.zeros((CAPACITY, 64), dtype=np.int32)
        self.prefill = np.zeros(CAPACITY, dtype=np.int32)
        self.states = SimpleNamespace(
            max_num_reqs=CAPACITY,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(np=self.prefill),
            prefill_len=SimpleNamespace(np=self.prefill),
        )

    def prompt(self, slot: int, tokens: list[int]) -> None:
        self.tokens[slot, : len(tokens)] = tokens
        self.prefill[slot] = len(tokens)

    def context(self, slots: list[int], last: list[int], reached: list[int]) -> Any:
        return SimpleNamespace(
            idx_mapping_np=np.array(slots),
            expanded_idx_mapping=np.array(slots),
            input_ids=np.array(last),
            seq_lens_upper_bound_np=np.array(reached),
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_v2_steers_its_slots_whatever_the_order_of_the_rows(desk: Desk) -> None:
    runner = RunnerV2()
    processor = vllm.runner_v2(BaseV2, desk.start)(None, runner.states)
    assert desk.asked == CAPACITY
    runner.prompt(2, [5, 9])
    runner.prompt(0, [7, 8, 9])
    assert processor.add_request(2, params(mvps_tenant="acme")) is True
    assert processor.add_request(0, params(0.0))
    before = logits(2)
    after = before.copy()
    assert processor.apply(after, runner.context([2, 0], [9, 9], [2, 3])) is after
    assert moved(before, after) == [True, False], "the second is greedy"
    after = before.copy()
    processor.apply(after, runner.context([0, 2], [3, 4], [4, 3]))
    assert moved(before, after) == [False, True]
    embedding = desk.controller.requests.embedding
    known = desk.controller.requests.known
    assert known.sum() == 2
    reach = desk.controller.settings.reach
    start = np.array([1 - reach, 1.0]) / (2 - reach) @ EMBEDDINGS[[5, 9]]
    wanted = (1 - reach) * start + reach * EMBEDDINGS[4]
    found = [bool(np.allclose(embedding[slot], wanted, atol=1e-5)) for slot in range(CAPACITY)]
    assert sum(found) == 1, "what it drew came with the step after it"


def test_v2_leaves_chunks_of_prompts_and_drafts_alone(desk: Desk) -> None:
    runner = RunnerV2()
    processor = vllm.runner_v2(BaseV2, desk.start)(None, runner.states)
    runner.prompt(1, list(range(10)))
    processor.add_request(1, params())
    before = logits(1)
    after = before.copy()
    processor.apply(after, runner.context([1], [4], [5]))
    assert (moved(before, after), desk.open) == ([False], 0)
    drafts = logits(3)
    kept = drafts.copy()
    processor.apply(kept, runner.context([1], [9, 3, 4], [12]))
    assert (drafts == kept).all()
    assert processor._batch.left_alone == 1
    processor.apply(after, runner.context([1], [9], [10]))
    assert (moved(before, after), desk.open) == ([True], 1)


def test_v2_begins_a_recycled_slot_anew(desk: Desk) -> None:
    runner = RunnerV2()
    processor = vllm.runner_v2(BaseV2, desk.start)(None, runner.states)
    for tenant in ("first", "second"):
        runner.prompt(3, [5, 9])
        processor.add_request(3, params(mvps_tenant=tenant))
        processor.apply(logits(1), runner.context([3], [9], [2]))
    assert [one.tenant for one in desk.packets] == ["first"]
    assert desk.open == 1


# ---- Runner V1


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


def update(size: int, removed: Any = (), added: Any = (), moved: Any = ()) -> Any:
    return SimpleNamespace(batch_size=size, removed=removed, added=added, moved=moved)


CONFIG = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=CAPACITY))


def test_v1_follows_its_batch(desk: Desk) -> None:
    processor = vllm.runner_v1(object, desk.start)(CONFIG, "cpu", False)
    assert processor.is_argmax_invariant() is False
    outputs: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    added = [(0, params(mvps_tenant="a"), [5, 9], outputs["a"]), (1, params(mvps_tenant="b"), None, outputs["b"])]
    processor.update_state(update(2, added=added))
    before = logits(2)
    after = before.copy()
    assert processor.apply(after) is after
    assert moved(before, after) == [True, False], "without a prompt there is no goal"
    for output in outputs.values():
        output.append(3)
    # The first one ends, the second takes its place, a third comes behind it.
    processor.update_state(
        update(
            2,
            removed=[0],
            added=[(2, params(mvps_tenant="c", mvps_goal=[17, 4]), None, outputs["c"])],
            moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL), (2, 1, MoveDirectionality.UNIDIRECTIONAL)],
        )
    )
    assert [one.tenant for one in desk.packets] == ["a"]
    after = before.copy()
    processor.apply(after)
    assert moved(before, after) == [False, True], "the goal was named"
    processor.update_state(update(2, moved=[(0, 1, MoveDirectionality.SWAP)]))
    after = before.copy()
    processor.apply(after)
    assert moved(before, after) == [True, False]
    processor.update_state(update(0, removed=[0, 1]))
    assert sorted(one.tenant for one in desk.packets) == ["a", "b", "c"]
    assert desk.open == 0


def test_v1_a_request_that_is_moved_onto_another_ends_it(desk: Desk) -> None:
    processor = vllm.runner_v1(object, desk.start)(CONFIG, "cpu", False)
    processor.update_state(update(2, added=[(i, params(mvps_tenant=f"t{i}"), [5, 9], []) for i in range(2)]))
    processor.apply(logits(2))
    processor.update_state(update(1, moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert [one.tenant for one in desk.packets] == ["t0"]
    assert desk.open == 1


def test_v1_reads_what_was_drawn_from_the_output_lists(desk: Desk) -> None:
    processor = vllm.runner_v1(object, desk.start)(CONFIG, "cpu", False)
    outputs: list[list[int]] = [[], []]
    processor.update_state(update(2, added=[(i, params(), [5, 9], outputs[i]) for i in range(2)]))
    drift = []
    for step in range(3):
        z = logits(2, step)
        processor.apply(z)
        for row, output in enumerate(outputs):
            output.append(int(z[row].argmax()))
        outputs[0].append(-1)  # a place for a token to come
        processor.update_state(None)
        outputs[0].pop()
        drift.append(desk.controller.requests.embedding.copy())
    assert not np.allclose(drift[0], drift[1])
    processor.update_state(update(0, removed=[0, 1]))
    assert [one.steps for one in desk.packets] == [3, 3]
    assert all(one.value.dlp > 0 for one in desk.packets), "both rows' choices were found"


# ---- One callable a request


class AdapterLogitsProcessor:
    """As documented: keeps a callable with its lists for every request, and applies it to its row."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.req_info: dict[int, Any] = {}

    def add(self, index: int, sampling: Any, prompt: list[int], output: list[int]) -> None:
        made = self.new_req_logits_processor(sampling)  # type: ignore[attr-defined]
        arguments = [prompt, output] if len(inspect.signature(made).parameters) == 3 else [output]
        self.req_info[index] = partial(made, *arguments)

    def apply(self, logits: Any) -> Any:
        for index, made in self.req_info.items():
            row = logits[index]
            new = made(row)
            if new is not row:
                logits[index] = new
        return logits


def test_a_callable_a_request_steers_its_own_row(desk: Desk) -> None:
    processor = vllm.request_v1(AdapterLogitsProcessor, desk.start)(None, "cpu", False)
    outputs: list[list[int]] = [[], []]
    for index in range(2):
        processor.add(index, params(), [5, 9], outputs[index])
    for seed in range(45):
        before = logits(3, seed)
        after = before.copy()
        processor.apply(after)
        assert moved(before, after) == [True, True, False]
        for row, output in enumerate(outputs):
            output.append(int(after[row].argmax()))
    assert [one.steps for one in desk.packets] == [40, 40]
    assert all(one.value.dlp > 0 for one in desk.packets)


def test_requests_beyond_the_slots_go_on_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_REQUESTS", CAPACITY)
    processor = vllm.request_v1(AdapterLogitsProcessor, desk.start)(None, "cpu", False)
    before = logits(1)
    for number in range(CAPACITY + 2):
        processor.req_info.clear()
        processor.add(0, params(), [5, 9], [])
        after = before.copy()
        processor.apply(after)
        assert moved(before, after) == [True], f"request {number} takes the oldest one's slot"
    assert desk.open == CAPACITY


# ---- What all have in common


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"mvps_tenant": "ann@example.org"}, "mvps_tenant"),
        ({"mvps_tenant": 7}, "mvps_tenant"),
        ({"mvps_goal": "a text"}, "mvps_goal"),
        ({"mvps_goal": [1, -2]}, "mvps_goal"),
        ({"mvps_goal": [1] * 5000}, "at most 4096"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_with_the_request(extra: dict[str, Any], words: str) -> None:
    made = (vllm.runner_v2(BaseV2), vllm.runner_v1(object), vllm.request_v1(AdapterLogitsProcessor))
    for processor in made:
        processor.validate_params(params())
        processor.validate_params(params(mvps_tenant="acme", mvps_goal=[1, 2]))
        with pytest.raises(ValueError, match=words):
            processor.validate_params(params(**extra))


def test_the_classes_are_found_by_their_names_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vllm.v1.worker.gpu.sample.logits_processor"
    fake = ModuleType(name)
    fake.LogitsProcessor = BaseV2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, fake)
    try:
        assert issubclass(vllm.RunnerV2, BaseV2)
        assert vllm.RunnerV2 is vllm.RunnerV2
    finally:
        vars(vllm).pop("RunnerV2", None)
    with pytest.raises(AttributeError, match="no attribute"):
        vllm.RunnerV3  # noqa: B018 - it is asked for, which is the point


def test_nothing_registers_itself_with_an_engine() -> None:
    from importlib.metadata import entry_points

    assert not [one for one in entry_points(group="vllm.logits_processors") if one.value.startswith("mvps")]
