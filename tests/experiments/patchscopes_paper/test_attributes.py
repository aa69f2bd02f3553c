"""Attribute extraction: scores and pairs by hand, and a whole run against plain hooks on the transformers model."""

import json

import numpy as np
import pytest
import torch

from lenscope import LenscopeError
from lenscope.display.panels import Heatmap
from lenscope.experiments.patchscopes_paper import attributes as module
from lenscope.experiments.patchscopes_paper.attribute_scores import (
    SCORES,
)
from lenscope.experiments.setting import Setting
from lenscope.tasks.relations import Fact
from lenscope.tasks.text_match import compared_words, mentions

PAPER, ORACLE, SELECTED, MEAN = SCORES.values()
SUBJECTS = ["cat", "mat", "test", "capital", "France", "Paris"]


# -- scores


def test_texts_that_tell_the_answer_are_not_used():
    fact = Fact("France", ("Paris",), ("Paris is in France", "I know France", "of France", "to France"))
    assert module._with_texts(fact, 2).texts == ("I know France", "of France")
    assert module._with_texts(Fact("Quebec", ("Quebec City",)), 9).texts[0].endswith(" Quebec")
    assert module._with_texts(Fact("Mexico City", ("Mexico",)), 9).texts == ()


# -- a run


def patched(lm, source, target, at, to, count):
    """Greedy after `target` with the state of `source`'s last token at layer `at` in place of its own at `to`.

    Plain hooks on the transformers model; the whole text is read again for every token.
    """
    blocks = lm.model.model.layers
    kept = {}

    def keep(_, args, kwargs):
        kept["h"] = (args[0] if args else kwargs["hidden_states"])[0, -1].clone()

    def keep_after(_, args, out):
        kept["h"] = (out[0] if isinstance(out, tuple) else out)[0, -1].clone()

    hook = (
        blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
        if at == 0
        else blocks[at - 1].register_forward_hook(keep_after)
    )
    ids = list(lm.tokenizer(target)["input_ids"])
    place, start = len(ids) - 1, len(ids)
    lm.model(torch.tensor([lm.tokenizer(source)["input_ids"]]), use_cache=False)
    hook.remove()

    def put(_, args, kwargs):
        h = (args[0] if args else kwargs["hidden_states"]).clone()
        h[0, place] = kept["h"]
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

    def put_after(_, args, out):
        h = (out[0] if isinstance(out, tuple) else out).clone()
        h[0, place] = kept["h"]
        return (h, *out[1:]) if isinstance(out, tuple) else h

    hook = (
        blocks[0].register_forward_pre_hook(put, with_kwargs=True)
        if to == 0
        else blocks[to - 1].register_forward_hook(put_after)
    )
    try:
        for _ in range(count):
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == lm.tokenizer.eos_token_id:
                ids.pop()
                break
    finally:
        hook.remove()
    return lm.tokenizer.decode(ids[start:])


