# SPDX-License-Identifier: Apache-2.0
"""What is computed token by token is what the whole sentence gives; and it learns."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra `models`) is not installed")

from bench import json_transformer, json_world  # noqa: E402


@pytest.fixture(scope="module")
def model() -> json_transformer.Model:
    torch.set_num_threads(1)
    return json_transformer.train(3, 12, batch=16).model


def test_token_by_token_is_the_whole_sentence(model: json_transformer.Model) -> None:
    rng = np.random.default_rng(1)
    asked = [json_world.prompt(rng) for _ in range(9)]
    session = model.session([one.tokens for one in asked])
    live = np.arange(len(asked))
    for place in range(12):
        found = session.logits()
        for row, k in enumerate(live):
            whole = torch.tensor([[*asked[k].tokens, *asked[k].answer[:place]]])
            with torch.inference_mode():
                wanted = model._network(whole)[0, -1].numpy()
            wanted[json_world.NEVER_SAID,] = -np.inf
            np.testing.assert_allclose(found[row], wanted, atol=2e-5)
        # Rows end one by one, so that both ways of forgetting them are taken.
        going = np.flatnonzero(live != len(asked) - 1 - place) if place < 6 else np.arange(len(live))
        going = going[[len(asked[live[row]].answer) > place + 1 for row in going]]
        if len(going) < len(live):
            session.keep(going)
        live = live[going]
        session.extend(np.array([asked[k].answer[place] for k in live]))
    assert len(live) >= 2


def test_it_learns_and_the_same_seed_gives_the_same_model(model: json_transformer.Model) -> None:
    first, again = (json_transformer.train(5, 12, batch=16) for _ in range(2))
    np.testing.assert_array_equal(first.model.embeddings, again.model.embeddings)
    assert first.loss == again.loss
    assert json_transformer.train(5, 60, batch=16).loss < 0.8 * first.loss
    assert model.embeddings.shape == (len(json_world.WORDS), json_transformer.WIDTH)


def test_only_answers_are_learned() -> None:
    said, learned = json_transformer._sentences(np.random.default_rng(2), 8)
    for sentence, wanted in zip(said.tolist(), learned.tolist(), strict=True):
        ask = sentence.index(json_world.ASK)
        assert all(token == json_transformer._NOT_LEARNED for token in wanted[:ask])
        end = wanted.index(json_world.END)
        assert wanted[ask:end] == sentence[ask + 1 : end + 1]
        assert all(token == json_transformer._NOT_LEARNED for token in wanted[end + 1 :])
