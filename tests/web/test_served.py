"""What a server has, by name: models, lenses, mappings, target prompts."""

import pytest

import lenscope as ls
from lenscope.web.requests import PromptIn, TargetIn
from lenscope.web.served import Served, ServedLens, ServedModel


def test_lenses_of_one_name_are_told_apart_and_results_carry_their_names(view_models):
    lm = view_models[0]
    one = Served([ServedModel(lm)], [ServedLens(ls.Lens(lm)), ServedLens(ls.Lens(lm, name="mine"))])
    assert list(one.lenses) == ["logit lens", "logit lens 2", "mine"]
    for name in one.lenses:
        assert one.lens(name).name == name


def test_models_of_unlike_sizes_need_a_mapping(view_models):
    import tiny

    small = ls.LM(tiny.model("gemma3_text"), tiny.tokenizer(), "other-size")
    one = Served([ServedModel(view_models[0]), ServedModel(small)])
    if small.hidden_size != view_models[0].hidden_size:
        with pytest.raises(ls.LenscopeError, match="--mapping between them"):
            one.mapping(None, 1)
    else:
        assert one.mapping(None, 1) is None


def test_a_target_is_one_of_the_named_ones_or_a_text_of_its_own(served):
    target = served.target(TargetIn(text="hello x", at="x"), 1)
    assert target.resolve(served.model(1))[0].text == "hello x"
    with pytest.raises(ls.LenscopeError, match="there are"):
        served.target(TargetIn(name="nothing"), 0)


def test_a_prompt_is_read_by_the_model_that_it_names(served):
    assert served.prompt(PromptIn(text="hello", model=1)).ids
    with pytest.raises(ls.LenscopeError, match="models 0–1"):
        served.prompt(PromptIn(text="hello", model=2))
