"""The experiment on next-token prediction: methods' numbers made again with plain hooks, the reading of plants."""

import json
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from affine_lens import affine
from patched_texts import numbered, patched_logits

import lenscope as ls
from lenscope.experiments.patchscopes_paper import next_token as module
from lenscope.experiments.patchscopes_paper.next_token import (
    ALONE,
    DRAWN,
    IDENTITY,
    LOGIT,
    METHODS,
    NOTHING,
    PRECISION,
    RANDOM,
    SHUFFLED,
    SQUARES,
    SURPRISAL,
    TUNED,
)
from lenscope.experiments.patchscopes_paper.next_token_readings import ReadingScores, draw_places, held_out
from lenscope.experiments.setting import Setting
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.significance import sign_flips


@pytest.fixture(scope="module")
def lm():
    """A tiny model that reads long enough prompts."""
    config = tiny.config("llama")
    config.max_position_embeddings = 256
    torch.manual_seed(0)
    built = tiny.AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 0)
    return ls.LM(built.double(), tiny.tokenizer(), "tiny-llama")


def test_the_experiment_end_to_end(lm, tmp_path, monkeypatch):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in numbered(150)))
    monkeypatch.setattr(module, "TOKENS", {"quick": 1500, "full": 1500})
    monkeypatch.setattr(module, "DOCUMENTS", {"quick": 12, "full": 12})
    setting = Setting(lm, data=(str(path),), text=(str(path),), lens=affine(lm), quick=True, folder=tmp_path)
    report = module.EXPERIMENT.run(setting)
    n = lm.n_layers
    assert [row["layer"] for row in report.tables[PRECISION]] == [*range(n + 1)]
    assert set(report.tables[PRECISION][0]) == {"layer", *METHODS}

    # every method by hand
    prompts, _ = draw_places(lm, lm, held_out(setting, 12), 0)
    words = [tuple(w) for w in report.settings["demonstrations"]]
    assert len(set(words)) == 2
    identity = lm.prompt("cat -> cat\n1135 -> 1135\nhello -> hello\n?")
    targets = {IDENTITY: identity, ALONE: lm.prompt("?")}
    targets |= {f"set {i}": lm.prompt("".join(f"{w} -> {w}\n" for w in some) + "?") for i, some in enumerate(words)}
    final, said = [], {name: np.zeros((len(prompts), n + 1), dtype=int) for name in (*targets, LOGIT, TUNED, NOTHING)}
    f = setting.lens
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            out = lm.model(torch.tensor([prompt.ids]), output_hidden_states=True)
        final.append(out.logits[0, -1].log_softmax(-1))
        states = [h[0, -1] for h in out.hidden_states[:-1]]
        last = lm.read(prompt, n, -1)[n, -1]
        for layer, h in enumerate([*states, last]):
            with torch.no_grad():
                said[LOGIT][i, layer] = lm.model.lm_head(lm.model.model.norm(h)).argmax()
                a, b = (w.double() for w in f.weights.get((layer, n), (torch.eye(32), torch.zeros(32))))
                said[TUNED][i, layer] = lm.model.lm_head(lm.model.model.norm(h @ a.T + b)).argmax()
                said[NOTHING][i, layer] = lm.model(torch.tensor([identity.ids])).logits[0, -1].argmax()
            for name, target in targets.items():
                said[name][i, layer] = patched_logits(lm, target, layer, h).argmax()
    own = [int(p.argmax()) for p in final]

    def by_hand(name, layer):
        right = np.mean([said[name][i, layer] == own[i] for i in range(len(own))])
        return right, np.mean([-float(final[i][said[name][i, layer]]) for i in range(len(own))])

    for layer in range(n + 1):
        rows = report.tables[PRECISION][layer], report.tables[SURPRISAL][layer]
        for name in (LOGIT, TUNED, IDENTITY, ALONE, NOTHING):
            for row, expected in zip(rows, by_hand(name, layer), strict=True):
                assert row[name].value == pytest.approx(expected, abs=1e-8), (name, layer)
        for row, expected in zip(rows, np.mean([by_hand(f"set {i}", layer) for i in (0, 1)], axis=0), strict=True):
            assert row[DRAWN].value == pytest.approx(expected, abs=1e-8)
    # at the last layer lenses are exact
    assert all(report.tables[PRECISION][n][name].value == 1 for name in (LOGIT, TUNED, SQUARES))
    # another document's state is as much worth as anything that was said of any: the same tokens, dealt out anew
    kept = setting.cached("readings", lambda: pytest.fail("made again"), **kept_settings(lm, prompts, words))
    for layer in range(n + 1):
        assert sorted(kept[SHUFFLED][:, layer].tolist()) == sorted(said[IDENTITY][:, layer].tolist())
    assert not np.array_equal(kept[SHUFFLED], said[IDENTITY])
    assert not np.array_equal(kept[RANDOM], said[IDENTITY])
    # and the gain is that of pairs
    gain = report.tables[f"gain in {SURPRISAL}"][2]["over tuned lens"].value
    assert gain == pytest.approx(by_hand(TUNED, 2)[1] - by_hand(IDENTITY, 2)[1], abs=1e-8)
    prompts_table = {row["demonstrations"]: row for row in report.tables["target prompts"]}
    assert prompts_table[", ".join(words[1])][f"{PRECISION}, all layers"].value == pytest.approx(
        np.mean([by_hand("set 1", layer)[0] for layer in range(n)])
    )
    again = module.EXPERIMENT.run(
        Setting(lm, data=setting.data, text=setting.text, lens=f, quick=True, folder=tmp_path)
    )
    assert again.tables == report.tables
    assert again.reading == report.reading
    report.save(tmp_path)
    assert (tmp_path / "next-token.png").exists()


