"""Activation Oracles and LatentQA: their prompts, and a step against the published hooks on the transformers model."""

import json

import asking
import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.edits import add_norm_matched
from lenscope.verbalisers.oracles import OracleSettings, activation_oracle, latent_qa, load_oracle_settings

QUESTION = "Is it a cat?"


@pytest.fixture(scope="module")
def lm():
    return asking.asked()


def vectors(lm, *shape, seed=0):
    return torch.randn(*shape, lm.hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hooked(lm, block, ids, change):
    """Log-probabilities (V,) after ids, with the output of a block changed as the authors' hooks change it."""
    handle = lm.model.model.layers[block].register_forward_hook(lambda m, a, out: change(out))
    try:
        with torch.no_grad():
            return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()


def predicted(scope, sources):
    """The same of a Patchscope, (V,), in float32 as grids are."""
    grid = scope.predict(sources, top_k=tiny.VOCAB)
    out = np.empty(tiny.VOCAB)
    out[grid.ids[0]] = grid.log_probs[0]
    return torch.from_numpy(out)


def test_an_oracles_prompt_is_the_published_one(lm):
    scope = activation_oracle(lm, QUESTION, 3, 2)
    prompt, places = scope.resolved[0]
    published = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"Layer: 2\n ? ? \n{QUESTION}"}],
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert list(prompt.ids) == published
    assert "(no thoughts)" in prompt.text
    # as the authors find them
    (mark,) = lm.tokenizer.encode(" ?", add_special_tokens=False)
    assert list(places) == [i for i, token in enumerate(published) if token == mark][:2]
    assert (scope.layers, scope.op) == (2, add_norm_matched)


def test_several_layers_have_a_line_each(lm):
    scope = activation_oracle(lm, QUESTION, [1, 4], 3)
    prompt, places = scope.resolved[0]
    assert "Layer: 0\n ? ? ? \nLayer: 3\n ? ? ? \nIs it" in prompt.text
    assert len(places) == 6
    assert scope.predict(vectors(lm, 2, 6)).ids.shape[0] == 2
    with pytest.raises(ls.LenscopeError, match="vectors for 4 placeholders, and this target prompt has 6"):
        scope.predict(vectors(lm, 2, 4))


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_one_step_of_an_oracle_is_the_published_hook(lm, strength):
    """h + c ‖h‖ v/‖v‖ at the output of layers[1]; float64 up to the grid's float32."""
    settings = OracleSettings(strength=strength)
    scope = activation_oracle(lm, QUESTION, 2, 3, settings=settings)
    prompt, places = scope.resolved[0]
    v = vectors(lm, 3)

    def steer(resid):
        resid = resid.clone()
        at = resid[0, list(places)]
        resid[0, list(places)] = (
            at + torch.nn.functional.normalize(v, dim=-1) * at.norm(dim=-1, keepdim=True) * strength
        )
        return resid

    expected = hooked(lm, 1, list(prompt.ids), steer)
    assert (predicted(scope, v[None]) - expected).abs().max() < 1e-6
    rows = scope.plan(v[None]).rows
    from lenscope.engine import sweep

    ((_, last),) = list(sweep.predict(lm, rows))
    assert (lm.unembed(last[0, 0]).log_softmax(-1) - expected).abs().max() < 1e-10


def test_one_step_of_latent_qa_is_the_published_hook(lm):
    """States replace those at the output of layers[0], from the first token of the user's message on."""
    scope = latent_qa(lm, QUESTION, 4)
    prompt, places = scope.resolved[0]
    assert prompt.text == (
        "<s>[user] ? ? ? ?\n[reflect] Sure, I've analyzed the assistant.\n[user] Is it a cat?\n[reflect] (no thoughts) "
    ).replace("(no thoughts) ", "")
    assert places == tuple(range(places[0], places[0] + 4))
    v = vectors(lm, 4)

    def splice(out):
        return torch.cat([out[:, : places[0]], v[None], out[:, places[-1] + 1 :]], 1)

    expected = hooked(lm, 0, list(prompt.ids), splice)
    assert (predicted(scope, v[None]) - expected).abs().max() < 1e-6
    assert scope.layers == 1


def test_another_name_for_the_models_turns(lm):
    text = latent_qa(lm, QUESTION, 1, answerer="assistant").resolved[0][0].text
    assert text.endswith("[assistant] ")
    assert "[assistant] Sure" in text


