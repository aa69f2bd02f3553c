"""Questions about states: what is answered is what patches made by hand write, and so are its controls."""

import pytest
import tiny
import torch
from plain_hooks import put, write_greedily

import lenscope as ls
from lenscope.mappings import VectorMap
from lenscope.models.same_model import model_identity
from lenscope.patchscopes import StateReader, Verbaliser, ask_about_states, meaning_target, verbaliser_reader
from lenscope.patchscopes import questions_about_states as asking
from lenscope.patchscopes.controls import random_like

PROMPT, QUESTION, NEW = "The cat sat on the mat", "What is it", 4


def roomy_model():
    """A model that the prompts fit into."""
    model = tiny.model("llama", dtype=torch.float64)
    model.config.max_position_embeddings = 256
    return model


@pytest.fixture(scope="module")
def lm64():
    return ls.LM(roomy_model(), tiny.tokenizer(), "tiny-chat")


@pytest.fixture(scope="module")
def plain_lm():
    """A model without a chat template."""
    tokenizer = tiny.tokenizer()
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    return ls.LM(roomy_model(), tokenizer, "tiny-plain")


def written(lm, ids, layer=None, places=(), vectors=()):
    """The text that follows ids, with vectors put at places of a layer."""

    def change(h):
        for place, vector in zip(places, vectors, strict=True):
            h = put(place, vector)(h)
        return h

    ids = write_greedily(lm.model, ids, NEW, {} if layer is None else {layer: change})
    return lm.encoder.decode([i for i in ids if i != lm.model.config.eos_token_id])


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
@pytest.mark.parametrize("at", [[2], [1, 4]], ids=["one state", "two states"])
def test_answers_are_patches_made_by_hand(lm64, plain_lm, chat, at):
    lm = lm64 if chat else plain_lm
    answers = ask_about_states(lm, PROMPT, at, QUESTION, [1, 3], max_new_tokens=NEW, seed=5)
    prompt = lm.prompt(PROMPT)
    assert answers.positions == tuple(at)
    assert answers.tokens == tuple(prompt.tokens[n] for n in at)
    assert 0 < answers.other < len(prompt)
    assert answers.other not in at
    # the target prompt: as many places as states, and what a chat begins with once
    ((target, places),) = asking.untrained_scope(lm, QUESTION, 1, len(at)).resolved
    assert [places[0] + n for n in range(len(at))] == list(places)
    assert {target.tokens[n] for n in places} == {lm.encoder.tokens([lm.encoder.ids(" ?")[-1]])[0]}
    bos = lm.tokenizer.bos_token_id
    assert list(target.ids).count(bos) == (1 if chat else list(prompt.ids).count(bos))
    assert target.text.count("[user]") == int(chat)
    states = lm.read(PROMPT)
    for layer in (1, 3):
        own = states[layer, at]
        vectors = {
            "state": own,
            "other position": states[layer, [answers.other] * len(at)],
            "random vector": random_like(own, 5),
        }
        for way, h in vectors.items():
            (text,) = (a.text for a in answers.answers if (a.way, a.layer) == (way, layer))
            assert text == written(lm, target.ids, layer, places, h)
    assert answers.of("no state") == (written(lm, target.ids),)
    message = (asking.MESSAGE if chat else asking.CONTINUED).format(text=PROMPT, question=QUESTION)
    about_text = lm.chat(message) if chat else lm.prompt(message)
    assert answers.of("text alone") == (written(lm, about_text.ids),)


def test_what_nothing_was_trained_for_says_so(lm64):
    answers = ask_about_states(lm64, PROMPT, -1, QUESTION, 2, max_new_tokens=2)
    assert answers.trained == ""
    assert answers.note.startswith("nothing was trained for this")
    document = answers.to_json()
    assert document["note"] == answers.note
    assert document["answers"][-1] == {"way": "text alone", "layer": None, "text": answers.of("text alone")[0]}
    lines = str(answers.table())
    for way in asking.WAYS:
        assert way in lines
    # layers where none are named
    assert {a.layer for a in ask_about_states(lm64, PROMPT, -1, QUESTION, max_new_tokens=1).answers} == {1, 2, 3, -1}


