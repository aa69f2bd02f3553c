"""The verbaliser of a natural language autoencoder against the published steps on the transformers model."""

import asking
import numpy as np
import pytest
import tiny
import torch
from autoencoders import ASKS, meta, save_verbaliser, write_meta

import lenscope as ls
from lenscope.engine import sweep
from lenscope.verbalisers.autoencoder_contracts import read_autoencoder_contract
from lenscope.verbalisers.autoencoder_verbaliser import (
    AutoencoderVerbaliser,
    cut_explanation,
    load_autoencoder_verbaliser,
)


def contract_of(lm, folder, **changes):
    return read_autoencoder_contract(write_meta(folder, meta(lm.tokenizer, **changes)))


@pytest.fixture(scope="module")
def lm():
    return asking.asked()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_one_step_is_that_of_the_published_code(kind, tmp_path):
    """inputs_embeds with one row replaced; in Gemma the module of embeddings has multiplied the others by √d."""
    lm = asking.asked(kind)
    verbaliser = AutoencoderVerbaliser(lm, contract_of(lm, tmp_path))
    v = torch.randn(1, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKS.format(injection_char=asking.MARK)}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(verbaliser.scope.resolved[0][0].ids) == ids
    assert ids.count(lm.tokenizer.bos_token_id) == 1
    (mark,) = lm.tokenizer.encode(asking.MARK, add_special_tokens=False)
    with torch.no_grad():
        embeds = lm.model.get_input_embeddings()(torch.tensor([ids])).clone()
        embeds[0, ids.index(mark)] = v[0] * (7.5 / v[0].norm())
        expected = lm.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].log_softmax(-1)
    ((_, last),) = list(sweep.predict(lm, verbaliser.scope.plan(v).rows))
    assert (lm.unembed(last[0, 0]).log_softmax(-1) - expected).abs().max() < 1e-10
    grid = verbaliser.scope.predict(v, top_k=tiny.VOCAB)
    found = np.empty(tiny.VOCAB)
    found[grid.ids[0]] = grid.log_probs[0]
    assert np.abs(found - expected.numpy()).max() < 1e-6


def test_length_does_not_count_and_texts_are_cut(lm, tmp_path):
    verbaliser = AutoencoderVerbaliser(lm, contract_of(lm, tmp_path))
    v = torch.randn(2, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    how = {"temperature": 0.0, "max_new_tokens": 5}
    said, again = verbaliser.explain(v, **how), verbaliser.explain(100 * v, **how)
    assert said.texts == again.texts == said.grid.texts
    assert said.whole == (False, False)
    drawn = verbaliser.explain(v, max_new_tokens=5, seed=1).texts
    assert drawn == verbaliser.explain(v, max_new_tokens=5, seed=1).texts != said.texts
    states = lm.read("a cat", 3, -1)
    assert len(verbaliser.explain(states, **how).texts) == 1
    with pytest.raises(ls.LenscopeError, match=r"vectors of 31 numbers: .* is for 32"):
        verbaliser.explain(v[:, 1:])


def test_explanations_are_what_stands_between_tags():
    assert cut_explanation("so <explanation>\n a\nb </explanation> <explanation>c</explanation>") == "a\nb"
    assert cut_explanation("<explanation> a") is None


FAULTS = [
    ({"width": 31}, "is for states of 31 numbers, and tiny-llama has 32"),
    ({"role": "ar"}, "is of a reconstructor, and a verbaliser is asked for"),
    ({"tokens__injection_token_id": 5}, "the mark '㈎' is token 5, and tiny-llama reads it as [261]"),
    ({"tokens__injection_char": "cat", "tokens__injection_token_id": 5}, "the mark 'cat' is token 5, and tiny-llama"),
    ({"tokens__injection_left_neighbor_id": 3}, "the left neighbour of the mark is token 3, and tiny-llama has"),
    ({"tokens__injection_right_neighbor_id": 3}, "the right neighbour of the mark is token 3, and tiny-llama has"),
    ({"prompt_templates__av": "<{injection_char}> or <{injection_char}>"}, "the mark '㈎' is 2 tokens of the prompt"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_what_contract_and_model_contradict_each_other_in_is_refused(fault, said, lm, tmp_path):
    contract = contract_of(lm, tmp_path, **fault)
    with pytest.raises(ls.LenscopeError) as error:
        AutoencoderVerbaliser(lm, contract)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "nla_meta.yaml" in str(error.value)


def test_a_model_that_adds_positions_to_embeddings_is_refused(tmp_path):
    lm = asking.asked("gpt2")
    with pytest.raises(ls.LenscopeError, match="adds what stands for the position to its embeddings"):
        AutoencoderVerbaliser(lm, contract_of(lm, tmp_path))


def test_a_folder_is_loaded(tmp_path):
    folder = save_verbaliser(tmp_path / "av")
    loaded = load_autoencoder_verbaliser(folder, dtype=torch.float64)
    assert repr(loaded) == "AutoencoderVerbaliser(av, vectors of 32)"
    assert load_autoencoder_verbaliser(folder / "nla_meta.yaml").contract == loaded.contract
    write_meta(folder, meta(loaded.lm.tokenizer, "ar"))
    with pytest.raises(ls.LenscopeError, match="is of a reconstructor; load_reconstructor reads it"):
        load_autoencoder_verbaliser(folder)