@pytest.fixture(scope="module")
def ran(lm64, tmp_path_factory):
    """A quick run on a tiny model that is taken to know everything, and the texts of all its cells by plain hooks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "known_facts", lambda lm, relation, *_: np.ones(len(relation.facts), dtype=bool))
    patch.setattr(module, "TOKENS", {"quick": 5, "full": 5})
    torch.set_grad_enabled(False)
    target, layers = "The test of x", range(lm64.n_layers + 1)
    texts = {
        s: np.array([[patched(lm64, f"on the {s}", target, a, b, 5) for b in layers] for a in layers], dtype=object)
        for s in SUBJECTS
    }
    torch.set_grad_enabled(True)
    # each object is a word that is said of the subject in some cell
    answers = {}
    for n, (subject, said) in enumerate(texts.items()):
        known = " ".join(SUBJECTS)
        found = [
            w
            for t in said.reshape(-1)
            for w in compared_words(t)
            if mentions(t, w) and not mentions(f"on the {known}", w)
        ]
        answers[subject] = found[7 * n % len(found)]
    folder = tmp_path_factory.mktemp("attributes")
    lines = ["relation\tsubject\tobject\ttemplate\ttarget\ttext"]
    lines += [f"r\t{s}\t{answers[s]}\tThe test of {{}} is\t{target}\ton the {s}" for s in SUBJECTS]
    lines += [f"small\t{s}\tdog\t\t\t" for s in SUBJECTS[:3]]
    (folder / "facts.tsv").write_text("\n".join(lines) + "\n")
    setting = Setting(lm64, data=(str(folder / "facts.tsv"),), quick=True, folder=folder)
    report = module.EXPERIMENT.run(setting)
    yield setting, report, texts, answers, patch
    patch.undo()


def test_a_runs_scores_are_those_of_plain_hooks(ran):
    _, report, texts, answers, _ = ran
    right = {s: np.array([[mentions(t, answers[s]) for t in line] for line in texts[s]]) for s in SUBJECTS}
    state = next(r for r in report.tables["relations"] if r["source"] == module.STATE)
    assert state[PAPER].value == pytest.approx(np.mean([right[s].any(1).mean() for s in SUBJECTS]))
    assert state[ORACLE].value == pytest.approx(np.mean([right[s].any() for s in SUBJECTS])) == 1
    assert state[MEAN].value == pytest.approx(np.mean([right[s].mean() for s in SUBJECTS]))
    assert 0 < state[MEAN].value < state[PAPER].value < 1
    by_layer = [r for r in report.tables["by source layer"] if r["relation"] == "r"]
    for n, row in enumerate(by_layer):
        assert row[module.STATE].value == pytest.approx(np.mean([right[s][n].any() for s in SUBJECTS]))
    (heat,) = next(f for f in report.figures if f.name == "cells").panels
    assert isinstance(heat, Heatmap)
    assert np.asarray(heat.values) == pytest.approx(np.mean([right[s] for s in SUBJECTS], 0))


def test_a_runs_controls_are_those_of_plain_hooks(ran):
    _, report, texts, answers, _ = ran
    found = {row["source"]: row for row in report.tables["relations"]}
    others = [
        [np.mean([mentions(t, answers[s]) for t in texts[o].reshape(-1)]) for o in SUBJECTS if answers[o] != answers[s]]
        for s in SUBJECTS
    ]
    assert found[module.OTHER][MEAN].value == pytest.approx(np.mean([np.mean(v) for v in others]))
    assert set(found) == {
        module.STATE, module.OTHER, module.RANDOM, module.NOTHING, module.TEXT,
        module.PROBE, module.CONTROL, module.MAJORITY,
    }  # fmt: skip
    for row in found.values():
        assert row[SELECTED].value <= row[ORACLE].value
        assert row[MEAN].value <= row[ORACLE].value


def test_text_in_place_of_a_vector_and_no_patch(ran, lm64):
    _, report, _, answers, _ = ran
    found = {row["source"]: row for row in report.tables["relations"]}

    def said(prompt):
        ids = torch.tensor([lm64.tokenizer(prompt)["input_ids"]])
        out = lm64.model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
        return lm64.tokenizer.decode(out[0, ids.shape[1] :])

    asked = np.mean([mentions(said(f"The test of {s}"), answers[s]) for s in SUBJECTS])
    alone = np.mean([mentions(said("The test of x"), answers[s]) for s in SUBJECTS])
    assert found[module.TEXT][SELECTED].value == pytest.approx(asked)
    assert found[module.NOTHING][SELECTED].value == pytest.approx(alone)


def test_what_is_left_out_is_said_and_a_report_is_whole(ran, tmp_path):
    _, report, *_ = ran
    assert report.settings["left_out"] == {"small": "has 3 facts"}
    assert "By the paper's score" in report.reading
    report.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"by_source_layer.png", "cells.png", "relations.parquet"}
    json.loads((tmp_path / "report.json").read_text())


def test_an_interrupted_run_goes_on_with_what_it_has(ran):
    setting, report, _, _, patch = ran

    def fail(*_, **__):
        raise AssertionError("was run again")

    with patch.context() as again:
        for name in ("known_facts", "probe"):
            again.setattr(module, name, fail)
        repeated = module.EXPERIMENT.run(setting)
    assert repeated.to_json()["tables"] == report.to_json()["tables"]


def test_a_model_that_knows_nothing_is_refused(ran, tmp_path):
    setting, _, _, _, patch = ran
    with patch.context() as again:
        again.setattr(module, "known_facts", lambda lm, relation, *_: np.zeros(len(relation.facts), dtype=bool))
        with pytest.raises(LenscopeError, match="none of 2 has them"):
            module.EXPERIMENT.run(Setting(setting.lm, data=setting.data, quick=True))
