"""Mappings fitted from one model to another: they equal a textbook's, and recover what is linear."""

import random

import numpy as np
import pytest
import tiny
import torch
from char_tokenizers import char_model

import lenscope as ls
from lenscope.fitting import model_to_model as regression
from lenscope.models.prompts import Prompt

WORDS = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test", "river", "stone"]


RIDGES = (1e-6, 1e-3)


@pytest.fixture(scope="module")
def other():
    return char_model()


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(60)]


@pytest.fixture(scope="module")
def fitted(lm64, other, texts):
    return regression.fit_mapping(
        lm64, other, texts, layers=[0, 2, 4], target_layers=[1, 3], ridges=RIDGES, held_out=0.2, length=48
    )


def test_positions_are_aligned_by_the_character_they_end_at(lm, other):
    text = "the cat é the mat"
    source, target = lm.prompt(text), other.prompt(text)
    pairs = regression.aligned(source, target)
    assert len(pairs) >= 4
    assert [s for s, _ in pairs] == sorted({s for s, _ in pairs})
    for s, t in pairs:
        assert s > 0
        assert t > 0
        assert text[: source.spans[s][1]] == text[: target.spans[t][1]]
    # every token of the coarser tokenizer but its first ends where some byte does, é where its last byte does
    assert {source.spans[s][1] for s, _ in pairs} == {stop for _, stop in source.spans[1:]}
    accent = next((s, t) for s, t in pairs if source.spans[s][1] == text.index("é") + 1)
    assert target.spans[accent[1]] == target.spans[accent[1] - 1]
    special = Prompt("ab", (5, 6, 0), ("a", "b", "</s>"), ((0, 1), (1, 2), (0, 0)))
    assert regression.aligned(special, special) == [(1, 1)]


