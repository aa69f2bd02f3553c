"""Linear relational embeddings: Jacobians against finite differences and autograd by hand, the map's closed form."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.fitting import jacobian
from lenscope.fitting import relation as extraction
from lenscope.models.deviations import FAILURES
from lenscope.patchscopes import methods

SOURCE = "The capital of France is"
EXAMPLES = [("France", "Paris"), ("the cat", "mat"), ("this test", "is")]


@pytest.fixture(scope="module")
def gpt():
    """Its norms are computed in float64, as Llama's are not, so finite differences mean something."""
    return ls.LM(tiny.model("gpt2", dtype=torch.float64), tiny.tokenizer(), "tiny-gpt2")


@pytest.mark.parametrize("at", [0, "France", -1])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_jacobians_are_finite_differences(gpt, at, layer):
    model, ids = gpt.model, gpt.prompt(SOURCE).ids
    place = gpt.prompt(SOURCE).position(at)
    j, s, o = jacobian.jacobian(gpt, SOURCE, at, layer)

    def run(v):
        kept = []

        def write(h):
            return torch.cat([h[:, :place], v[None, None], h[:, place + 1 :]], 1)

        def first(m, args):
            return (write(args[0]), *args[1:])

        def out(m, args, output):
            h = output[0] if isinstance(output, tuple) else output
            return (write(h), *output[1:]) if isinstance(output, tuple) else write(h)

        blocks = model.transformer.h
        hook = blocks[layer - 1].register_forward_hook(out) if layer else blocks[0].register_forward_pre_hook(first)
        final = model.transformer.ln_f.register_forward_pre_hook(lambda m, args: kept.append(args[0][0, -1]))
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False)
        hook.remove()
        final.remove()
        return kept[0]

    assert torch.allclose(run(s), o, atol=1e-10)
    step = 1e-4
    for k in range(0, 32, 5):
        e = torch.zeros(32, dtype=torch.float64)
        e[k] = step
        # central differences, extrapolated once
        near, far = ((run(s + n * e) - run(s - n * e)) / (2 * n * step) for n in (1, 2))
        assert torch.allclose((4 * near - far) / 3, j[:, k], atol=1e-8)
    assert layer == 4 or float(j.abs().max()) > 1e-2


def test_jacobians_are_autograds_on_a_plain_hook(lm64):
    model, ids = lm64.model, lm64.prompt(SOURCE).ids
    j, s, _ = jacobian.jacobian(lm64, SOURCE, 3, 2)

    def run(v):
        kept = []
        block = model.model.layers[1]
        hook = block.register_forward_hook(lambda m, a, h: torch.cat([h[:, :3], v[None, None], h[:, 4:]], 1))
        final = model.model.norm.register_forward_pre_hook(lambda m, args: kept.append(args[0][0, -1]))
        model(input_ids=torch.tensor([ids]), use_cache=False)
        hook.remove()
        final.remove()
        return kept[0]

    assert torch.allclose(torch.autograd.functional.jacobian(run, s), j, atol=1e-10)


def test_a_prefix_that_cannot_be_cached_is_read_again(gpt, monkeypatch):
    whole = jacobian.jacobian(gpt, SOURCE, -1, 1)[0]
    plain, starts = jacobian._differentiated, []

    def broken(lm, ids, place, layer, s, start):
        starts.append(start)
        if start:
            raise FAILURES[0]("no cache")
        return plain(lm, ids, place, layer, s, start)

    monkeypatch.setattr(jacobian, "_differentiated", broken)
    again = jacobian.jacobian(gpt, SOURCE, -1, 1)[0]
    assert starts == [len(gpt.prompt(SOURCE)) - 1, 0]
    assert torch.allclose(again, whole, atol=1e-10)
    wrong = []

    def off(lm, ids, place, layer, s, start):
        j, o = plain(lm, ids, place, layer, s, start)
        wrong.append(start)
        return (j + 1, o + 1e-3) if start else (j, o)

    monkeypatch.setattr(jacobian, "_differentiated", off)
    assert torch.allclose(jacobian.jacobian(gpt, SOURCE, -1, 1)[0], whole, atol=1e-10)
    assert wrong[-1] == 0


