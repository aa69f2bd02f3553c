"""Places in documents and what readings there are worth: by plain hooks, vocabularies by hand, texts kept apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from char_tokenizers import char_model
from patched_texts import numbered, patched_logits

import lenscope as ls
from lenscope.experiments.patchscopes_paper import next_token_readings as readings
from lenscope.experiments.patchscopes_paper.next_token_readings import (
    LEAST_TOKENS,
    Vocabularies,
    draw_places,
    fit_map,
    held_out,
    patched,
    random_instead,
    score_readings,
    training,
    with_other_answers,
)
from lenscope.experiments.setting import Setting
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for n, text in enumerate(numbered()):
        (path / f"{n}.txt").write_text(text)
    return path


@pytest.fixture(scope="module")
def other():
    """A model of another architecture, hidden size, depth and vocabulary."""
    return char_model()


def number_of(text):
    found = {w for w in text.split() if w.isdigit() and len(w) == 3}
    # a stretch may begin or end within a number
    whole = [n for n in found if text.split().count(n) > 1]
    return whole[0] if len(whole) == 1 else None


def test_held_out_texts_are_of_different_documents_that_no_map_is_fitted_on(lm64, folder, monkeypatch):
    setting = Setting(lm64, text=(str(folder),))
    held, train = held_out(setting, 30), training(setting, 100_000)
    originals = numbered()
    for text in (*held, *train):
        assert any(text in original for original in originals)
    known = [number_of(text) for text in held]
    assert None not in known
    assert len(set(known)) == len(held) >= 8
    used = {number_of(text) for text in train} - {None}
    assert len(used) > 60
    assert not used & set(known)
    assert held_out(setting, 8) == held[:8]
    assert max(len(lm64.encoder.ids(text)) for text in train) <= 64
    monkeypatch.setattr(readings, "FEWEST", 1000)
    with pytest.raises(ls.LenscopeError, match="documents of more than 8 tokens are held out; give text of more"):
        held_out(setting, 30)


def test_texts_are_drawn_from_the_models_own_samples_too(lm64):
    setting = Setting(lm64)
    held, train = held_out(setting, 8), training(setting, 128)
    assert len(held) == 8
    assert not set(held) & set(train)
    assert all(len(lm64.encoder.ids(text)) > LEAST_TOKENS - 3 for text in held)


def test_places_end_at_the_same_character_in_both_models(lm64, other):
    texts = [text[:60] for text in numbered(30)]
    sources, targets = draw_places(lm64, other, texts, 1)
    assert len(sources) == len(targets) == 30
    for source, target, text in zip(sources, targets, texts, strict=True):
        assert source.text == target.text
        assert text.startswith(source.text)
        assert LEAST_TOKENS < len(source) < len(target)
        assert source.ids == lm64.prompt(text).ids[: len(source)]
        assert target.ids == other.prompt(text).ids[: len(target)]
    assert len({len(s) for s in sources}) > 8
    again, elsewhere = draw_places(lm64, other, texts, 1)[0], draw_places(lm64, other, texts, 2)[0]
    assert [s.ids for s in again] == [s.ids for s in sources]
    assert [s.ids for s in elsewhere] != [s.ids for s in sources]
    # a text that is too short has no place
    assert draw_places(lm64, lm64, ["the cat", texts[0]])[0][0].text in texts[0]


def test_scores_equal_the_models_own_log_probabilities(lm64):
    prompts = [lm64.prompt(text[:40]) for text in numbered(19)]
    final = lm64.read(prompts, lm64.n_layers, -1)[lm64.n_layers, -1]
    ids = np.random.default_rng(0).integers(0, 300, (19, 3, 2))
    ids[4, 1, 1] = -1
    expected, right = np.zeros(ids.shape), np.zeros(ids.shape)
    for n, prompt in enumerate(prompts):
        with torch.no_grad():
            log_p = lm64.model(torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
        ids[n, 0, 0] = int(log_p.argmax())
        for place in np.ndindex(3, 2):
            token = ids[(n, *place)]
            expected[(n, *place)] = -float(log_p[token] if token >= 0 else log_p.min())
            right[(n, *place)] = token == int(log_p.argmax())
    got = score_readings(lm64, final, ids)
    np.testing.assert_allclose(got.surprisal, expected, atol=1e-10)
    assert np.array_equal(got.precision, right)
    assert got.precision[:, 0, 0].all()


def test_a_token_counts_as_the_longest_of_the_other_vocabulary_that_it_begins_with(lm64, other):
    def ids(lm, *texts):
        return np.array([lm.encoder.token_id(text) for text in texts])

    there = Vocabularies(lm64, other)
    found = there.first(ids(lm64, " cat", "c", "The").reshape(3, 1))
    assert found.tolist() == ids(other, " ", "c", "T").reshape(3, 1).tolist()
    assert there.whole(ids(lm64, " cat", "c", "The")).tolist() == [False, True, False]
    back = Vocabularies(other, lm64)
    assert back.first(ids(other, "c", " ")).tolist() == ids(lm64, "c", " ").tolist()
    assert back.whole(ids(other, "c", " ")).all()
    # the BOS of the one is text for the other, and begins with "<"
    assert back.first(np.array([other.tokenizer.bos_token_id])).tolist() == [lm64.encoder.token_id("<s>")]
    same = Vocabularies(lm64, lm64)
    every = np.arange(305)
    assert np.array_equal(same.first(every), every)
    assert same.whole(every).all()
    # of equal texts the one that the tokenizer writes, as Gemma's "," beside its token for the byte of a comma
    texts = ["a", ",", "b", ",", "b"]
    written = {",": [3], "b": [2, 2]}
    encoder = SimpleNamespace(
        vocab_size=5, tokens=lambda ids: [texts[i] for i in ids], ids_behind=lambda text: written[text]
    )
    bytewise = SimpleNamespace(encoder=encoder, tokenizer=None)
    assert Vocabularies(lm64, bytewise).first(ids(lm64, ",", "a", "b", "c")).tolist() == [3, 0, 2, -1]
    # of several beginnings the longest
    back.ids, back.longest = {"c": 1, "ca": 2}, 2
    back.lm = lm64
    assert back.first(ids(lm64, "c", " cat", "an")).tolist() == [1, -1, -1]
    back.ids, back.longest = {" ": 1, " ca": 2, "ca": 3}, 3
    assert back.first(ids(lm64, " cat")).tolist() == [2]


def test_patched_predictions_equal_plain_hooks(lm64, other):
    draw = torch.Generator().manual_seed(0)
    for lm in (lm64, other):
        prompts = [lm.prompt(text) for text in ("the cat sat on", "?", "Paris is the capital of")]
        rows = [(t, n) for t in range(3) for n in range(lm.n_layers + 1) for _ in range(4)]
        vectors = torch.randn(len(rows), lm.hidden_size, generator=draw, dtype=torch.float64) * 3
        target, layer = np.array(rows).T
        got = patched(lm, prompts, target, layer, vectors)
        expected = [int(patched_logits(lm, prompts[t], n, v).argmax()) for (t, n), v in zip(rows, vectors, strict=True)]
        assert got.tolist() == expected
        assert len(set(expected)) > 8


def test_maps_are_fitted_before_the_final_norm_and_kept(lm64, folder, tmp_path, monkeypatch):
    setting = Setting(lm64, text=(str(folder),), folder=tmp_path)
    asked = []

    def texts(tokens):
        asked.append(tokens)
        return numbered(60, seed=3)

    f, r2 = fit_map(setting, "there", (lm64, lm64), ([0, 3], [2, 4]), 5000, texts)
    assert r2.shape == (2, 2)
    assert sorted(f.weights) == [(s, t) for s in (0, 3) for t in (2, 4)]
    # R² by hand at other places of the same kind of text: of the last layer before the final norm, and after it
    prompts, _ = draw_places(lm64, lm64, [t[:60] for t in numbered(60, seed=9)], 0)
    ids = [torch.tensor([p.ids]) for p in prompts]
    with torch.no_grad():
        kept = [lm64.model(i, output_hidden_states=True).hidden_states[3][0, -1] for i in ids]
        y = torch.stack([lm64.read(p, 4, -1)[4, -1] for p in prompts])
        normed = lm64.model.model.norm(y)
    found = [
        1 - float(((of - f(torch.stack(kept), 3, 4)) ** 2).sum() / ((of - of.mean(0)) ** 2).sum()) for of in (y, normed)
    ]
    assert found[0] == pytest.approx(r2[1, 1], abs=0.1)
    assert found[0] > found[1] + 0.2
    monkeypatch.setattr(readings, "fit_mapping", lambda *_, **__: pytest.fail("fitted again"))
    again, same = fit_map(setting, "there", (lm64, lm64), ([0, 3], [2, 4]), 5000, texts)
    assert np.array_equal(r2, same)
    assert all(a.equal(b) for pair in f.weights for a, b in zip(f.weights[pair], again.weights[pair], strict=True))
    assert asked == [5000]


def test_random_vectors_are_as_long_as_what_the_map_makes(lm64, other):
    draw = torch.Generator().manual_seed(0)
    weights = {(n, t): (torch.randn(48, 32, generator=draw),) for n in (1, 2) for t in (0, 3)}
    f = Affine(weights, model_identity(lm64), model_identity(other))
    h = torch.randn(40, 32, dtype=torch.float64, generator=draw)
    made = {pair: random_instead(f, 5)(h, *pair) for pair in weights}
    for pair, vectors in made.items():
        torch.testing.assert_close(vectors.norm(dim=-1), f(h, *pair).norm(dim=-1), rtol=1e-12, atol=0)
        assert vectors.equal(random_instead(f, 5)(h, *pair))
        assert torch.nn.functional.cosine_similarity(vectors, f(h, *pair), dim=-1).mean().abs() < 0.1
        assert not vectors.equal(random_instead(f, 6)(h, *pair))
    assert not made[1, 0].equal(made[1, 3])


def test_others_have_another_answer_where_that_can_be():
    answers = ["a", "b", "a", "b", "c"]
    taken = with_other_answers(answers)
    assert sorted(taken) == [*range(5)]
    assert all(answers[n] != answers[m] for n, m in enumerate(taken))
    mostly = with_other_answers(["a"] * 4 + ["b"])
    assert sorted(mostly) == [*range(5)]
    assert all(n != m for n, m in enumerate(mostly))