def test_the_fit_is_the_textbooks(lm64, other, texts, fitted):
    """Least squares of rows [x/std, √(n ridge) I], centred, in numpy; the ridge best on some texts, R² on others."""
    train, select, test = parts = regression._three_parts_of_pairs(
        regression._read_together(lm64, other, texts, 48), 0.2, 0
    )
    assert sum(map(len, parts)) == len({t.source.text for part in parts for t in part}) == len(texts)

    def rows(part, s, t):
        x = np.concatenate([lm64.read(p.source, s).tensor[0, 0, [i for i, _ in p.positions]].numpy() for p in part])
        y = np.concatenate([other.read(p.target, t).tensor[0, 0, [j for _, j in p.positions]].numpy() for p in part])
        return x, y

    report = {(p["layer"], p["target_layer"]): p for p in fitted.report["pairs"]}
    assert list(report) == list(fitted.weights) == [(s, t) for s in (0, 2, 4) for t in (1, 3)]
    for pair in report:
        x, y = rows(train, *pair)
        assert len(x) == fitted.report["tokens"]["fitted"]
        mean, std, y_mean = x.mean(0), x.std(0), y.mean(0)
        tried = []
        for ridge in RIDGES:
            stacked = np.concatenate([(x - mean) / std, np.sqrt(len(x) * ridge) * np.eye(x.shape[1])])
            w = np.linalg.lstsq(stacked, np.concatenate([y - y_mean, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[
                0
            ]
            a = (w / std[:, None]).T
            sx, sy = rows(select, *pair)
            tried.append((np.square(sy - y_mean - (sx - mean) @ a.T).sum(), ridge, a, y_mean - a @ mean))
        _, ridge, a, b = min(tried, key=lambda one: one[0])
        assert report[pair]["ridge"] == ridge
        for mine, book in zip(fitted.weights[pair], (a, b), strict=True):
            assert np.abs(mine.numpy() - book).max() <= 1e-6 * np.abs(book).max()
        tx, ty = rows(test, *pair)
        spread = np.square(ty - y_mean).sum()
        assert report[pair]["r2"] == pytest.approx(1 - np.square(ty - tx @ a.T - b).sum() / spread, abs=1e-5)
        alpha = ((x - mean) * (y - y_mean)[:, :32]).sum() / np.square(x - mean).sum()
        copied = y_mean + np.pad(alpha * (tx - mean), [(0, 0), (0, 16)])
        assert report[pair]["r2_copy"] == pytest.approx(1 - np.square(ty - copied).sum() / spread, abs=1e-6)
        if pair[1] == other.n_layers:
            own, guess = (other.unembed(torch.from_numpy(h)).argmax(-1) for h in (ty, tx @ a.T + b))
            assert len(own) <= regression.PREDICTED
            assert report[pair]["precision_at_1"] == float((own == guess).double().mean())
        else:
            assert "precision_at_1" not in report[pair]


def test_a_linear_relation_is_recovered_and_the_shuffled_control_is_not(lm64, texts, monkeypatch):
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(32, 32, generator=draw).double(), 5 * torch.randn(32, generator=draw).double()
    twin = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "twin")
    read = twin.read

    def moved(*args):
        found = read(*args)
        found.tensor.copy_(found.tensor @ a.T + b)
        return found

    monkeypatch.setattr(twin, "read", moved)
    mapping = regression.fit_mapping(
        lm64, twin, texts, layers=[1, 4], target_layers=[1, 4], ridges=[1e-9, 1.0], length=48
    )
    for found in mapping.report["pairs"]:
        if found["layer"] == found["target_layer"]:
            assert found["r2"] > 1 - 1e-9
            assert found["ridge"] == 1e-9
            got = mapping.weights[found["layer"], found["layer"]]
            torch.testing.assert_close(got[0].double(), a, atol=1e-4, rtol=0)
            torch.testing.assert_close(got[1].double(), b, atol=1e-3, rtol=0)
        else:
            assert found["r2"] < 0.999
        assert found["r2_shuffled"] <= 0.1
        assert found["r2_copy"] < 0.5
    last = mapping.report["pairs"][-1]
    assert last["precision_at_1"] == 1
    assert last["precision_at_1_shuffled"] < 0.5


def test_wrong_pairs_are_of_other_texts(lm64):
    job = regression.PairReader(lm64, lm64, ((0,), (0,)), torch.Generator().manual_seed(0), None)
    for counts in ([5, 9, 7, 3], [4, 4], [1, 2, 3, 4, 5, 6]):
        text = torch.tensor([n for n, count in enumerate(counts) for _ in range(count)])
        order = job.elsewhere(counts)
        assert sorted(order.tolist()) == list(range(len(text)))
        assert (text[order] != text).all()
        # nor the same place in the other text
        assert (order.diff() == 1).sum() < len(order) / 2


def test_one_model_as_both_is_the_shortcut_between_its_layers(lm64, texts):
    told = []
    mapping = regression.fit_mapping(
        lm64, lm64, texts, layers=[-1, 2, 2], length=48, progress=lambda done, total: told.append((done, total))
    )
    assert [p for p in mapping.weights if p[0] == 2] == [(2, t) for t in range(5)]
    same = next(p for p in mapping.report["pairs"] if p["layer"] == p["target_layer"] == 4)
    assert min(same["r2"], same["r2_copy"]) > 1 - 1e-6
    assert same["precision_at_1"] == same["precision_at_1_copy"] == 1
    assert told == [(n + 1, len(told)) for n in range(len(told))]
    h = lm64.read(texts[0])[2, 1:]
    assert mapping(h, 2, 2).dtype == torch.float64
    torch.testing.assert_close(mapping(h, 2, 2), h, atol=1e-3, rtol=0)


def test_float32_sums_agree_with_float64(lm, lm64, texts):
    options = {"layers": [2], "target_layers": [4], "ridges": [1e-4], "length": 48}
    one, two = (regression.fit_mapping(m, m, texts, **options) for m in (lm, lm64))
    for a, b in zip(one.weights[2, 4], two.weights[2, 4], strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()
    assert one.report["pairs"][0]["r2"] == pytest.approx(two.report["pairs"][0]["r2"], abs=1e-4)


def test_states_that_are_not_finite_are_refused(lm64, texts, monkeypatch):
    twin = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "twin")
    read = twin.read

    def broken(*args):
        found = read(*args)
        found.tensor[0, 0, 1] = torch.inf
        return found

    monkeypatch.setattr(twin, "read", broken)
    with pytest.raises(ls.LenscopeError, match="twin: a state holds NaN or infinity"):
        regression.fit_mapping(lm64, twin, texts, layers=[1], target_layers=[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"texts": "one text"}, "is one string"),
        ({"texts": ["the cat sat on the mat"] * 9}, "texts: 1 of them differ"),
        (
            {"texts": ["a b c", "b c d", "c d e", "d e f", ""]},
            "pairs of tokens to fit, and tiny-llama needs more than 32",
        ),
        ({"layers": [9]}, "layer 9: tiny-llama has layers 0–4"),
        ({"target_layers": []}, "the list is empty"),
        ({"ridges": [0.0]}, "give positive numbers"),
        ({"ridges": []}, "give positive numbers"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"held_out": 0.99}, "59 are to be held out"),
        ({"length": 1}, "at least 2 tokens"),
    ],
)
def test_what_cannot_be_fitted_is_told(lm64, texts, options, told):
    with pytest.raises(ls.LenscopeError, match=told):
        regression.fit_mapping(lm64, lm64, **{"texts": texts, **options})
    bare = ls.LM(lm64.model, None, "bare")
    with pytest.raises(ls.LenscopeError, match="bare was loaded without a tokenizer"):
        regression.fit_mapping(bare, lm64, texts)


def test_ahead_pairs_each_state_with_a_later_one(lm64):
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test"]
    texts = list(dict.fromkeys(" ".join(draw.choices(words, k=12)) for _ in range(60)))
    f = regression.fit_mapping(lm64, lm64, texts, layers=[2], target_layers=[4], ahead=2, ridges=[1e-13], length=48)
    fitted = random.Random(0).sample(texts, len(texts))[round(0.1 * len(texts)) :]
    read = [lm64.read(lm64.prompt(text).ids[:48]) for text in fitted]
    x = np.concatenate([s.tensor[0, 2, 1:-2].numpy() for s in read])
    y = np.concatenate([s.tensor[0, 4, 3:].numpy() for s in read])
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    found = f(lm64.read(texts[0]).tensor[0, 2, 1:4], 2, 4).numpy()
    expected = np.column_stack([lm64.read(texts[0]).tensor[0, 2, 1:4].numpy(), np.ones(3)]) @ solution
    assert np.allclose(found, expected, atol=1e-4)
    assert f.report["ahead"] == 2
    with pytest.raises(ls.LenscopeError, match="ahead -1"):
        regression.fit_mapping(lm64, lm64, texts, ahead=-1)
