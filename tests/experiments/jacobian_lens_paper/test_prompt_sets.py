"""Prompt sets: every wrong line is told with its field, positions and tokens are those of the published evaluation."""

import json
from pathlib import Path

import pytest

import lenscope as ls
from lenscope.experiments.jacobian_lens_paper.builtin_thoughts import builtin_bridge_swaps, builtin_thoughts
from lenscope.experiments.jacobian_lens_paper.prompt_sets import (
    load_prompt_sets,
    position_read,
    single_token_forms,
    spellings,
)

THOUGHT = {"id": "a", "set": "typo", "prompt": "the cat", "target": None, "intermediates": ["mat"]}
SWAP = {
    "id": "s", "category": "x", "prompt": "the cat", "intermediate": "cat", "answer": "mat", "swap_to": "Paris",
    "swap_answer": "France",
}  # fmt: skip
PUBLISHED = Path("/work/shared/data/lens_eval")


def written(tmp_path, *rows):
    path = tmp_path / "sets.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return [path]


def test_lines_of_both_forms_are_read_from_one_file(tmp_path):
    prompts, swaps = load_prompt_sets(written(tmp_path, THOUGHT, SWAP, {**THOUGHT, "id": "b", "set": "poetry"}))
    assert [(p.id, p.set, p.prompt, p.words, p.at_line_end) for p in prompts] == [
        ("a", "typo", "the cat", ("mat",), False),
        ("b", "poetry", "the cat", ("mat",), True),
    ]
    (swap,) = swaps
    assert (swap.bridge, swap.answer, swap.other_bridge, swap.other_answer) == ("cat", "mat", "Paris", "France")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**THOUGHT, "intermediates": []}, "intermediates is []; give a list of words"),
        ({**THOUGHT, "intermediates": ["a", " "]}, "intermediates is ['a', ' ']; give a list of words"),
        ({**THOUGHT, "intermediates": "mat"}, "intermediates is 'mat'; give a list of words"),
        ({**THOUGHT, "prompt": ""}, "prompt is ''; give a text"),
        ({**THOUGHT, "set": 3}, "set is 3; give a text"),
        ({**THOUGHT, "target": 3}, "target is 3; give a text"),
        ({**THOUGHT, "id": ""}, "id is ''; give a text"),
        ({k: v for k, v in THOUGHT.items() if k != "prompt"}, "has no prompt; give a text"),
        ({k: v for k, v in SWAP.items() if k != "answer"}, "has no answer; give a text"),
        ({**SWAP, "swap_to": None}, "swap_to is None; give a text"),
        ({"prompt": "the cat"}, "has neither intermediates"),
        ([1], "give an object with keys"),
    ],
)
def test_a_wrong_line_is_told_with_its_field(tmp_path, row, said):
    with pytest.raises(ls.LenscopeError) as error:
        load_prompt_sets(written(tmp_path, SWAP, row))
    assert f"line 2: {said}" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_id_that_is_given_twice_is_told(tmp_path):
    # a swap and a prompt may have the same
    load_prompt_sets(written(tmp_path, THOUGHT, {**SWAP, "id": "a"}))
    with pytest.raises(ls.LenscopeError, match=r"line 2: id 'a' is that of .*line 1 too"):
        load_prompt_sets(written(tmp_path, THOUGHT, THOUGHT))
    without = {k: v for k, v in THOUGHT.items() if k != "id"}
    prompts, _ = load_prompt_sets(written(tmp_path, without, without))
    assert len({p.id for p in prompts}) == 2


def test_prompts_are_read_at_their_last_token_or_line_end(lm):
    prompt = lm.prompt("the cat\nsat on\nthe mat")
    ends = [n for n, token in enumerate(prompt.tokens) if "\n" in token]
    assert ends
    assert position_read(prompt, False) == len(prompt) - 1
    assert position_read(prompt, True) == ends[-1] < len(prompt) - 1
    assert position_read(lm.prompt("the cat"), True) == len(lm.prompt("the cat")) - 1


def test_numbers_and_operations_have_other_names():
    assert spellings("5", True) == ("5", "five")
    assert spellings("Five", True) == ("Five", "5")
    assert spellings("multiplication", True) == ("multiplication", "*", "times", "multiply", "product")
    assert spellings("cat", True) == ("cat",)
    assert spellings("5", False) == ("5",)


def test_a_words_tokens_are_its_forms_of_one_token(lm):
    words = ["cat", "France", "5", "tokenizer", "qzxj", ""]
    tokens = single_token_forms(lm, words)
    for word, ids in zip(words, tokens, strict=True):
        forms = {word, f" {word}", word.capitalize(), f" {word.capitalize()}"}
        alone = [lm.encoder.ids(form) for form in forms]
        assert set(ids) == {one[0] for one in alone if len(one) == 1}
        assert list(ids) == sorted(set(ids))
    assert tokens[0]
    assert not tokens[4]
    assert single_token_forms(lm, []) == []
    with pytest.raises(ls.LenscopeError, match="without a tokenizer"):
        single_token_forms(ls.LM(lm.model, None, "bare"), words)


def test_the_built_in_prompts_are_of_the_six_sets():
    prompts = builtin_thoughts()
    assert {p.set for p in prompts} == {"association", "typo", "multihop", "multilingual", "order-ops", "poetry"}
    assert len({p.id for p in prompts}) == len(prompts) == 48
    for p in prompts:
        assert p.at_line_end == (p.set == "poetry") == ("\n" in p.prompt)
        # what is thought is not said
        last = p.prompt.lower().rstrip(" .").split()[-1]
        assert last not in {w.lower() for w in p.words}
    assert len({s.id for s in builtin_bridge_swaps()}) == 8
    for s in builtin_bridge_swaps():
        assert not {s.bridge.lower(), s.answer.lower(), s.other_answer.lower()} & set(s.prompt.lower().split())


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published prompt sets are not on this machine")
def test_the_published_files_are_read_whole():
    prompts, swaps = load_prompt_sets([PUBLISHED / "lens_eval.jsonl", PUBLISHED / "swap.jsonl"])
    assert (len(prompts), len(swaps)) == (371, 66)
    assert {p.set for p in prompts} == {p.set for p in builtin_thoughts()}
