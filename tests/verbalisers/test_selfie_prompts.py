"""SelfIE adapters as Patchscopes: one step against the published steps on the transformers model."""

from dataclasses import replace

import asking
import pytest
import torch

import lenscope as ls
from lenscope.engine import sweep
from lenscope.mappings import SelfieAdapter, VectorMap, write_selfie_adapter
from lenscope.patchscopes import load_verbaliser
from lenscope.verbalisers import adapted_selfie, open_verbaliser, selfie_verbaliser

TEMPLATE = f'<s>[user] What is "{asking.MARK}"?\n[assistant] It is "{asking.MARK}", a "'


@pytest.fixture(scope="module")
def lm():
    return asking.asked(layers=2)


@pytest.fixture(scope="module")
def adapter():
    draw = torch.Generator().manual_seed(0)
    f = VectorMap(
        scale=torch.tensor(5.0), U=torch.randn(32, 2, generator=draw), V=torch.randn(2, 32, generator=draw),
        bias=torch.randn(32, generator=draw),
    )  # fmt: skip
    return SelfieAdapter(f, 32, TEMPLATE, asking.MARK, "owner/tiny-llama")


def test_one_step_is_that_of_the_published_code(lm, adapter, tmp_path):
    write_selfie_adapter(adapter, tmp_path / "a.safetensors")
    scope = adapted_selfie(lm, tmp_path / "a.safetensors")
    ids = lm.tokenizer(TEMPLATE, add_special_tokens=False)["input_ids"]
    places = [
        i for i, token in enumerate(ids) if token == lm.tokenizer.encode(asking.MARK, add_special_tokens=False)[0]
    ]
    assert len(places) == 2
    v = torch.randn(1, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        embeds = lm.model.get_input_embeddings()(torch.tensor([ids])).clone()
        embeds[0, places] = scope.f(v)
        expected = lm.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].log_softmax(-1)
    ((_, last),) = list(sweep.predict(lm, scope.plan(v).rows))
    assert (lm.unembed(last[0, 0]).log_softmax(-1) - expected).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("change", "given", "words"),
    [
        ({"width": 33}, {}, "is for vectors of 33 numbers, and tiny-llama has 32"),
        ({"model": "owner/other"}, {}, "was trained for owner/other, and tiny-llama is another model"),
        ({"template": None}, {}, "its file has no template"),
        ({}, {"template": "What?"}, "its template has no '㈎'"),
        ({"marker": "cat", "template": "a cat"}, {}, "mark 1 of 1, 'cat', is token"),
    ],
)
def test_what_does_not_fit_is_refused(change, given, words, lm, adapter):
    with pytest.raises(ls.LenscopeError, match=words):
        adapted_selfie(lm, replace(adapter, **change), **given)


def test_another_template_and_no_name(lm, adapter):
    scope = adapted_selfie(lm, replace(adapter, model=None), template=f"<s>x({asking.MARK})y")
    assert scope.layers == 0
    assert len(scope.resolved[0][1]) == 1


def test_an_adapter_as_a_verbaliser_says_the_same_and_can_be_saved(lm, adapter, tmp_path):
    file = tmp_path / "a.safetensors"
    write_selfie_adapter(adapter, file)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = adapted_selfie(lm, file).generate(vectors, max_new_tokens=4).texts
    opened = open_verbaliser(file, lm)
    assert opened.stop == ('"',)
    assert opened.scope(lm).generate(vectors, max_new_tokens=4).texts == expected
    # with what no file says: its layers, and the mean that was taken from states
    own = selfie_verbaliser(lm, file, layers=[1], center=torch.ones(1, 32))
    own.save(tmp_path / "own")
    again = open_verbaliser(tmp_path / "own", lm)
    assert (again.layers, again.report["selfie adapter"]["model"]) == ((1,), "owner/tiny-llama")
    assert load_verbaliser(tmp_path / "own", lm).scope(lm).generate(vectors, max_new_tokens=4).texts == expected
    states = lm.read("the cat", 1)
    assert torch.equal(again.vectors(states).tensor, states.tensor - 1)


def test_files_that_are_no_verbaliser_are_refused(lm, adapter, tmp_path):
    write_selfie_adapter(replace(adapter, model="owner/other"), tmp_path / "other.safetensors")
    with pytest.raises(ls.LenscopeError, match="was trained for owner/other"):
        open_verbaliser(tmp_path / "other.safetensors", lm)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ls.LenscopeError, match=r"bad\.safetensors"):
        open_verbaliser(tmp_path / "bad.safetensors", lm)
    with pytest.raises(ls.LenscopeError, match="nowhere"):
        open_verbaliser(tmp_path / "nowhere", lm)
