# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are asked and read as transformers does it; what replicas read becomes C_3^CKA, and nothing else leaves.

The reader and the group are tested on stand-ins that make numbers of tokens; everything that is torch's, on tiny models
with random weights, where torch and transformers are installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.ai.test_group import BASE, NAMES, SCALE, Source

from mvps.ai import whitebox
from mvps.ai.config import AiConfig, CheckpointSection
from mvps.ai.group import Group, Report, Round
from mvps.ai.outcome import Outcome
from mvps.ai.probe import Probe
from mvps.ai.prompts import Canary
from mvps.ai.replica import Sampling
from mvps.ai.surface import surface_of
from mvps.ai.whitebox import LocalModel, LocalReplica, OwnEmbedding, Reader, WhiteboxError
from mvps.cli.main import main
from mvps.coherence.phase import Phase
from mvps.semantic import profiles
from mvps.semantic.reading import Reading, compare


class StandIn:
    """Makes numbers of tokens: the same of the same ones, but for noise of its own."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.noise = 0.05
        self.silent = False
        self.broken = False
        self._own = np.random.default_rng(number)

    def prompt_tokens(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def text_tokens(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def read(self, tokens: Sequence[int]) -> Reading | None:
        if self.silent:
            return None
        n, common = len(tokens), np.random.default_rng(list(tokens))
        scores = common.normal(size=(2, n, n)) + self.noise * self._own.normal(size=(2, n, n))
        weights = np.tril(np.exp(scores))
        hidden = common.normal(size=(n, 8)) + self.noise * self._own.normal(size=(n, 8))
        laws = np.exp(common.normal(size=(n, 20)) + self.noise * self._own.normal(size=(n, 20)))
        if self.broken:
            weights[:, 3] *= 2.0
            return Reading(weights, hidden, laws)
        return Reading(weights / weights.sum(-1, keepdims=True), hidden, laws / laws.sum(-1, keepdims=True))


PROMPTS = tuple(f"{family} question number {k}?" for k in range(10) for family in ("capitals", "sums", "words"))


class Bench:
    """Four stand-ins, a reader and a group; words of the answers never differ."""

    def __init__(self, hidden: bool = False) -> None:
        self.models = [StandIn(name, number) for number, name in enumerate(NAMES)]
        self.reader = Reader(self.models, hidden=hidden, most=200)
        self.group = Group(
            NAMES,
            profiles.WHITE,
            "e",
            {"*": (0.6, 0.8)},
            scale_ticks=SCALE,
            baseline_ticks=BASE,
            hidden=hidden,
        )
        self.source = Source(11)

    def round(self) -> Round:
        seen = self.source.round()
        return asyncio.run(self.reader.read_into(seen, PROMPTS[seen.index % len(PROMPTS)], "an answer"))

    def step(self, rounds: int = 1) -> Report:
        for _ in range(rounds):
            report = self.group.step(self.round())
        return report


def test_a_replica_that_reads_differently_is_an_alarm_of_c3_while_every_word_agrees() -> None:
    bench = Bench()
    report = bench.step(SCALE + BASE)
    assert report.state == "watching"
    reports = [bench.step() for _ in range(100)]
    phases = [one.phase for one in reports]
    assert set(phases) <= {"BAU", "WATCH"}
    assert phases.count("WATCH") <= 5
    quiet = reports[-1]
    assert quiet.dof == 3
    assert quiet.axes["c3_cka"] == pytest.approx(1.0, abs=0.02)
    assert quiet.axes["next_jsd"] == pytest.approx(0.0, abs=0.01)
    bench.models[2].noise = 1.0
    report = bench.step(10)
    assert Phase[report.phase or ""] >= Phase.ALARM
    assert max(report.contributions, key=lambda axis: report.contributions[axis]) == "c3_cka"
    assert report.axes["attention_jsd"] is not None
    assert quiet.axes["attention_jsd"] is not None
    assert report.axes["attention_jsd"] > 10.0 * quiet.axes["attention_jsd"]
    surface = surface_of(report, "g", "0", "empirical")
    assert surface.vector.c3 == report.axes["c3_cka"]
    assert {part.name for part in surface.decision.axis_contributions} == {"c1", "c2_w2", "c3_cka"}


def test_hidden_states_take_the_place_of_answers_and_name_the_replica() -> None:
    bench = Bench(hidden=True)
    bench.step(SCALE + BASE)
    quiet = bench.step(20)
    assert quiet.axes["c2_w2"] == pytest.approx(1.0, abs=0.02)
    assert quiet.suspects == ()
    bench.models[3].noise = 0.3
    report = bench.step(40)
    assert Phase[report.phase or ""] >= Phase.ALARM
    assert report.contributions["c2_w2"] > 10.0
    assert {one.replica for one in report.suspects} == {"d"}


def test_a_replica_that_gives_no_numbers_is_left_out_of_what_is_compared() -> None:
    bench = Bench(hidden=True)
    bench.step(3)
    bench.models[1].silent = True
    seen = bench.round()
    assert seen.cka is not None
    assert np.isnan(seen.cka[1]).all()
    assert np.isnan(seen.between[:, 1]).all()
    assert np.isfinite(seen.cka[[0, 2, 3]][:, [0, 2, 3]]).all()
    assert seen.replayed is not None
    assert np.isnan(seen.replayed).tolist() == [False, True, False, False]


def test_what_cannot_be_read_is_said_and_no_other_distance_takes_its_place() -> None:
    bench = Bench(hidden=True)
    bench.step(3)
    bench.models[0].broken = True
    seen = bench.round()
    assert "must sum to 1" in seen.reading_problem
    assert seen.cka is None
    assert np.isnan(seen.between).all()
    assert (seen.replayed, seen.unrelated.size) == (None, 0)
    assert any("nothing was read: " in note for note in bench.group.step(seen).notes)


def test_only_the_latest_families_are_remembered() -> None:
    bench = Bench()
    for number, family in enumerate(("a", "b", "c", "d", "a", "e")):
        seen = dataclasses.replace(bench.source.round(), family=family)
        made = asyncio.run(bench.reader.read_into(seen, f"question {number} of {family}", "x"))
        others = min(number, whitebox.KEPT_FAMILIES)
        assert made.cka_unpaired.size == others * len(NAMES)
    assert list(bench.reader._last) == ["d", "a", "e"]


def test_prompts_that_all_look_alike_give_no_scale_and_it_is_said() -> None:
    bench = Bench()
    for _ in range(SCALE):
        report = bench.group.step(dataclasses.replace(bench.round(), cka_unpaired=np.ones(8)))
    assert report.state == "scales"
    assert any("choose other layers" in note for note in report.notes)


def test_tokens_beyond_the_limit_are_not_read_and_counted() -> None:
    bench = Bench()
    bench.reader = Reader(bench.models, hidden=False, most=10)
    seen = bench.round()
    assert seen.tokens_left_out == len(PROMPTS[0]) + len("an answer") - 10
    assert f"{seen.tokens_left_out} tokens of this round were not read" in bench.group.step(seen).notes


def test_without_comparisons_of_different_prompts_there_is_no_null_and_it_is_said() -> None:
    bench = Bench()
    for _ in range(SCALE):
        report = bench.group.step(dataclasses.replace(bench.round(), cka_unpaired=np.zeros(0)))
    assert report.state == "scales"
    assert any("too few for C_3^CKA" in note for note in report.notes)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_package_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    if package == "transformers":
        pytest.importorskip("torch", reason="the extra `models` is not installed")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WhiteboxError, match=rf"{package} is missing: pip install 'mvps\[ai,models\]'"):
        whitebox.load(CheckpointSection(name="a", checkpoint="/none"), "middle")


# ---- with torch and transformers


@pytest.fixture
def tiny() -> Any:
    pytest.importorskip("torch", reason="the extra `models` is not installed")
    pytest.importorskip("transformers", reason="the extra `models` is not installed")
    from tests.ai import tiny_models

    tiny_models.torch.set_num_threads(1)
    return tiny_models


def model(tiny: Any, network: Any, **given: Any) -> LocalModel:
    return LocalModel("a", tiny.tokenizer(), network, **given)


def test_answers_are_those_of_transformers_and_their_log_probabilities_those_of_the_laws(tiny: Any) -> None:
    torch, network = tiny.torch, tiny.causal(3)
    asked = model(tiny, network)
    answer = asked.answer("ba de fi go", Sampling(12, 0.0))
    assert answer.outcome in {Outcome.ANSWERED, Outcome.CUT}
    tokens = asked.prompt_tokens("ba de fi go")
    assert tokens == [tiny.WORDS.index(word) for word in ("ba", "de", "fi", "go")]
    made = network.generate(torch.tensor([tokens]), do_sample=False, max_new_tokens=12)[0, 4:].tolist()
    ended = tiny.WORDS.index("<end>") in made
    expected = made[: made.index(tiny.WORDS.index("<end>"))] if ended else made
    assert asked.text_tokens(answer.text) == [token for token in expected if token > 2]
    assert answer.tokens == len(expected)
    # Teacher-forced on its own answer, the law of each row gives the next token what it was drawn with.
    read = asked.read(tokens + expected)
    assert read is not None
    rows = read.laws[len(read.laws) - len(expected) - 1 :]
    nats = [math.log(rows[t][token]) for t, token in enumerate(expected)]
    assert answer.logprobs == pytest.approx(nats, abs=1e-4)
    assert answer.ttft_s is not None
    assert answer.total_s is not None
    assert 0.0 < answer.ttft_s <= answer.total_s


def test_sampling_is_repeated_by_its_seed(tiny: Any) -> None:
    asked = model(tiny, tiny.causal(3))
    first, again, other = [asked.answer("ba de", Sampling(12, 1.5, seed)).text for seed in (1, 1, 2)]
    assert first == again != other


def test_what_is_read_is_what_transformers_gives(tiny: Any) -> None:
    torch, network = tiny.torch, tiny.causal(4)
    read = model(tiny, network).read([5, 6, 7, 8, 9, 10])
    assert read is not None
    with torch.inference_mode():
        made = network(torch.tensor([[5, 6, 7, 8, 9, 10]]), output_attentions=True, output_hidden_states=True)
    # Four layers: the middle third is the second and the third.
    assert read.attention == pytest.approx(torch.stack(made.attentions[1:3])[:, 0].mean(dim=1).numpy(), abs=1e-6)
    assert read.hidden == pytest.approx(made.hidden_states[3][0].numpy(), abs=1e-5)
    assert read.laws == pytest.approx(torch.softmax(made.logits[0], -1).numpy(), abs=1e-6)
    assert read.attention.sum(axis=-1) == pytest.approx(np.ones((2, 6)), abs=1e-5)
    assert np.triu(read.attention, 1).max() == 0.0


def test_a_disturbed_layer_shows_in_what_is_read_and_rounding_hardly(tiny: Any) -> None:
    rng = np.random.default_rng(0)
    tokens = [int(token) for token in rng.integers(3, len(tiny.WORDS), 40)]
    plain, rounded, disturbed = tiny.causal(5), tiny.causal(5).bfloat16(), tiny.disturbed(tiny.causal(5), 0.5)
    readings = [model(tiny, network).read(tokens) for network in (plain, plain, rounded, disturbed)]
    found = compare(readings)
    assert found.cka is not None
    assert found.cka[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert found.between[0, 1] == 0.0
    assert found.cka[0, 2] > 0.98
    assert found.cka[0, 3] < found.cka[0, 2] - 0.05
    assert found.between[0, 3] > 5.0 * found.between[0, 2]


def test_numbers_that_are_none_are_a_malformed_answer_and_no_reading(tiny: Any) -> None:
    network = tiny.causal(6)
    with tiny.torch.no_grad():
        network.model.layers[0].self_attn.v_proj.weight.fill_(float("nan"))
    asked = model(tiny, network)
    assert asked.answer("ba de", Sampling(5)).outcome is Outcome.MALFORMED
    assert asked.read([4, 5, 6]) is None


def test_maps_that_take_too_much_memory_are_refused_before_the_pass(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitebox, "MOST_ATTENTION_BYTES", 4 * 4 * 10 * 10 * 4)
    asked = model(tiny, tiny.causal(7))
    assert asked.read(list(range(3, 13))) is not None
    with pytest.raises(WhiteboxError, match="tokens lower"):
        asked.read(list(range(3, 14)))


def test_an_answer_that_takes_too_long_is_a_timeout(tiny: Any) -> None:
    asked = model(tiny, tiny.causal(3), timeout_s=1e-9)
    assert asked.answer("ba de fi go", Sampling(12)).outcome is Outcome.TIMEOUT


def test_points_are_the_models_own_embeddings_of_length_one(tiny: Any) -> None:
    network = tiny.causal(8)
    points, beyond = model(tiny, network).points("ba de")
    table = network.get_input_embeddings().weight.detach().double().numpy()
    rows = table[[tiny.WORDS.index("ba"), tiny.WORDS.index("de")]]
    assert points == pytest.approx(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert beyond == 0
    many, beyond = model(tiny, network).points("ba " * (whitebox.MOST_POINTS + 3))
    assert (len(many), beyond) == (whitebox.MOST_POINTS, 3)


def test_a_chat_template_is_used_where_there_is_one(tiny: Any) -> None:
    asked = model(tiny, tiny.causal(9))
    before = asked.vocabulary
    asked._tokenizer.chat_template = "{% for m in messages %}ba {{ m['content'] }} de{% endfor %}"
    pytest.importorskip("jinja2", reason="transformers fills chat templates with jinja2")
    assert asked.prompt_tokens("fi go") == asked.text_tokens("ba fi go de")
    assert asked.vocabulary != before


def settings(tmp_path: Path, tiny: Any, **inside: Any) -> AiConfig:
    folders = [
        tiny.kept(tmp_path / "a", tiny.causal(1)),
        tiny.kept(tmp_path / "b", tiny.disturbed(tiny.causal(1), 0.5)),
    ]
    group = {"replica": [{"name": f.name, "checkpoint": str(f)} for f in folders], **inside}
    pace = {"max_tokens": 2, "rephrasings": 2, "requests_per_hour": 10_000_000}
    return AiConfig.model_validate({"name": "g", "whitebox": group, "pace": pace})


CANARIES = (
    Canary("places", "ba de fi go ku", ("fi ba de go", "go ba de fi la"), "ba"),
    Canary("tints", "la me ni po su", ("me la ni po", "po la me ni"), "la"),
)


async def test_rounds_over_checkpoints_and_no_word_or_vector_leaves(tmp_path: Path, tiny: Any) -> None:
    config = settings(tmp_path, tiny, points="hidden")
    assert config.whitebox is not None
    models = whitebox.load_all(config.whitebox)
    limits = {"*": (0.6, 0.8)}
    group = Group(config.names, profiles.WHITE, config.encoder_name, limits, scale_ticks=100, baseline_ticks=60)
    turn = asyncio.Lock()
    probe = Probe(
        config,
        CANARIES,
        [LocalReplica(one, turn) for one in models],
        OwnEmbedding(models[0]),
        group,
        reader=Reader(models, hidden=True, most=100),
    )
    reports: list[Report] = []
    while len(reports) < 150 and (not reports or reports[-1].state == "scales"):
        report = await probe.round()
        assert report is not None
        reports.append(report)
    last = await probe.round()
    assert last is not None
    assert last.state == "baseline", last.notes
    axes = {name for name, value in last.axes.items() if value is not None}
    assert {"c1", "c2_w2", "c3_cka", "attention_jsd", "next_jsd"} <= axes
    assert last.axes["c3_cka"] is not None
    assert last.axes["c3_cka"] < 0.99
    wire = "\n".join(json.dumps(dataclasses.asdict(one)) for one in (*reports, last))
    for canary in CANARIES:
        assert canary.text not in wire
    assert "[[" not in wire  # no matrix


def test_checkpoints_that_cannot_be_a_group_are_refused(tmp_path: Path, tiny: Any) -> None:
    section = settings(tmp_path, tiny).whitebox
    assert section is not None
    assert [one.shape[0] for one in whitebox.load_all(section)] == [4, 4]
    others = {
        "make tokens differently": tiny.kept(
            tmp_path / "words", tiny.causal(1, tiny.WORDS[::-1]), ("<unk>", "<end>", "<pad>", *tiny.WORDS[:2:-1])
        ),
        "replicas are of one model": tiny.kept(tmp_path / "deep", tiny.causal(1, layers=6)),
    }
    for words, folder in others.items():
        other = CheckpointSection(name="c", checkpoint=str(folder))
        with pytest.raises(WhiteboxError, match=words):
            whitebox.load_all(section.model_copy(update={"replica": (section.replica[0], other)}))
    with pytest.raises(WhiteboxError, match="cannot be loaded"):
        whitebox.load(CheckpointSection(name="c", checkpoint=str(tmp_path / "none")), "middle")


def test_the_command_loads_asks_and_reads(tmp_path: Path, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings(tmp_path, tiny)
    (tmp_path / "prompts.toml").write_text(
        "".join(
            f'[[family]]\nname = "{canary.family}"\n[[family.prompt]]\ntext = "{canary.text}"\n'
            f"rephrasings = {json.dumps(canary.rephrasings)}\n"
            for canary in CANARIES
        )
    )
    path = tmp_path / "ai.toml"
    path.write_text(
        f'name = "g"\nprompts = "{tmp_path}/prompts.toml"\n[whitebox]\npoints = "hidden"\n'
        + "".join(f'[[whitebox.replica]]\nname = "{name}"\ncheckpoint = "{tmp_path}/{name}"\n' for name in ("a", "b"))
        + "[pace]\nperiod_s = 0.1\nmax_tokens = 4\nrequests_per_hour = 1000000\n"
    )
    assert main(["ai", "check", "--config", str(path)]) in {0, 1}  # a model that learned nothing may say nothing
    assert "32 dimensions" in capsys.readouterr().out
    assert main(["ai", "probe", "--config", str(path), "--rounds", "2", "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["index"] for report in reports] == [0, 1]
