"""Soft prompts: the trainer's loss against the engine's and against embeddings by hand, learning, files."""

import random

import pytest
import tiny
import torch
from handmade import rewritten

import lenscope as ls
from lenscope.fitting import soft_prompt as softprompt
from lenscope.fitting.soft_prompt import Pairs, divergence, fit_soft_prompt
from lenscope.patchscopes import methods
from lenscope.patchscopes.soft_prompt import load_soft_prompt

V = tiny.VOCAB
START = "tell me"


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test"]
    return [" ".join(draw.choices(words, k=8)) for _ in range(40)]


@pytest.fixture(scope="module")
def learned(lm64, texts):
    seen = []
    made = fit_soft_prompt(
        lm64, texts, 2, start=START, ahead=2, steps=40, batch=16, length=24, progress=lambda *n: seen.append(n)
    )
    assert seen[-1] == (40, 40)
    return made


def pairs(lm, texts, layer=2, at=4, ahead=2):
    """What follows position 4 of each text."""
    ids = [lm.prompt(text).ids for text in texts]
    states = lm.read([i[: at + ahead + 1] for i in ids]).tensor
    following = torch.tensor([i[at + 1 : at + 1 + ahead] for i in ids])
    return Pairs(states[:, layer, at], following, states[:, lm.n_layers, at : at + ahead + 1])


def test_the_trainers_loss_is_the_engines_and_the_one_by_hand(lm64, learned, texts):
    some = pairs(lm64, texts[:5])
    with torch.no_grad():
        kl, hit = divergence(lm64, learned.ids, learned.vectors, 2, some)
    scope = methods.future_lens(lm64, learned)
    k = len(learned.ids)
    for n, text in enumerate(texts[:5]):
        read = lm64.prompt(text).ids[:7]
        with torch.no_grad():
            own = lm64.model(input_ids=torch.tensor([read]), use_cache=False).logits[0, 4:].log_softmax(-1)
        states = lm64.read(read, positions=4)
        for ahead in range(3):
            target = ls.Target([*learned.ids, *read[5 : 5 + ahead]], at=k - 1, edits=(soft(learned, k),))
            engine = scope if not ahead else ls.Patchscope(lm64, target, layers=[(2, 2)])
            grid = engine.predict(states, top_k=V)
            q = torch.empty(V, dtype=torch.float64)
            q[torch.from_numpy(grid.ids[0])] = torch.from_numpy(grid.log_probs[0]).double()
            expected = float((own[ahead].exp() * (own[ahead] - q)).sum())
            assert float(kl[n, ahead]) == pytest.approx(expected, abs=1e-5)
            assert bool(hit[n, ahead]) == (int(own[ahead].argmax()) == grid[0].ids[0])
            by_hand = embedded(lm64, learned, states[2, 4], read[5 : 5 + ahead])
            assert float(kl[n, ahead]) == pytest.approx(
                float((own[ahead].exp() * (own[ahead] - by_hand)).sum()), abs=1e-8
            )


def soft(learned, k):
    return ls.Edit(0, list(range(k)), learned.vectors)


def embedded(lm, learned, h, following):
    """Log-probabilities after the soft prompt as input embeddings, the state put in by a plain hook."""
    k = len(learned.ids)
    words = lm.model.get_input_embeddings()(torch.tensor(following, dtype=torch.long))
    embeds = torch.cat([learned.vectors.double(), words])[None]

    def put(m, args, out):
        return torch.cat([out[:, : k - 1], h[None, None], out[:, k:]], 1)

    hook = lm.model.model.layers[1].register_forward_hook(put)
    with torch.no_grad():
        logits = lm.model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
    hook.remove()
    return logits.log_softmax(-1)


def test_gradients_are_finite_differences():
    """On a model whose norms are computed in float64."""
    lm = ls.LM(tiny.model("gpt2", dtype=torch.float64), tiny.tokenizer(), "tiny-gpt2")
    some = pairs(lm, ["The cat sat on the mat. The cat", "This is a test of the tokenizer."])
    ids = lm.prompt(START).ids
    vectors = lm.read(ids, 0).tensor[0, 0].clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(divergence(lm, ids, vectors, 2, some)[0].mean(), [vectors])
    assert float(grad[:-1].abs().max()) > 1e-4
    for at in ((0, 3), (1, 20), (len(ids) - 1, 7)):
        step = torch.zeros_like(grad)
        step[at] = 1e-5
        with torch.no_grad():
            up, down = (divergence(lm, ids, vectors + s * step, 2, some)[0].mean() for s in (1, -1))
        assert float((up - down) / 2e-5) == pytest.approx(float(grad[at]), abs=1e-8)