def test_marks_that_are_no_tokens_of_their_own_are_refused():
    apart = ls.LM(asking.model(), asking.tokenizer(["a cat"]), "apart")
    with pytest.raises(ls.LenscopeError, match=r"the mark ' \?' is 2 tokens .* not for this tokenizer"):
        activation_oracle(apart, QUESTION, 2)
    with pytest.raises(ls.LenscopeError, match="1 other token between it and the one before"):
        latent_qa(apart, QUESTION, 2)
    merged = ls.LM(asking.model(), asking.tokenizer(["? ? ?", "???? ????"]), "merged")
    with pytest.raises(ls.LenscopeError, match=r"mark 1 of 2, '\?\?', is read as"):
        activation_oracle(merged, QUESTION, 2, 2, settings=OracleSettings(mark="??"))


def test_what_does_not_fit_is_refused(lm):
    for layers in (0, [1, 1], []):
        with pytest.raises(ls.LenscopeError, match=r"give layers 1–4|list is empty|at least"):
            activation_oracle(lm, QUESTION, layers)
    with pytest.raises(ls.LenscopeError, match="layer 5"):
        activation_oracle(lm, QUESTION, 5)
    with pytest.raises(ls.LenscopeError, match="layer 9: the oracle takes states in there; tiny-llama has 4"):
        activation_oracle(lm, QUESTION, 1, settings=OracleSettings(layer=9))
    with pytest.raises(ls.LenscopeError, match="states 0"):
        activation_oracle(lm, QUESTION, 1, 0)
    plain = asking.tokenizer()
    plain.chat_template = None
    with pytest.raises(ls.LenscopeError, match="has no chat template"):
        activation_oracle(ls.LM(asking.model(), plain, "plain"), QUESTION, 1)
    twice = asking.tokenizer()
    twice.chat_template = "{{ messages[0].content }} {{ messages[0].content }}"
    with pytest.raises(ls.LenscopeError, match="changes or repeats the user's message"):
        activation_oracle(ls.LM(asking.model(), twice, "twice"), QUESTION, 1)


PUBLISHED = {
    "schema_version": 1,
    "special_token": " ?",
    "prefix_template": "Layer: {layer}\\n{special_token} * {num_positions} \\n",
    "model_name": "Qwen/Qwen3-8B",
    "hook_onto_layer": 1,
    "steering_coefficient": 1.0,
    "layer_combinations": [[25], [50]],
    "act_layer_combinations": [[9], [18]],
}


def test_settings_beside_an_adapter_are_read(tmp_path):
    (tmp_path / "ao_config.json").write_text(json.dumps(PUBLISHED))
    settings = load_oracle_settings(tmp_path)
    assert settings == OracleSettings(" ?", 2, 1.0, ((10,), (19,)), "Qwen/Qwen3-8B")
    (tmp_path / "ao_config.json").write_text(
        json.dumps(PUBLISHED | {"hook_onto_layer": 0, "steering_coefficient": 2, "special_token": " x"})
    )
    settings = load_oracle_settings(tmp_path)
    assert (settings.layer, settings.strength, settings.mark) == (1, 2.0, " x")
    assert settings.operation() is not add_norm_matched


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"prefix_template": "Layers {layer}"}, "its prompt begins with 'Layers {layer}', and known"),
        ({"hook_onto_layer": "1"}, "hook_onto_layer '1'"),
        ({"hook_onto_layer": -1}, "hook_onto_layer -1"),
        ({"special_token": " "}, "special_token ' '"),
        ({"steering_coefficient": float("nan")}, "steering_coefficient nan"),
        ({"act_layer_combinations": [["a"]]}, "act_layer_combinations"),
        ({"act_layer_combinations": 3}, "does not describe an Activation Oracle"),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line(fault, said, tmp_path):
    (tmp_path / "ao_config.json").write_text(json.dumps(PUBLISHED | fault))
    with pytest.raises(ls.LenscopeError) as error:
        load_oracle_settings(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_settings_says_what_to_use(tmp_path):
    with pytest.raises(ls.LenscopeError, match=r"has no ao_config.json; older oracles .* OracleSettings\(\)"):
        load_oracle_settings(tmp_path)
    (tmp_path / "ao_config.json").write_text("[1]")
    with pytest.raises(ls.LenscopeError, match="is no object"):
        load_oracle_settings(tmp_path)
