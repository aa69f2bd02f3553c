"""A model explains another's states: cells made again with plain hooks, controls, and the reading of planted scores."""

import importlib.metadata
import json
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from char_tokenizers import char_tokenizer
from patched_texts import numbered, patched_logits
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.experiments.patchscopes_paper import cross_model as module
from lenscope.experiments.patchscopes_paper import cross_model_descriptions as told_module
from lenscope.experiments.patchscopes_paper.cross_model import (
    ALONE,
    CONTEXT,
    CONTROLS,
    IDENTITY,
    MAPPED,
    NOTHING,
    PRECISION,
    RANDOM,
    SHUFFLED,
    SURPRISAL,
    WHERE,
    Way,
)
from lenscope.experiments.patchscopes_paper.cross_model_descriptions import DescribedEntities
from lenscope.experiments.patchscopes_paper.next_token_readings import ReadingScores, draw_places, fit_map, held_out
from lenscope.experiments.setting import Setting
from lenscope.models.identity import model_hash
from lenscope.patchscopes.methods import TARGETS
from lenscope.statistics.significance import sign_flips
from lenscope.tasks.relations import Entity
from lenscope.tasks.text_match import rouge


def model(kind, sizes, tokenizer, seed):
    """A tiny model that reads long enough prompts."""
    config = tiny.config(kind)
    for name, value in sizes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, seed)
    return ls.LM(built.double(), tokenizer, f"tiny-{kind}")


@pytest.fixture(scope="module")
def source():
    return model("llama", {"max_position_embeddings": 1024}, tiny.tokenizer(), 0)


@pytest.fixture(scope="module")
def target():
    return model("gpt2", {"n_embd": 48, "n_layer": 3, "n_positions": 1024}, char_tokenizer(), 1)


def small(monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS", {"quick": 16, "full": 16})
    monkeypatch.setattr(module, "LAYERS", {"quick": (3, 2), "full": (3, 2)})
    monkeypatch.setattr(module, "TOKENS", {"quick": 800, "full": 800})
    monkeypatch.setattr(module, "ENTITIES", {"quick": 8, "full": 8})
    monkeypatch.setattr(told_module, "WRITTEN", 3)
    monkeypatch.setattr(module, "sign_flips", partial(sign_flips, resamples=500))


def by_hand(setting, models, key, layers, targets):
    """Of every cell of the source's context and of the identity prompt, and unpatched: precision and surprisal."""
    a, b = models
    f, _ = fit_map(setting, key, models, (layers, targets), 800, lambda _: pytest.fail("fitted again"))
    prompts, contexts = draw_places(a, b, held_out(setting, 16))
    known = {a.encoder.tokens([i])[0]: i for i in reversed(range(a.encoder.vocab_size))}
    other = set(b.encoder.tokens(range(b.encoder.vocab_size)))
    identity = b.prompt("cat -> cat\n1135 -> 1135\nhello -> hello\n?")
    found = {name: [] for name in (CONTEXT, IDENTITY, NOTHING)}
    for prompt, context in zip(prompts, contexts, strict=True):
        with torch.no_grad():
            log_p = a.model(torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
        if a.encoder.tokens([int(log_p.argmax())])[0] not in other:
            continue
        h = a.read(prompt)

        def score(logits, log_p=log_p):
            text = b.encoder.tokens([int(logits.argmax())])[0]
            token = next(known[text[:n]] for n in range(len(text), 0, -1) if text[:n] in known)
            return token == int(log_p.argmax()), -float(log_p[token])

        for name, spot in ((CONTEXT, context), (IDENTITY, identity)):
            found[name].append([score(patched_logits(b, spot, t, f(h[s, -1], s, t))) for s in layers for t in targets])
        with torch.no_grad():
            found[NOTHING].append([score(b.model(torch.tensor([context.ids])).logits[0, -1])])
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def test_the_experiment_end_to_end(source, target, tmp_path, monkeypatch):
    small(monkeypatch)
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in numbered(220)))
    where = {"data": (str(path),), "text": (str(path),), "quick": True, "folder": tmp_path, "target_lm": target}
    setting = Setting(source, **where)
    report = module.EXPERIMENT.run(setting)
    for number, models in enumerate([(source, target), (target, source)]):
        name = f"{models[0].name} → {models[1].name}"
        a, b = (lm.n_layers for lm in models)
        assert report.settings["layers"][name] == [[0, 2, a], [0, b - 1]]
        found = by_hand(setting, models, ("there", "back")[number], *report.settings["layers"][name])
        assert len(found[CONTEXT]) >= 8
        cells = [row for row in report.tables["cells"] if row["direction"] == name]
        assert len(cells) == 6
        for place in (CONTEXT, IDENTITY):
            for n, row in enumerate(cells):
                assert row[f"{PRECISION}, {place}, {MAPPED}"] == pytest.approx(found[place][:, n, 0].mean(), abs=1e-12)
                assert row[f"{SURPRISAL}, {place}, {MAPPED}"] == pytest.approx(found[place][:, n, 1].mean(), abs=1e-8)
        for measure, at in ((PRECISION, 0), (SURPRISAL, 1)):
            rows = {(r["target prompt"], r["patched"]): r for r in report.tables[measure] if r["direction"] == name}
            assert set(rows) == {(w, what) for w in WHERE for what in (MAPPED, *CONTROLS)}
            plain = rows[CONTEXT, NOTHING]
            assert plain["selected"].value == pytest.approx(found[NOTHING][..., at].mean(), abs=1e-8)
            mine = rows[CONTEXT, MAPPED]
            best = found[CONTEXT][..., at].max(1) if measure == PRECISION else found[CONTEXT][..., at].min(1)
            assert mine["oracle"].value == pytest.approx(best.mean(), abs=1e-8)
            assert mine["mean"].value == pytest.approx(found[CONTEXT][..., at].mean(), abs=1e-8)
            assert mine["mean"].low <= mine["mean"].value <= mine["mean"].high
        told = {r["patched"]: r for r in report.tables["entity descriptions, RougeL"] if r["direction"] == name}
        assert len(told) == 6
    # another document's state, in the same prompt, tells what it tells there
    kept = setting.cached("readings-there", lambda: pytest.fail("made again"), **kept_settings(setting, source, target))
    for where_to in (IDENTITY, ALONE):
        mapped, shuffled = (kept[where_to, what] for what in (MAPPED, SHUFFLED))
        assert sorted(mapped.tolist()) == sorted(shuffled.tolist())
    assert not np.array_equal(kept[CONTEXT, RANDOM], kept[CONTEXT, MAPPED])
    again = module.EXPERIMENT.run(Setting(source, **where))
    assert again.tables == report.tables
    assert again.reading == report.reading
    report.save(tmp_path)
    assert (tmp_path / "cross-model.png").exists()
    assert (tmp_path / "cross-model-back.png").exists()