def test_learning_lowers_the_divergence_on_other_texts(learned):
    report = learned.report
    mean = {name: sum(row[name] for row in report["ahead"]) / 3 for name in ("kl", "kl_start", "kl_shuffled")}
    assert mean["kl"] < mean["kl_start"] - 0.05
    assert mean["kl"] < mean["kl_shuffled"]
    assert report["losses"][-1] < report["losses"][0]
    assert [row["ahead"] for row in report["ahead"]] == [0, 1, 2]
    assert all(0 <= row["precision_at_1"] <= 1 for row in report["ahead"])


def test_a_seed_makes_the_same_prompt_and_bad_steps_are_not_kept(lm64, texts, learned):
    again = fit_soft_prompt(lm64, texts, 2, start=START, ahead=2, steps=40, batch=16, length=24)
    assert again.vectors.equal(learned.vectors)
    assert again.report == learned.report
    wild = fit_soft_prompt(lm64, texts, 2, start=START, steps=2, batch=2, length=24, learning_rate=1e6)
    assert wild.vectors.equal(lm64.read(START, 0).tensor[0, 0].float())


def test_no_source_is_the_first_token_and_texts_do_not_mix(lm64, texts, monkeypatch):
    parts = softprompt._three_parts(softprompt._beginnings(lm64, texts, 24, 2), 0.2, random.Random(0))
    assert sorted(map(len, parts)) == [4, 4, 32]
    assert not set(parts[0]) & (set(parts[1]) | set(parts[2]))
    found = softprompt._gather(lm64, parts[1], 2, 2, 50, random.Random(0))
    assert len(found.h) == sum(len(ids) - 3 for ids in parts[1])
    read = {ids: lm64.read(ids) for ids in parts[1]}
    known = {(ids, p): states[2, p] for ids, states in read.items() for p in range(len(ids))}
    for n, h in enumerate(found.h):
        (ids, at) = next(place for place, state in known.items() if torch.allclose(state, h, atol=1e-9))
        assert at > 0
        assert found.ids[n].tolist() == list(ids[at + 1 : at + 3])
        assert torch.allclose(found.final[n], read[ids][4, list(range(at, at + 3))], atol=1e-9)


def test_saved_equals_loaded_and_other_models_are_refused(lm64, learned, tmp_path):
    learned.save(tmp_path / "soft")
    loaded = load_soft_prompt(tmp_path / "soft")
    assert loaded.vectors.equal(learned.vectors)
    for name in ("ids", "layer", "target_layer", "model", "report"):
        assert getattr(loaded, name) == getattr(learned, name)
    other = ls.LM(tiny.model("llama", dtype=torch.float64, seed=3), tiny.tokenizer(), "other")
    with pytest.raises(ls.LenscopeError, match="learned for tiny-llama, not for other"):
        methods.future_lens(other, loaded)
    rewritten(tmp_path / "soft", lambda config: config.update(ids=[1]))
    with pytest.raises(ls.LenscopeError, match="not one for each of 1 tokens"):
        load_soft_prompt(tmp_path / "soft")
    with pytest.raises(ls.LenscopeError, match="is no soft prompt"):
        load_soft_prompt(tmp_path)


def test_future_lens_with_a_fixed_prompt_goes_on_from_the_state(lm64):
    states = lm64.read("The capital of France is", positions=-1)
    scope = methods.future_lens(lm64)
    assert scope.resolved[0][0].text == 'Hello! Could you please tell me more about "'
    grid = scope.generate(states, max_new_tokens=3)
    for cell in grid:
        with lm64.edit(ls.Edit(cell.layer, -1, states[cell.layer, -1])):
            assert cell.ids == lm64.generate(scope.resolved[0][0], 3).ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9}, "layer 9: tiny-llama has layers 0–4"),
        ({"steps": 0}, "steps 0: give at least 1"),
        ({"held_out": 1.0}, "give a rate above 0 and a fraction"),
        ({"texts": "one text"}, "is one string"),
        (
            {"texts": ["the cat sat on the mat"] * 9},
            "texts: 1 are long enough, and 4 are to be held out; give more texts",
        ),
    ],
)
def test_mistakes_are_one_clear_line(lm64, texts, options, message):
    given = {"texts": texts, "layer": 2, "start": START, **options}
    with pytest.raises(ls.LenscopeError, match=message):
        fit_soft_prompt(lm64, **given)
