"""Verbalisers: their default prompt, saved equals loaded, other models refused, damaged folders told in a line."""

import json
import re
from copy import deepcopy

import pytest
import tiny
import torch
from char_tokenizers import char_tokenizer
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.files.kinds import kind_of_path
from lenscope.mappings.mapping import mapping_hash
from lenscope.mappings.vector_map import VectorMap
from lenscope.models import edits
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser, load_verbaliser, meaning_target

TEMPLATE = (
    "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def made(lm, **how):
    draw = torch.Generator().manual_seed(0)
    f = VectorMap(scale=torch.tensor(2.0), bias=torch.randn(lm.hidden_size, generator=draw))
    prompt = lm.prompt("the x of the x is")
    soft = ls.Edit(0, [0], torch.randn(1, lm.hidden_size, generator=draw))
    given = {
        "map": f,
        "target": Target(prompt, at=[1, 4], edits=[soft]),
        "target_layer": 1,
        "model": model_identity(lm),
        "op": edits.add_norm_matched,
        "stop": ('"',),
        "layers": (1, 3),
        "center": torch.randn(2, lm.hidden_size, generator=draw),
        "source": model_identity(lm),
        "report": {"measured": [1.5, None]},
    }
    return Verbaliser(**{**given, **how})


def test_a_saved_verbaliser_says_the_same(lm, tmp_path):
    one = made(lm)
    one.save(tmp_path)
    again = load_verbaliser(tmp_path, lm)
    assert kind_of_path(tmp_path) == "verbaliser"
    assert mapping_hash(again.map) == mapping_hash(one.map)
    assert again.center.equal(one.center)
    for name in ("target_layer", "op", "stop", "layers", "model", "source", "report"):
        assert getattr(again, name) == getattr(one, name), name
    assert again.target.prompt == one.target.prompt
    states = one.vectors(lm.read("a state", positions=-1))
    assert states.layers == (1, 3)
    said = [v.scope(lm).generate(states, max_new_tokens=4) for v in (one, again)]
    assert said[0].texts == said[1].texts
    assert set(said[0].layer.tolist()) == {1}


@pytest.mark.parametrize("chats", [True, False])
def test_the_default_prompt_asks_for_the_meaning_at_both_placeholders(chats):
    """In the chat template, whose own special tokens are not doubled; as two lines without one."""
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.chat_template = TEMPLATE if chats else None
    lm = ls.LM(tiny.model("llama"), tokenizer, "chats")
    target = meaning_target(lm)
    prompt, slots = target.resolve(lm)
    assert len(slots) == 2
    assert prompt.text.endswith('is "')
    marks = {prompt.tokens[slot].strip(' "') for slot in slots}
    assert len(marks) == 1
    (mark,) = marks
    assert f'What is the meaning of "{mark}"?' in prompt.text
    if chats:
        assert prompt.text.startswith("<s>[user] ")
        assert list(prompt.ids).count(lm.tokenizer.bos_token_id) <= 1


def test_the_default_prompt_of_a_model_of_letters():
    config = tiny.config("gpt2")
    config.n_positions = 256
    lm = ls.LM(AutoModelForCausalLM.from_config(config).eval(), char_tokenizer(), "letters")
    prompt, slots = meaning_target(lm).resolve(lm)
    assert [prompt.tokens[slot] for slot in slots] == ["X", "X"]


def test_another_model_is_refused(lm, tmp_path):
    made(lm).save(tmp_path)
    other = ls.LM(tiny.model("llama", seed=5), tiny.tokenizer(), "other")
    with pytest.raises(ls.LenscopeError, match=r"verbaliser: trained to be said by tiny-llama .* but used with other"):
        load_verbaliser(tmp_path, other)
    with pytest.raises(ls.LenscopeError, match="trained for vectors of tiny-llama"):
        load_verbaliser(tmp_path, lm, other)


def test_what_does_not_go_together_is_refused(lm):
    with pytest.raises(ls.LenscopeError, match="its map takes vectors of 7 numbers"):
        made(lm, map=VectorMap(W=torch.ones(lm.hidden_size, 7)))
    with pytest.raises(ls.LenscopeError, match=r"a center of shape \(3, 32\) for 2 layers"):
        made(lm, center=torch.zeros(3, 32))
    with pytest.raises(ls.LenscopeError, match="states of layers 2: this verbaliser takes vectors of layers 1, 3"):
        made(lm).vectors(lm.read("a state", 2, -1))


def test_an_operation_of_your_own_works_but_is_not_saved(lm, tmp_path):
    one = made(lm, op=lambda h, v: h + 2 * v)
    assert len(one.scope(lm).predict(one.vectors(lm.read("a", 1, -1)))) == 1
    with pytest.raises(ls.LenscopeError, match="op <lambda>: a file holds only replace, add"):
        one.save(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 99, "has format 99"),
        ("op", "explode", "explode"),
        ("layers", "x", "is no verbaliser"),
        ("target", {}, "it lacks"),
        ("map", {"normalize": True, "layers": [1]}, "axes"),
        ("target_layer", 77, "layer 77"),
    ],
)
def test_a_damaged_config_is_told_in_one_line(lm, tmp_path, key, value, said):
    import safetensors.torch

    made(lm).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / config["weights"])
    from lenscope.files.weights_folder import write_folder

    rest = {name: v for name, v in config.items() if name not in ("weights", "sha256")}
    write_folder(tmp_path, "verbaliser", {**rest, key: value}, tensors)
    with pytest.raises(ls.LenscopeError, match=re.escape(said)) as error:
        load_verbaliser(tmp_path, lm)
    assert "\n" not in str(error.value)
