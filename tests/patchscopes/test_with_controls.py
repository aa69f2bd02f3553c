"""What an explanation is worth: every way of telling equals plain hooks and plain generation; scores by hand."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import tiny
import torch
from tokenizers.processors import TemplateProcessing

from lenscope.errors import LenscopeError
from lenscope.models.edits import Edit
from lenscope.models.language_model import LM
from lenscope.patchscopes import with_controls as verbalizing
from lenscope.patchscopes.control_runs import (
    BIAS,
    CONTROLS,
    MEAN,
    NONE,
    RANDOM,
    SHUFFLED,
    TEXT,
    UNIT,
    UNTRAINED,
    VECTOR,
    exchanged_items,
    text_prompts,
)
from lenscope.patchscopes.controls import random_vectors, shuffled_sources
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.with_controls import (
    ControlledScores,
    ControlledTexts,
    generate_with_controls,
    score_with_controls,
    texts_by_cell,
)

NAMES = ["The cat", "France", "a test of the mat", "Paris is"]
PROMPT = "The capital of x"
NEW = 3


def by_hand(model, ids, patch=None):
    """Greedy ids after `ids` without a cache, a vector written at (layer, positions) by a plain hook in every pass."""
    written = []
    for _ in range(NEW):
        with ExitStack() as undo:
            if patch is not None:
                layer, position, v = patch
                position = list(position) if isinstance(position, tuple) else position

                def write(h, position=position, v=v):
                    h = h.clone()
                    h[:, position] = v
                    return h

                if layer:
                    hook = model.model.layers[layer - 1].register_forward_hook(lambda m, a, out: write(out))
                else:
                    hook = model.model.layers[0].register_forward_pre_hook(lambda m, a: (write(a[0]), *a[1:]))
                undo.callback(hook.remove)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == model.config.eos_token_id:
            break
    return written


@pytest.fixture(scope="module")
def scope(lm64):
    return Patchscope(lm64, Target(PROMPT, at="x"))


@pytest.fixture(scope="module")
def said(lm64, scope):
    pairs = [(0, 0), (0, 3), (2, 1), (4, 3)]
    return generate_with_controls(scope, lm64.read(NAMES, positions=-1), NAMES, pairs, max_new_tokens=NEW)


def shown(lm, ids):
    end = lm.model.config.eos_token_id
    return lm.tokenizer.decode([i for i in ids if i != end], clean_up_tokenization_spaces=False)


def test_every_way_of_telling_equals_hooks(lm64, said):
    model, tokenizer = lm64.model, lm64.tokenizer
    ids = tokenizer(PROMPT).input_ids
    assert said.cells == ((0, 0), (0, 3), (2, 1), (4, 3))
    states = lm64.read(NAMES, positions=-1)
    drawn = random_vectors(states, 0)
    for n, name in enumerate(NAMES):
        for c, (source, target) in enumerate(said.cells):
            for way, where in ((VECTOR, states), (RANDOM, drawn)):
                expected = by_hand(model, ids, (target, len(ids) - 1, where[source, -1][n]))
                assert said.texts[way][n, c] == shown(lm64, expected)
        # the prompt ends in its placeholder, so that the text comes last
        instead = tokenizer(PROMPT[:-1] + name).input_ids
        assert said.texts[TEXT][n, 0] == shown(lm64, by_hand(model, instead))
        assert said.texts[NONE][n, 0] == shown(lm64, by_hand(model, ids))
    # a patch says something of its own, else nothing was compared
    assert len({*said.texts[VECTOR].reshape(-1), *said.texts[RANDOM].reshape(-1)}) > 4


def test_vectors_and_the_controls_of_their_map_equal_hooks(lm64):
    """A map at layer 0 of two placeholders, and every control that it brings."""
    model, tokenizer = lm64.model, lm64.tokenizer
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.linspace(-1, 1, 32, dtype=torch.float64)

    def f(h):
        return h @ weight + bias

    scope = Patchscope(lm64, Target("x is a x", at="x", every=True), f, layers=0)
    (prompt, places) = scope.resolved[0]
    vectors = lm64.read(NAMES, 3, -1).tensor[:, 0, 0]
    found = generate_with_controls(scope, vectors, NAMES, max_new_tokens=NEW, seed=2)
    assert tuple(found.texts) == (VECTOR, *CONTROLS)
    assert found.cells == ((-1, 0),)
    length = lm64.read("x is a x", 0).tensor.norm(dim=-1).mean()
    patches = {
        VECTOR: f(vectors),
        RANDOM: f(random_vectors(vectors, 2)),
        MEAN: f(vectors.mean(0, keepdim=True)).expand(4, -1),
        UNTRAINED: vectors,
        UNIT: length * vectors / vectors.norm(dim=-1, keepdim=True),
        BIAS: bias.expand(4, -1),
    }
    for way, vector in patches.items():
        for n in range(4):
            expected = by_hand(model, prompt.ids, (0, places, vector[n]))
            assert found.texts[way][n, 0] == shown(lm64, expected), way
    assert (found.texts[SHUFFLED] == found.texts[VECTOR][exchanged_items(None, 4, 2)]).all()
    for n, name in enumerate(NAMES):
        instead = tokenizer(f"{name} is a {name}").input_ids
        assert found.texts[TEXT][n, 0] == shown(lm64, by_hand(model, instead))
    assert len({texts[0, 0] for texts in found.texts.values()}) > 4
    frame = found.to_dataframe()
    assert frame["source_layer"].isna().all()
    few = generate_with_controls(scope, vectors, controls=[BIAS, NONE], max_new_tokens=NEW)
    assert tuple(few.texts) == (VECTOR, NONE, BIAS)
    assert (few.texts[BIAS] == found.texts[BIAS]).all()
    row = few.scored_together(lambda texts: np.array([len(t) for t in texts])).row()
    assert row[BIAS].value == np.mean([len(t) for t in found.texts[BIAS][:, 0]])
    assert "vector - bias alone" in row
    assert "vector above text" not in row


def test_a_target_with_edits_has_every_control_but_the_text(lm64):
    edit = Edit(0, [0, 1], torch.linspace(-2, 2, 64, dtype=torch.float64).view(2, 32))
    scope = Patchscope(lm64, Target("a b is x", at="x", edits=(edit,)))
    states = lm64.read(NAMES, positions=-1)
    found = generate_with_controls(scope, states, layers=[2], max_new_tokens=NEW)
    assert tuple(found.texts) == (VECTOR, NONE, RANDOM, SHUFFLED, MEAN)
    with lm64.edit(edit):
        assert found.texts[NONE][0, 0] == lm64.generate("a b is x", NEW).text
    assert found.texts[NONE][0, 0] != lm64.generate("a b is x", NEW).text
    with pytest.raises(LenscopeError, match="texts: the target prompt has edits of its own"):
        generate_with_controls(scope, states, NAMES)


def test_controls_exist_only_where_there_is_something_to_run(lm64, scope):
    vectors = torch.randn(3, 32, dtype=torch.float64)
    plain = generate_with_controls(scope, vectors, layers=[1], max_new_tokens=1)
    assert tuple(plain.texts) == (VECTOR, NONE, RANDOM, SHUFFLED, MEAN)
    linear = Patchscope(lm64, Target(PROMPT, at="x"), lambda h: 2 * h, layers=1)
    assert tuple(generate_with_controls(linear, vectors, max_new_tokens=1).texts) == (
        VECTOR, NONE, RANDOM, SHUFFLED, MEAN, UNTRAINED, UNIT,
    )  # fmt: skip
    wide = Patchscope(lm64, Target(PROMPT, at="x"), lambda h: h[..., :32] + 1, layers=1)
    found = generate_with_controls(wide, torch.randn(3, 40, dtype=torch.float64), max_new_tokens=1)
    assert tuple(found.texts) == (VECTOR, NONE, RANDOM, SHUFFLED, MEAN, BIAS)
    assert tuple(generate_with_controls(scope, vectors[:1], layers=[1], max_new_tokens=1).texts) == (
        VECTOR, NONE, RANDOM,
    )  # fmt: skip
    for name, said in (
        (BIAS, "has no map f"), ("nothing", "control 'nothing': there are text, no patch"), (TEXT, "give the texts"),
    ):  # fmt: skip
        with pytest.raises(LenscopeError, match=said):
            generate_with_controls(scope, vectors, controls=[name], layers=[1])
    with pytest.raises(LenscopeError, match="give the numbers of target layers"):
        generate_with_controls(scope, torch.randn(5, 32), layers="same")
    with pytest.raises(LenscopeError, match="of N items"):
        generate_with_controls(scope, torch.randn(32), layers=[1])


def test_text_stands_behind_the_tokens_that_the_target_begins_with(lm64):
    tokenizer = tiny.tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    lm = LM(lm64.model, tokenizer, "with a first token")
    own = lm.prompt("A test of x").ids
    assert own[0] == 1
    for ids in (own, own[1:]):
        prompt = lm.prompt(list(ids))
        scope = Patchscope(lm, Target(list(ids), at=-1))
        (made,) = text_prompts(scope, ["mat"], 1)
        assert made.ids[: len(ids) - 2] == prompt.ids[: len(ids) - 2]
        assert made.text.endswith("mat")


def test_shuffled_sources_are_what_other_states_say(lm64, scope):
    states = lm64.read(NAMES, positions=-1)
    answers = ["a", "b", "a", "b"]
    found = generate_with_controls(scope, states, NAMES, [1, 3], answers=answers, max_new_tokens=NEW, seed=3)
    grid = scope.generate(shuffled_sources(states, answers, 3), [1, 3], max_new_tokens=NEW)
    cells, expected = texts_by_cell(grid)
    assert cells == found.cells == tuple((a, b) for a in range(5) for b in (1, 3))
    assert (found.texts[SHUFFLED] == expected).all()
    assert (found.texts[SHUFFLED] != found.texts[VECTOR]).any()


def test_text_is_cut_as_vectors_are(lm64, scope):
    states = lm64.read(NAMES, positions=-1)
    long = generate_with_controls(scope, states, NAMES, [0], max_new_tokens=8)
    letter = next(c for c in long.texts[TEXT][0, 0][1:] if c.isalpha())
    cut = generate_with_controls(scope, states, NAMES, [0], max_new_tokens=8, stop=letter)
    for way in (VECTOR, TEXT, NONE, RANDOM, SHUFFLED):
        assert cut.texts[way].tolist() == [[t.split(letter)[0] for t in row] for row in long.texts[way].tolist()]


def test_scores_take_the_item_and_keep_the_cell(said):
    made = said.scored(lambda text, n: len(text) + 100 * n)
    for way, texts in said.texts.items():
        assert made.scores[way].tolist() == [[len(t) + 100 * n for t in row] for n, row in enumerate(texts.tolist())]
    again = ControlledTexts.from_json(json.loads(json.dumps(said.to_json())))
    assert again.cells == said.cells
    assert all((again.texts[way] == texts).all() for way, texts in said.texts.items())


def planted(n=40):
    """A vector right at (2, 1) for three items of four, a text for every second one, a random vector nowhere."""
    vector = np.zeros((n, 4))
    vector[np.arange(n) % 4 < 3, 2] = 1
    vector[np.arange(n) % 4 == 3, 0] = 1
    text = (np.arange(n)[:, None] % 2 == 0).astype(float)
    zero = np.zeros((n, 4))
    cells = ((0, 0), (0, 3), (2, 1), (4, 3))
    return ControlledScores(cells, {VECTOR: vector, TEXT: text, NONE: zero[:, :1], RANDOM: zero, SHUFFLED: zero})


def test_what_the_vector_adds_by_hand():
    made = planted()
    row = made.row()
    assert made.chosen() == [(2, 1), (2, 1)]
    assert row[VECTOR].value == 0.75
    assert row[TEXT].value == 0.5
    assert row["vector - text"].value == 0.25
    # items 1 of 4 have the vector alone, items 3 of 4 neither
    assert row["vector above text"].value == 0.25
    assert row["text above vector"].value == 0
    assert row["vector - random vector"].value == row["vector - no patch"].value == 0.75
    assert made.row(kind="oracle")[VECTOR].value == 1
    assert made.row(kind="mean")[VECTOR].value == 0.25
    layers = made.by_layer()
    assert [r["layer"] for r in layers] == [0, 2, 4]
    assert [r[VECTOR].value for r in layers] == [0.25, 0.75, 0]
    assert [r["text above vector"].value for r in layers] == [0.5, 0, 0.5]
    low, high = row["vector - text"][1:]
    assert low < 0.25 < high


def test_units_are_resampled_whole():
    made = planted()
    alone, together = (
        made.row()[VECTOR],
        ControlledScores(made.cells, made.scores, [n // 20 for n in range(40)]).row()[VECTOR],
    )
    assert together.value == alone.value
    # both units have the same mean, so that nothing varies
    assert together.low == together.high == 0.75
    assert alone.low < 0.7
    # items of a unit are in one fold
    units = [n % 5 for n in range(40)]
    fold = ControlledScores(made.cells, made.scores, units).selection().fold
    assert all(len({int(f) for f, u in zip(fold, units, strict=True) if u == unit}) == 1 for unit in range(5))


def test_worth_is_what_is_said_scored(lm64, scope, said):
    states = lm64.read(NAMES, positions=-1)
    done = []
    made = score_with_controls(
        scope,
        states,
        NAMES,
        lambda text, n: float(text.count(NAMES[n][0])),
        said.cells,
        max_new_tokens=NEW,
        units=[0, 0, 1, 1],
        progress=lambda a, b: done.append((a, b)),
    )
    assert (made.scores[VECTOR] == said.scored(lambda text, n: text.count(NAMES[n][0])).scores[VECTOR]).all()
    assert made.units == [0, 0, 1, 1]
    # vectors, random ones, and the mean vector in every cell
    assert done[-1] == (36, 36)
    assert [a for a, _ in done] == sorted(a for a, _ in done)


def test_what_cannot_be_told_is_refused(lm64, scope):
    states = lm64.read(NAMES, positions=-1)
    with pytest.raises(LenscopeError, match="3 texts, 4 items: give one text for each"):
        generate_with_controls(scope, states, NAMES[:3])
    with pytest.raises(LenscopeError, match="states of one position of each prompt"):
        generate_with_controls(scope, lm64.read(["a b", "c d"]), ["a b", "c d"])
    two = Patchscope(lm64, [Target(PROMPT, at="x"), Target("one x", at="x")])
    with pytest.raises(LenscopeError, match="one target"):
        generate_with_controls(two, states, NAMES)


def test_continuations_end_with_the_text(lm64):
    found = verbalizing.continue_texts(lm64, [NAMES[0], lm64.prompt(NAMES[1])], 4)
    assert found == [shown(lm64, c.ids) for c in lm64.generate([NAMES[0], NAMES[1]], 4)]