def kept_settings(setting, a, b):
    prompts, contexts = draw_places(a, b, held_out(setting, 16))
    other = set(b.encoder.tokens(range(b.encoder.vocab_size)))
    own = [a.model(torch.tensor([p.ids])).logits[0, -1].argmax().item() for p in prompts]
    known = [list(c.ids) for c, i in zip(contexts, own, strict=True) if a.encoder.tokens([i])[0] in other]
    hashes = [model_hash(lm.model) for lm in (a, b)]
    return {"models": hashes, "layers": [(0, 2, 4), (0, 2)], "prompts": known}


def test_descriptions_are_those_that_a_plain_patchscope_writes(source, target, tmp_path, monkeypatch):
    small(monkeypatch)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(numbered(200)))
    setting = Setting(source, text=(str(path),), quick=True)
    layers = [0, 2, 4], [0, 2]
    f, _ = fit_map(setting, "x", (source, target), layers, 800, lambda _: numbered(100))
    made = told_module.descriptions(setting, "x", (source, target), layers, f, 8)
    assert made.cells[told_module.MAPPED] == ["0 → 0", "2 → 0"]
    begin = source.tokenizer.get_vocab()["</s>"]
    for n, entity in enumerate(made.entities):
        states = source.read([begin, *source.encoder.ids(entity.name)], [0, 2], -1)
        prompt = target.prompt(TARGETS["entity"].prompt)
        for column, layer in enumerate((0, 2)):
            ids = list(prompt.ids)
            for _ in range(3):
                edit = ls.Edit(layer=0, position=len(prompt) - 1, vector=f(states[layer, -1], layer, 0))
                with target.edit(edit):
                    ids.append(int(target.unembed(target.read(ids, target.n_layers, -1)[target.n_layers, -1]).argmax()))
            said = told_module.description_in(target.encoder.decode(ids[len(prompt) :]))
            assert made.texts[told_module.MAPPED][n, column] == said
            expected = rouge(said, entity.description).rougeL
            assert made.scores(told_module.MAPPED)[n, column] == pytest.approx(expected)
    names = [e.name for e in made.entities]
    expected = target.generate([f"{prompt.text[:-1]}{name}" for name in names], 3)
    assert made.texts[told_module.NAME][:, 0].tolist() == [
        told_module.description_in(c.text.split("\n")[0]) for c in expected
    ]