def test_a_subject_is_its_last_occurrence(gpt):
    text = "France is France now"
    last = len(gpt.tokenizer("France is France")["input_ids"]) - 1
    named = jacobian.jacobian(gpt, text, "France", 1)
    assert named[1].equal(gpt.read(text)[1, last])
    assert torch.allclose(named[0], jacobian.jacobian(gpt, text, last, 1)[0], atol=1e-12)


def test_gradients_in_pieces_are_the_same(gpt, monkeypatch):
    whole = jacobian.jacobian(gpt, SOURCE, "France", 1)[0]
    monkeypatch.setattr(jacobian, "TOKENS", 1)
    assert torch.allclose(jacobian.jacobian(gpt, SOURCE, "France", 1)[0], whole, atol=1e-12)


def test_a_relation_is_the_mean_of_its_prompts(gpt):
    prompts = extraction.relation_prompts("So {} has", EXAMPLES)
    assert prompts[1] == "So France has Paris.\nSo this test has is.\nSo the cat has"
    f = extraction.fit_relation(gpt, prompts, [s for s, _ in EXAMPLES], 2, beta=1.5)
    found = []
    for prompt, (subject, _) in zip(prompts, EXAMPLES, strict=True):
        last = len(gpt.tokenizer(prompt[: prompt.rindex(subject) + len(subject)])["input_ids"]) - 1
        found.append(jacobian.jacobian(gpt, prompt, last, 2))
    w = sum(j for j, _, _ in found) / 3
    b = sum(o - j @ s for j, s, o in found) / 3
    h = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # weights are kept in float32
    assert torch.allclose(f(h, 2, 4), 1.5 * w @ h + b, atol=1e-5)
    assert f.report["beta"] == 1.5
    exact = extraction.fit_relation(gpt, prompts[:1], [EXAMPLES[0][0]], 2)
    assert torch.allclose(exact(found[0][1], 2, 4), found[0][2], atol=1e-5)


def test_the_attribute_lens_unembeds_the_relation(gpt):
    f = extraction.fit_relation(gpt, extraction.relation_prompts("So {} has", EXAMPLES), [s for s, _ in EXAMPLES], 2)
    states = gpt.read("So Paris has", positions="Paris")
    grid = methods.lens_patchscope(gpt, "So Paris has", f, at="Paris").predict(states, [(2, 4)], top_k=tiny.VOCAB)
    with torch.no_grad():
        h = f(states[2, "Paris"], 2, 4)
        expected = gpt.model.lm_head(gpt.model.transformer.ln_f(h)).log_softmax(-1)
    assert torch.allclose(torch.from_numpy(grid.log_probs[0]).double(), expected[grid.ids[0]], atol=2e-6)


def test_mistakes_are_one_clear_line(gpt):
    with pytest.raises(ls.LenscopeError, match="1 subjects: give a list of prompts"):
        extraction.fit_relation(gpt, "a b", ["a"], 2)
    with pytest.raises(ls.LenscopeError, match="layer 7: tiny-gpt2 has layers 0–4"):
        jacobian.jacobian(gpt, SOURCE, 1, 7)
    with pytest.raises(ls.LenscopeError, match=r"write \{\} once"):
        extraction.relation_prompts("no subject", EXAMPLES)
    with pytest.raises(ls.LenscopeError, match="give at least 2, each of another subject"):
        extraction.relation_prompts("{} is", EXAMPLES[:1])
    with gpt.edit(ls.Edit(1, 0, torch.zeros(32))), pytest.raises(ls.LenscopeError, match="is being edited"):
        jacobian.jacobian(gpt, SOURCE, 1, 2)
