"""Topic vectors: the last token's states of turns about titles, less their mean; prefixes read once change nothing."""

import re
from copy import deepcopy
from importlib import import_module

import pytest
import tiny
import torch
from torch.testing import assert_close

import lenscope as ls
from lenscope.text.topic_vectors import LabelledToken, labelled_states, topic_vectors

# the room has a function of this name
topics = import_module("lenscope.text.topic_vectors")
TITLES = ["Paris", "a much longer title than these", "x", "The Moon"]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def chats():
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.chat_template = TEMPLATE
    return ls.LM(tiny.model("gpt2", dtype=torch.float64), tokenizer, "chats")


@pytest.fixture(scope="module")
def plain():
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.chat_template = None
    return ls.LM(tiny.model("llama", dtype=torch.float64), tokenizer, "plain")


@pytest.mark.parametrize("which", ["chats", "plain"])
def test_vectors_are_last_states_less_their_mean(chats, plain, which):
    lm = chats if which == "chats" else plain
    seen = []
    got = topic_vectors(lm, TITLES, [1, 3], progress=lambda done, total: seen.append((done, total)))
    asked = [f"Tell me about {title}." for title in TITLES]
    prompts = [lm.chat(text) if which == "chats" else lm.prompt(f"Question: {text}\nAnswer:") for text in asked]
    states = torch.stack([lm.read(p, (1, 3), -1).tensor[0, :, 0] for p in prompts])
    # a prefix read once rounds where the model does
    assert_close(got.vectors + got.mean, states, rtol=1e-4, atol=1e-4)
    assert_close(got.vectors.mean(0), torch.zeros_like(got.mean), atol=1e-9, rtol=0)
    assert (got.labels, got.layers, seen[-1]) == (tuple(TITLES), (1, 3), (4, 4))


def test_the_usual_layer_is_at_sixty_percent(chats):
    assert topic_vectors(chats, TITLES[:2]).layers == (2,)


def test_a_shared_beginning_is_read_once_where_it_is_exact(chats, monkeypatch):
    prompts = [chats.chat(f"Tell me about {title}.") for title in TITLES]
    order = sorted(range(4), key=lambda n: len(prompts[n]))
    prefix = topics._shared_beginning(chats, prompts, order, (1, 3))
    assert prefix is not None
    first = prompts[0].ids[: prefix.length]
    assert all(p.ids[: prefix.length] == first and len(p) > prefix.length for p in prompts)
    monkeypatch.setattr(topics, "SHORTEST_PREFIX", 1000)
    assert topics._shared_beginning(chats, prompts, order, (1, 3)) is None
    fast = topics.last_states(chats, prompts, (4,))
    assert_close(fast, chats.read(prompts, 4, -1).tensor[:, :, 0], rtol=1e-9, atol=1e-9)


def test_labelled_tokens_are_read_where_they_stand(lm64):
    rows = [LabelledToken("the cat sat", "cat", "animal"), LabelledToken("Paris is big", 0, "city")]
    got = labelled_states(lm64, rows, 2)
    states = torch.stack(
        [lm64.read("the cat sat", 2, "cat").tensor[0, 0], lm64.read("Paris is big", 2, 0).tensor[0, 0]]
    )
    assert_close(got.vectors + got.mean, states, rtol=1e-4, atol=1e-4)
    assert got.labels == ("animal", "city")


@pytest.mark.parametrize(
    ("titles", "how", "said"),
    [
        (["a", "b"], {"template": "Tell me"}, "template 'Tell me': give a text with one {}"),
        (["a", "b"], {"template": "{} {}"}, "with one {}"),
        (["a"], {}, "titles: 1; give two at least"),
        ("ab", {}, "titles: is one text"),
        (["a", " "], {}, "titles: number 1, ' ', is no text"),
        (["a", "b"], {"layers": 9}, "layer 9"),
    ],
)
def test_what_makes_no_vectors_is_refused(lm64, titles, how, said):
    with pytest.raises(ls.LenscopeError, match=re.escape(said)):
        topic_vectors(lm64, titles, **how)


def test_a_token_that_is_not_there_is_refused(lm64):
    with pytest.raises(ls.LenscopeError, match="position 'dog': not in the prompt"):
        labelled_states(lm64, [LabelledToken("the cat", "dog", "x"), LabelledToken("a", 0, "y")])
    with pytest.raises(ls.LenscopeError, match="rows: 1; give two at least"):
        labelled_states(lm64, [LabelledToken("a", 0, "y")])