def test_the_explainer_is_the_named_model_or_the_built_in_one_or_the_model_itself(source, target, monkeypatch):
    assert module._explainer(Setting(source, target_lm=target)) is target
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(module, "load", lambda name: target if name == "gemma3-270m" else None)
    assert module._explainer(Setting(source)) is target
    monkeypatch.setattr(source, "name", "gemma3-270m")
    assert module._explainer(Setting(source)) is source
    monkeypatch.undo()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert module._explainer(Setting(source)) is source


def planted(precision, descriptions, places=300, seed=0):
    """A direction where what is patched is right with a probability by target prompt and target layer."""
    random = np.random.default_rng(seed)
    scores = {}
    for where in WHERE:
        for what in (MAPPED, *CONTROLS):
            cells = 1 if what == NOTHING else 6
            p = np.array([precision(where, what, n % 2) for n in range(cells)])
            right = (random.random((places, cells)) < p).astype(float)
            scores[where, what] = ReadingScores(right, 5 * (1 - right))
    entities = [Entity(f"name {n}", f"number {n} of all") for n in range(16)]
    texts = {}
    for what in (told_module.MAPPED, told_module.SHUFFLED, told_module.RANDOM, told_module.NOTHING):
        said = [[f"number {n} of all" if what == descriptions else "nothing"] for n in range(16)]
        texts[what] = np.array(said, dtype=object)
    told = DescribedEntities(entities, texts, dict.fromkeys(texts, ("0 → 0",)))
    return Way("a → b", (0, 5, 10), (0, 4), np.zeros((3, 2)), 0.9, scores, told)


def read(way, monkeypatch):
    monkeypatch.setattr(module, "sign_flips", partial(sign_flips, resamples=2000))
    tests = {m: module._tests_of_ways([way], m, 0) for m in (PRECISION, SURPRISAL)}
    return module._cross_model_reading(way, tests, module._tested_descriptions([way], 0)), tests


def test_what_is_carried_over_is_told_from_what_the_context_tells(monkeypatch):
    carried = planted(lambda where, what, t: 0.8 - 0.2 * t if what == MAPPED else 0.3, told_module.MAPPED)
    said, tests = read(carried, monkeypatch)
    assert said.startswith("a → b: replicates.")
    assert "highest at target layer 0 of 0–4" in said
    assert all(row["p (Holm)"] < 0.05 for row in tests[PRECISION])
    assert all(abs(row["gain"].value - 0.5) < 0.15 for row in tests[PRECISION])
    assert all(abs(row["gain"].value - 2.5) < 0.75 for row in tests[SURPRISAL])
    assert carried.best[CONTEXT, MAPPED, PRECISION].chosen[0] % 2 == 0
    assert "RougeL in a selected cell: 1.00" in said
    assert "over another entity's state 1.00 [1.00, 1.00], p = " in said

    leak = planted(lambda where, what, t: 0.7 if where == CONTEXT else 0.02, told_module.SHUFFLED, seed=1)
    said, tests = read(leak, monkeypatch)
    assert said.startswith("a → b: does not replicate.")
    assert all(row["p (Holm)"] > 0.05 for row in tests[PRECISION])
    assert "over another entity's state -1.00 [-1.00, -1.00]" in said

    without = planted(lambda where, what, t: 0.7 if where == CONTEXT or what == MAPPED else 0.1, told_module.MAPPED)
    assert read(without, monkeypatch)[0].startswith("a → b: replicates in part.")


def test_a_summary_says_oracle_selected_and_mean_with_surprisal_the_right_way_round():
    way = planted(lambda where, what, t: 0.8 if what == MAPPED and not t else 0.2, told_module.MAPPED)
    rows = {r["patched"]: r for r in module._summary_of_ways([way], SURPRISAL) if r["target prompt"] == CONTEXT}
    mine, values = rows[MAPPED], way.scores[CONTEXT, MAPPED].surprisal
    assert mine["oracle"].value == pytest.approx(values.min(1).mean())
    assert mine["mean"].value == pytest.approx(values.mean())
    assert mine["oracle"].value < mine["selected"].value < mine["mean"].value
    assert mine["selected"].low < mine["selected"].value < mine["selected"].high
    assert set(mine["cell"].split(" or ")) <= {"0 → 0", "5 → 0", "10 → 0"}
    assert rows[NOTHING]["cell"] == "–"
