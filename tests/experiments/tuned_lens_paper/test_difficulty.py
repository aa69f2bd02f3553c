"""The experiment on difficulty, end to end, against a computation of its own."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import spearmanr
from small_training import PLAN, TEXTS
from torch.nn import functional
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import difficulty
from lenscope.experiments.tuned_lens_paper import difficulty_examples as tokens
from lenscope.experiments.tuned_lens_paper import difficulty_training as training
from lenscope.fitting import pretraining
from lenscope.fitting.pretraining import Checkpoints, blank
from lenscope.statistics import rank_correlations as association


def learned_by_hand(tops):
    return [next(k for k in range(len(c)) if len({*c[k:]}) == 1) for c in np.array(tops).T.tolist()]


def test_the_experiment_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PLANS", {"quick": replace(PLAN, steps=14, rows=4, rate=0.03), "full": PLAN})
    monkeypatch.setattr(difficulty, "MEASURED", {"quick": 512, "full": 512})
    monkeypatch.setattr(training, "FITTED", {"quick": 1024, "full": 1024})
    monkeypatch.setattr(difficulty, "TASK", 20)
    monkeypatch.setattr(difficulty, "correlations", partial(association.correlations, resamples=30))
    monkeypatch.setattr(training, "blank", partial(blank, vocabulary=300, layers=3, hidden_size=32, context=32))
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    setting = Setting(
        ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny"), text=(str(path),), quick=True, folder=tmp_path
    )
    report = difficulty.EXPERIMENT.run(setting)
    report.save(tmp_path)
    made = Checkpoints.in_folder(tmp_path / "pretrained")
    assert list(made.steps) == report.settings["checkpoints"]

    # the same from plain transformers models and loops
    lm = made.load(made.steps[-1])
    held = ls.Corpus.open(lm, [path], epochs=1).split(0.1)[1]
    found = tokens.next_token_examples(held, 512)
    ids = torch.tensor([row for row, _ in found.rows])
    at = torch.zeros_like(ids, dtype=torch.bool)
    for row, (_, places) in zip(at, found.rows, strict=True):
        row[places] = True
    tops = []
    for step in made.steps:
        model = AutoModelForCausalLM.from_pretrained(made.path(step)).eval()
        with torch.no_grad():
            tops.append(model(input_ids=ids).logits.argmax(-1)[at].tolist())
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        layers = [model.lm_head(model.model.norm(h))[at].argmax(-1).tolist() for h in states[:-1]]
        log_p = model(input_ids=ids).logits[at].log_softmax(-1)
        loss = functional.nll_loss(log_p, torch.from_numpy(found.target)).item()
        first = log_p.topk(2).values
    depth, learned = learned_by_hand([*layers, tops[-1]]), learned_by_hand(tops)
    row = report.tables["Spearman of depth and iteration learned"][0]
    assert row["task"] == "all"
    assert row["examples"] == len(learned)
    assert row["logit lens"].value == pytest.approx(spearmanr(depth, learned).statistic, abs=1e-9)
    right = np.array(tops[-1]) == found.target
    assert row["right"].value == pytest.approx(right.mean())
    controls = {r["control"]: r for r in report.tables["controls"]}
    goes = {r["of all examples"]: r["Spearman"].value for r in report.tables["what goes with iteration learned"]}
    for name, values in (
        ("entropy of the last prediction", -(log_p.exp() * log_p).sum(-1)),
        ("closeness of its first two tokens", first[:, 1] - first[:, 0]),
    ):
        assert goes[name] == pytest.approx(spearmanr(learned, values.numpy()).statistic, abs=2e-3)
    only = controls["right in the end and from then on"]["logit lens"].value
    assert only == pytest.approx(spearmanr(np.array(depth)[right], np.array(learned)[right]).statistic, abs=1e-9)
    assert report.tables["surprisal of held-out text in nats"][-1]["nats"] == pytest.approx(loss, abs=1e-5)
    assert row["tuned - logit"].value == pytest.approx(row["tuned lens"].value - row["logit lens"].value)
    assert "eplicate" in report.reading

    # finished trainings are not repeated, and checkpoints of one's own give the same
    monkeypatch.setattr(pretraining.PretrainingRun, "advance", lambda *_: pytest.fail("trained again"))
    assert difficulty.EXPERIMENT.run(setting).tables == report.tables
    (fitted,) = tmp_path.glob("lens-*")
    own = Setting(lm, text=(str(path),), lens=ls.load_lens(fitted, lm), quick=True)
    assert difficulty.EXPERIMENT.run(own).tables == report.tables
    with pytest.raises(ls.LenscopeError, match="give text"):
        difficulty.EXPERIMENT.run(Setting(lm))
