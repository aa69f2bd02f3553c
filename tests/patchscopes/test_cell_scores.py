"""Answers, targets and tokens given as text are the ids that follow a text, however the tokenizer begins one."""

import numpy as np
import pytest
import spelled
import tiny
import torch

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.models.prompts import Encoder
from lenscope.tasks.answer_likelihoods import answer_log_likelihoods, answer_tokens

KINDS = list(spelled.TOKENIZERS)


def encoder(kind):
    made = spelled.TOKENIZERS[kind]()
    return Encoder(made, max(made.get_vocab().values()) + 1, None, kind)


@pytest.fixture(scope="module")
def llama2():
    return ls.LM(tiny.model("llama", torch.float64), spelled.llama2(1), "llama2")


@pytest.mark.parametrize("kind", KINDS)
def test_what_tables_show_for_a_token_names_it(kind):
    made = encoder(kind)
    shown = made.tokens(range(made.vocab_size))
    first = {}
    for i, text in enumerate(shown):
        first.setdefault(text, []).append(i)
    for i, text in enumerate(shown):
        # of several tokens that read alike one is named: bytes and the letters that they are
        assert made.token_id(text) in first[text]
        assert made.tokens([made.token_id(text)]) == [text]
        assert made.token_id(i) == made.token_id(np.int64(i)) == made.token_id(torch.tensor(i)) == i
    assert len(first) > 0.7 * len(shown)


@pytest.mark.parametrize("kind", ["llama2", "unigram", "unigram_first", "bytelevel"])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("It is", " Paris"), ("It is ", "Paris"), ("It i", "s"), ("a\n", "Paris"), ("a", "!"), ("The c", "at sat")],
)
def test_prompt_and_answer_read_as_the_two_texts(kind, prompt, answer):
    made = encoder(kind)
    told = made.prompt(prompt)
    (ids,) = made.answer_ids(told, [answer])
    assert ids
    special = set(made.tokenizer.all_special_ids) - {made.tokenizer.unk_token_id}
    plain = [i for i in told.ids if i not in special]
    assert made.decode([*plain, *ids]) == made.decode(plain) + made.decode(made.ids("a" + answer))[1:]
    together = made.prompt(prompt + answer).ids
    if together[: len(told)] == told.ids:
        assert ids == together[len(told) :]


def test_ids_follow_prompts_of_text_of_ids_and_of_a_chat(llama2):
    text = llama2.prompt("It is")
    right = llama2.prompt("It is Paris").ids[len(text) :]
    assert llama2.encoder.tokens(right) == [" Paris"]
    assert llama2.encoder.token_id(" Paris") == right[0]
    for prompt in (text, llama2.prompt(text.ids), llama2.prompt(text.ids[1:]), llama2.prompt([77, 78, 79])):
        assert llama2.encoder.answer_ids(prompt, [" Paris", "s"]) == [right, (llama2.encoder.token_id("s"),)]
    # where the text would be joined to the prompt's last token, that stays, and the rest reads as the answer
    (rest,) = llama2.encoder.answer_ids(llama2.prompt("It is Pa"), ["ris"])
    assert "".join(llama2.encoder.tokens(rest)) == "ris"


def test_a_token_that_is_none_is_refused_with_its_pieces(llama2):
    with pytest.raises(LenscopeError, match=r"is 5 tokens \('P', 'a', 'r', 'i', 's'\).*' Paris'"):
        llama2.encoder.token_id("Paris")
    for bad in (True, 1.0, None, [1]):
        with pytest.raises(LenscopeError, match="give a token's text or its id"):
            llama2.encoder.token_id(bad)