def kept_settings(lm, prompts, words):
    return {"prompts": [list(p.ids) for p in prompts], "layers": (*range(lm.n_layers + 1),), "sets": words}


@pytest.fixture
def quickly(monkeypatch):
    """Fewer flips of signs, and means without intervals."""
    monkeypatch.setattr(module, "sign_flips", partial(sign_flips, resamples=2500))
    monkeypatch.setattr(module, "mean", lambda v: Estimate(float(np.mean(v)), np.nan, np.nan))


def planted(precision, layers=21, documents=150, seed=0):
    """What was read where a method is right with a probability by layer, and has a surprisal of 4 nats where not."""
    random = np.random.default_rng(seed)
    scores = {}
    for name in METHODS:
        p = np.array([precision(name, n) for n in range(layers)])
        right = (random.random((documents, layers)) < p).astype(float)
        scores[name] = ReadingScores(right, 4 * (1 - right))
    return module._Read(tuple(range(layers)), scores, [scores[DRAWN], scores[DRAWN]], [("a",), ("b", "c")])


def told(read):
    tested = {m: module._tests_by_layer(read, m, 0) for m in (PRECISION, SURPRISAL)}
    return module._next_token_reading(read, tested, module._middle(read, 0))


def paper(name, n):
    """The paper's curves, roughly: identity well above all from a quarter of the depth on, twice as good as any."""
    if name == IDENTITY:
        return 0.1 if n < 5 else 0.8
    return {LOGIT: 0.1, TUNED: 0.12 if n < 5 else 0.4, SQUARES: 0.1}.get(name, 0.05)


def test_the_papers_curves_are_said_to_replicate(quickly):
    read = planted(paper)
    said = told(read)
    assert said.startswith("Replicates: ")
    assert "at 15 of 15 layers from a quarter of the depth on" in said
    assert "At 15 of these it is above that of a trained tuned lens too" in said
    assert "By value it is ahead of all three from layer 5 on" in said
    assert read.middle == [9, 10, 11]
    rows = {(r["measure"], r["beside"]): r for r in module._middle(read, 0)}
    row = rows[PRECISION, TUNED]
    assert row["relative"].value == pytest.approx(1.0, abs=0.15)
    assert row["relative"].low < 1.0 < row["relative"].high
    assert row["gain"].value == pytest.approx(0.4, abs=0.05)
    assert abs(row["gain at a layer chosen on the other half"].value - 0.4) < 0.12
    assert rows[SURPRISAL, TUNED]["gain"].value == pytest.approx(1.6, abs=0.2)


def test_curves_that_differ_are_not(quickly):
    level = told(planted(lambda *_: 0.4))
    assert level.startswith("Does not replicate: ")
    assert "at 0 of 15 layers" in level
    assert "(none)" in level
    some = told(planted(lambda name, n: 0.95 if name == IDENTITY and 8 <= n < 13 else 0.3))
    assert some.startswith("Replicates in part: ")
    assert "at 5 of 15 layers" in some
    # the paper knows no tuned lens
    assert "(layers 8, 9, 10, 11, 12). At 5 of these it is above that of a trained tuned lens too" in some
    strong = told(planted(lambda name, n: {IDENTITY: 0.8, TUNED: 0.99}.get(name, 0.2)))
    assert strong.startswith("Replicates: ")
    assert "At 0 of these" in strong
    assert "does not have. At layer 19, the last before" in strong
    lost = told(planted(lambda name, n: 0.95 if name == TUNED else 0.3))
    assert "At layer 19, the last before the end, one of them is ahead or level" in lost
    assert "better at none, worse at layers 0, 1, 2" in lost


def test_a_layer_that_is_best_by_chance_is_not_rewarded(quickly):
    gains = []
    for seed in range(6):
        rows = module._middle(planted(lambda *_: 0.4, documents=40, seed=seed), 0)
        gains += [r["gain at a layer chosen on the other half"].value for r in rows if r["measure"] == PRECISION]
    assert abs(np.mean(gains)) < 0.1