def test_a_trained_reader_takes_the_place_of_the_untrained_one(lm64):
    """A mapping by layer, and target layers of its own: whatever its Patchscope has."""
    seen = []

    def scope_of(lm, question, layer, states):
        seen.append((question, layer, states))
        return ls.Patchscope(lm, ls.Target("a x b", at="x"), lambda h, at: h * at, layers=1)

    reader = StateReader(scope_of, "trained on nothing, for a test")
    answers = ask_about_states(lm64, PROMPT, 2, QUESTION, 3, reader=reader, max_new_tokens=NEW)
    assert seen == [(QUESTION, 3, 1)]
    assert (answers.trained, answers.note) == ("trained on nothing, for a test", "")
    states = lm64.read(PROMPT, 3, 2)
    expected = scope_of(lm64, QUESTION, 3, 1).generate(states, max_new_tokens=NEW)
    assert answers.of("state") == expected.texts


@pytest.mark.parametrize("at", [[2], [1, 4]], ids=["one state", "two states"])
def test_a_verbaliser_writes_states_less_its_center_through_its_map(lm64, at):
    draw = torch.Generator().manual_seed(0)
    bias, center = (torch.randn(32, generator=draw, dtype=torch.float64) for _ in range(2))
    trained = Verbaliser(
        VectorMap(scale=torch.tensor(3.0), bias=bias), meaning_target(lm64), 1, model_identity(lm64), layers=(3,),
        center=center[None],
    )  # fmt: skip
    reader = verbaliser_reader(trained)
    answers = ask_about_states(lm64, PROMPT, at, QUESTION, reader=reader, max_new_tokens=NEW, seed=5)
    ((target, places),) = asking.untrained_scope(lm64, QUESTION, 1, len(at)).resolved

    def through_the_map(h):
        return 3 * h / h.norm(dim=-1, keepdim=True) + trained.map.bias

    states = lm64.read(PROMPT, 3)[3, :] - trained.center[0]
    vectors = {
        "state": states[at],
        "other position": states[[answers.other] * len(at)],
        "random vector": random_like(states[at], 5),
    }
    for way, h in vectors.items():
        assert answers.of(way) == (written(lm64, target.ids, 1, places, through_the_map(h)),)
    assert "behind its own question" in answers.note
    assert answers.trained
    with pytest.raises(ls.LenscopeError, match="this verbaliser takes vectors of layers 3"):
        ask_about_states(lm64, PROMPT, at, QUESTION, 2, reader=reader)


def test_a_verbaliser_with_weights_for_each_layer_takes_one_state(lm64):
    scales, biases = torch.tensor([2.0, 4.0]), torch.ones(2, 32)
    trained = Verbaliser(
        VectorMap(scale=scales, bias=biases, layers=(1, 3)),
        meaning_target(lm64),
        0,
        model_identity(lm64),
        layers=(1, 3),
    )
    reader = verbaliser_reader(trained)
    answers = ask_about_states(lm64, PROMPT, 2, QUESTION, reader=reader, max_new_tokens=NEW)
    ((target, places),) = asking.untrained_scope(lm64, QUESTION, 1, 1).resolved
    states = lm64.read(PROMPT)
    for text, layer, scale in zip(answers.of("state"), (1, 3), (2, 4), strict=True):
        h = states[layer, [2]]
        assert text == written(lm64, target.ids, 0, places, scale * h / h.norm(dim=-1, keepdim=True) + 1)
    with pytest.raises(ls.LenscopeError, match="2 positions: this verbaliser has weights for each layer"):
        ask_about_states(lm64, PROMPT, [1, 2], QUESTION, reader=reader)


def test_contrasted_answers(lm64):
    how = {"max_new_tokens": NEW, "contrast": 3.0}
    answers = ask_about_states(lm64, PROMPT, 2, QUESTION, 2, **how)
    plain = ask_about_states(lm64, PROMPT, 2, QUESTION, 2, max_new_tokens=NEW)
    scope = asking.untrained_scope(lm64, QUESTION, 2, 1)
    assert answers.of("state") == scope.generate(lm64.read(PROMPT, 2, 2), **how).texts
    assert answers.of("no state") == plain.of("no state")
    assert answers.provenance["contrast"] == 3.0


def test_mistakes_are_told(lm64):
    for arguments, message in (
        ((PROMPT, -1, " "), "the question is empty"),
        ((PROMPT, "dog", QUESTION), "not in the prompt"),
        ((PROMPT, -1, QUESTION, 9), "layer 9"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            ask_about_states(lm64, *arguments)
    # nothing stands beside the only token
    alone = ask_about_states(lm64, [5], 0, QUESTION, 2, max_new_tokens=1)
    assert alone.other == -1
    assert alone.of("other position") == ()