def test_answers_are_scored_as_what_follows(llama2):
    right = llama2.encoder.token_id(" Paris")
    states = llama2.read("abc", positions=-1)
    grid = ls.Patchscope(llama2, "It is").predict(states, [1, 2], answers=[" Paris", np.int64(right), " Pas"])
    np.testing.assert_array_equal(grid.measures["log_prob: Paris"], grid.measures[f"log_prob:{right}"])
    several = llama2.encoder.answer_ids(llama2.prompt("It is"), [" Pas"])[0]
    assert len(several) == 2
    # by plain hooks
    prompt = llama2.prompt("It is").ids
    for layer, vector, said in ((s.layer, states[s.layer, -1], None) for s in grid.sources[:1]):
        assert said is None
        with llama2.edit(ls.Edit(layer=1, position=len(prompt) - 1, vector=vector)):
            logits = llama2.unembed(llama2.read([*prompt, several[0]], llama2.n_layers)[llama2.n_layers, -2:])
        wanted = sum(float(logits[n].log_softmax(-1)[i]) for n, i in enumerate(several))
        assert float(grid.measures["log_prob: Pas"][0]) == pytest.approx(wanted, rel=1e-5)
        assert layer == 0
    with pytest.raises(LenscopeError, match="is given as a text and as an id"):
        ls.Patchscope(llama2, "It is").predict(states, [1], answers=[5, "5"])
    lens = ls.Lens(llama2)
    by_text, by_id = (lens.trajectory("It is", target=t) for t in (" Paris", torch.tensor(right)))
    np.testing.assert_array_equal(by_text.cross_entropy, by_id.cross_entropy)
    assert answer_tokens(llama2, llama2.prompt("It is"), ["Paris"]) == [(right,)]
    scores = answer_log_likelihoods(lens, ["It is"], [["Paris", "Pas"]])
    assert scores.lengths.tolist() == [[1, 2]]
    assert scores.own[0, 0] == pytest.approx(-float(by_id.cross_entropy[-1, -1]), rel=1e-5)


def test_targets_may_have_an_answer_in_different_tokens(llama2):
    """ "is Pari" + "s" is joined in the one prompt and not in the other."""
    states = llama2.read("abc", [0, 2], -1)
    targets = [ls.Target("It is"), ls.Target("It is\n")]
    ids = [llama2.encoder.answer_ids(llama2.prompt(t.prompt), ["\n\n"])[0] for t in targets]
    answer = " Paris" if ids[0] == ids[1] else "\n\n"
    together = ls.Patchscope(llama2, targets).predict(states, [1, 3], answers=[answer, "P", "Par"])
    alone = [ls.Patchscope(llama2, t).predict(states, [1, 3], answers=[answer, "P", "Par"]) for t in targets]
    for name in (f"log_prob:{answer}", f"pmi:{answer}", "log_prob:Par", "pmi:P"):
        wanted = np.concatenate([grid.measures[name] for grid in alone])
        assert np.isfinite(wanted).all()
        np.testing.assert_allclose(together.measures[name], wanted, rtol=1e-6)


def test_rows_of_an_answer_are_those_of_its_targets(llama2, monkeypatch):
    """An answer of one token after the first target, and of two after the second."""
    first = {" Paris": [(102,), (40, 41)]}
    plain = llama2.encoder.answer_ids
    monkeypatch.setattr(
        llama2.encoder, "answer_ids",
        lambda prompt, some: [first[a][prompt.text == "no"] if a in first else plain(prompt, [a])[0] for a in some],
    )  # fmt: skip
    states = llama2.read("abc", [0, 2], -1)
    advanced = []
    scope = ls.Patchscope(llama2, [ls.Target("It is"), ls.Target("no")])
    grid = scope.predict(states, [1, 3], answers=[" Paris"], progress=lambda *a: advanced.append(a))
    assert advanced[-1] == (12, 12)
    alone = [
        ls.Patchscope(llama2, text).predict(states, [1, 3], answers=[" Paris"]).measures["log_prob: Paris"]
        for text in ("It is", "no")
    ]
    np.testing.assert_allclose(grid.measures["log_prob: Paris"], np.concatenate(alone), rtol=1e-6)
