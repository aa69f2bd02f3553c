"""Blocks taken out: the experiment reports what plain hooks give."""

import json

import pytest
import torch
from affine_lens import affine
from block_hooks import by_hooks

from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import ablations
from lenscope.interventions.block_ablation import (
    deletion,
)


def test_the_experiment_reports_what_hooks_give(lm64, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    lines = [{"text": f"Line {n}: the cat {n * 7} sat on mat {n * n}, then it left. " * 3} for n in range(200)]
    text.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(ablations, "MEASURED", {"quick": 256, "full": 256})
    monkeypatch.setattr(ablations, "AVERAGED", {"quick": 256, "full": 256})
    setting = Setting(lm64, data=(str(text),), text=(str(text),), lens=affine(lm64), quick=True, folder=tmp_path)
    report = ablations.EXPERIMENT.run(setting)
    n = lm64.n_layers
    rows = report.tables["loss by block"]
    assert [row["block"] for row in rows] == [*range(1, n + 1)]
    # the first block's row by hooks, of the same text
    batches = [ablations._thinned(b, 0) for b in setting.corpus.split(0.1)[1].batches(256)]
    ids, counted = (torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "counted"))
    at = counted[:, :-1]
    lp, clean = (by_hooks(lm64, ids.tolist(), layer, deletion) for layer in (1, 0))
    lost = (clean - lp).gather(-1, ids[:, 1:, None])[..., 0][at]
    assert rows[0]["deletion"].value == pytest.approx(float(lost.mean()), abs=1e-9)
    assert report.settings["tokens"] == int(at.sum()) < 2 * 256 / ablations.COUNTED
    nothing = report.tables["changes"][-1]
    assert (nothing["change"], nothing["first block"].value, nothing["worst of the others"]) == ("nothing", 0, 0)
    # what was kept is what is read again
    kept = ablations.EXPERIMENT.run(
        Setting(lm64, data=setting.data, text=setting.text, lens=setting.lens, quick=True, folder=tmp_path)
    )
    assert kept.tables["loss by block"] == rows
    assert kept.reading == report.reading
    assert any(word in report.reading for word in ("Replicates", "Does not replicate"))
    report.save(tmp_path)
    assert (tmp_path / "ablations.png").exists()
