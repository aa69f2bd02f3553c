"""Contrastive decoding of a Patchscope: every cell against two plain runs of the model for each token."""

import math

import numpy as np
import pytest
import tiny
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.engine import chunked_runs, sweep
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.measures import definitions as measures
from lenscope.models.edits import add
from lenscope.patchscopes import (
    generate_with_controls,
    load_grid,
    random_vectors,
    score_with_controls,
    stream_explanation,
)

SOURCE, TARGET, NEW, ALPHA = "The capital of France is", "one -> one, x -> x, x ->", 4, 1.5
# between them soft caps, windows, recurrent states, experts and parallel blocks
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mamba", "mixtral", "gemma3_text")


def changes_of(lm, target, layer, vector, op=None, window=1, states=None):
    """What a patch changes in a plain run: at each layer a function of the whole stream."""
    places = list(target.resolve(lm)[1])
    at = dict.fromkeys(range(layer, min(layer + window, lm.n_layers + 1)), vector)
    if target.below == "source":
        at |= {n: states[n, -1] for n in range(layer)}

    def change(v):
        def changed(h):
            h = h.clone()
            h[:, places] = h[:, places] + v if op is add else v
            return h

        return changed

    return {n: change(v) for n, v in at.items()}


def hidden_of(lm, target, layer, length):
    """(block, query, key) that below="none" bars."""
    if target.below != "none":
        return ()
    return [(b + 1, q, s) for s in target.resolve(lm)[1] for b in range(layer) for q in range(s + 1, length)]


def by_hand(lm, target, layer, changes):
    """Ids and contrasted distributions ln p (V,), each from two whole runs."""
    ids, written, log_ps = list(target.resolve(lm)[0].ids), [], []
    while len(written) < NEW and (not written or written[-1] != lm.model.config.eos_token_id):
        text = [*ids, *written]
        patched = run_with_hooks(lm.model, text, changes, hidden_of(lm, target, layer, len(text)))[1][0, -1]
        plain = run_with_hooks(lm.model, text)[1][0, -1]
        log_ps.append(((1 + ALPHA) * patched - ALPHA * plain).log_softmax(-1))
        written.append(int(log_ps[-1].argmax()))
    return written, log_ps


def check(lm, scope, target, states, layers, **patch):
    """Each cell of a grid equals the run by hand."""
    for cell in scope.generate(states, layers, max_new_tokens=NEW, contrast=ALPHA):
        changes = changes_of(lm, target, cell.layer, states[cell.source.layer, -1], states=states, **patch)
        ids, log_ps = by_hand(lm, target, cell.layer, changes)
        assert list(cell.ids) == ids, (cell.source.layer, cell.layer)
        # a grid holds float32
        assert cell.log_probs == pytest.approx([float(log_p.max()) for log_p in log_ps], rel=1e-6, abs=1e-6)


def compute_in_float64(monkeypatch):
    """Norms, recurrences and softmaxes that families compute in float32 whatever their dtype: in float64 too."""
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def wider(self, *args, **kwargs):
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return to(self, *args, **{k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()})

    monkeypatch.setattr(torch.Tensor, "to", wider)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


@pytest.mark.parametrize("name", FAMILIES)
def test_cells_are_two_runs_by_hand_for_each_token(name, monkeypatch):
    """Equal tokens, and all of what they are chosen from within 1e-10 in float64, before a grid makes it float32."""
    model = tiny.model(name, dtype=torch.float64)
    compute_in_float64(monkeypatch)
    lm = ls.LM(model, tiny.tokenizer(), name)
    states, target = lm.read(SOURCE, positions=-1), ls.Target(TARGET, at="x", every=True)
    pairs = [(1, 0), (3, 2), (2, 4)]
    assert len(target.resolve(lm)[1]) > 2
    scope, seen = ls.Patchscope(lm, target), {}
    grid = scope.generate(states, pairs, max_new_tokens=NEW, contrast=ALPHA)
    rows = scope.contrasted(scope.plan(states, pairs).rows)
    chooser = TokenChooser(lm, len(pairs), NEW, (), 0.0, 1.0, 0, ALPHA)

    def choose(h, which, step):
        z = chooser.readout.columns(chooser.readout.prepare(h), 0, lm.vocab_size)
        seen.update({(n, step): row for n, row in zip(which.tolist(), z.log_softmax(-1), strict=True)})
        return chooser.choose(h, which, step)

    wrote = {n: one.ids for mine, some in rows.generate(lm, choose, NEW) for n, one in zip(mine, some, strict=True)}
    for n, cell in enumerate(grid):
        changes = changes_of(lm, target, cell.layer, states[cell.source.layer, -1])
        ids, log_ps = by_hand(lm, target, cell.layer, changes)
        assert list(cell.ids) == list(wrote[n]) == ids, (cell.source.layer, cell.layer)
        for step, log_p in enumerate(log_ps):
            assert float((log_p - seen[n, step]).abs().max()) <= 1e-10
            assert cell.log_probs[step] == pytest.approx(float(log_p.max()), rel=1e-6, abs=1e-6)
    plain = scope.generate(states, pairs, max_new_tokens=NEW)
    assert not np.allclose(grid.log_probs, plain.log_probs, atol=0.01), "a contrast that changes nothing tests nothing"


@pytest.mark.parametrize("below", ["none", "source"])
def test_placeholders_hidden_or_filled_below_the_patch(lm64, below):
    target = ls.Target(TARGET, at="x", every=True, below=below)
    check(lm64, ls.Patchscope(lm64, target), target, lm64.read(SOURCE, positions=-1), [(1, 0), (2, 2), (4, 3)])


def test_windows_and_additions(lm64):
    target = ls.Target(TARGET, at="x", every=True)
    scope = ls.Patchscope(lm64, target, op=add, window=2)
    check(lm64, scope, target, lm64.read(SOURCE, positions=-1), [(1, 0), (2, 2), (3, 4)], op=add, window=2)


def test_edits_of_the_target_stay_in_the_run_without_a_patch(lm64):
    prompt, vector = lm64.prompt(TARGET), torch.ones(lm64.hidden_size, dtype=torch.float64)
    states = lm64.read(SOURCE, positions=-1)
    scope = ls.Patchscope(lm64, ls.Target(TARGET, edits=[ls.Edit(1, 0, vector)]))
    cell = scope.generate(states, [(2, 3)], max_new_tokens=1, contrast=ALPHA)[0]
    fixed = changes_of(lm64, ls.Target(TARGET, at=0), 1, vector)
    patched = fixed | changes_of(lm64, ls.Target(TARGET), 3, states[2, -1])
    logits = [run_with_hooks(lm64.model, prompt.ids, c)[1][0, -1] for c in (patched, fixed)]
    log_p = ((1 + ALPHA) * logits[0] - ALPHA * logits[1]).log_softmax(-1)
    assert cell.ids[0] == int(log_p.argmax())
    assert cell.log_probs[0] == pytest.approx(float(log_p.max()), abs=1e-6)


@pytest.mark.parametrize("mode", chunked_runs.MODES)
def test_every_way_of_running_rows_gives_the_same(lm64, mode, monkeypatch):
    """Shared prefixes, copies, one token at a time, plain hooks; also in chunks of a pair each."""
    states, targets = lm64.read(SOURCE, [1, 3], -1), [ls.Target(TARGET), ls.Target("a x b", at="x")]
    scope = ls.Patchscope(lm64, targets)
    expected = scope.generate(states, [0, 2], max_new_tokens=NEW, contrast=ALPHA)
    monkeypatch.setattr(sweep, "_fastest", lambda *_: mode)
    for budget in (chunked_runs.CHUNK_BYTES, 1):
        scope.budget = budget
        grid = scope.generate(states, [0, 2], max_new_tokens=NEW, contrast=ALPHA)
        assert np.array_equal(grid.ids, expected.ids)
        np.testing.assert_allclose(grid.log_probs, expected.log_probs, atol=1e-6)


def test_no_contrast_is_plain_and_runs_nothing_else(lm64, monkeypatch):
    states, scope = lm64.read(SOURCE, positions=-1), ls.Patchscope(lm64, TARGET)
    plain = scope.generate(states, [1, 3], max_new_tokens=NEW)
    monkeypatch.setattr(scope, "without_patch", None)
    zero = scope.generate(states, [1, 3], max_new_tokens=NEW, contrast=0)
    assert np.array_equal(zero.ids, plain.ids)
    assert np.array_equal(zero.log_probs, plain.log_probs, equal_nan=True)
    assert zero.contrast == 0.0
    assert "contrast" not in zero.unit("max_probability")


def test_next_tokens_and_their_measures_are_of_the_contrasted_distribution(lm64):
    targets = [ls.Target(TARGET, at="x", every=True), ls.Target("a x b", at="x")]
    states = lm64.read(SOURCE, positions=-1)
    two = lm64.encoder.ids("France is")
    grid = ls.Patchscope(lm64, targets).predict(states, [0, 2], top_k=3, answers=[two[0], "France is"], contrast=ALPHA)
    for cell in grid:
        target = targets[[t.text for t in targets_of(lm64, targets)].index(cell.target.text)]
        ids = list(target.resolve(lm64)[0].ids)
        changes = changes_of(lm64, target, cell.layer, states[cell.source.layer, -1])
        runs = [run_with_hooks(lm64.model, [*ids, *two[:-1]], c)[1][0] for c in (changes, {})]
        log_p = ((1 + ALPHA) * runs[0] - ALPHA * runs[1]).log_softmax(-1)
        base = runs[1].log_softmax(-1)
        now = len(ids) - 1
        top = log_p[now].topk(3)
        assert list(cell.ids) == top.indices.tolist()
        assert cell.log_probs == pytest.approx(top.values.tolist(), abs=1e-6)
        assert cell.measures["max_probability"] == pytest.approx(float(top.values[0].exp()), abs=1e-6)
        assert cell.measures["entropy"] == pytest.approx(float(measures.entropy(log_p[now])), abs=1e-6)
        assert cell.measures["kl"] == pytest.approx(float(measures.kl(base[now], log_p[now])), rel=1e-5)
        one = str(two[0])
        assert cell.measures[f"log_prob:{one}"] == pytest.approx(float(log_p[now, two[0]]), abs=1e-5)
        assert cell.measures[f"pmi:{one}"] == pytest.approx(float((log_p - base)[now, two[0]]), abs=1e-5)
        total = sum(float(log_p[now + n, i]) for n, i in enumerate(two))
        before = sum(float(base[now + n, i]) for n, i in enumerate(two))
        assert cell.measures["log_prob:France is"] == pytest.approx(total, abs=1e-5)
        assert cell.measures["pmi:France is"] == pytest.approx(total - before, abs=1e-5)
    assert grid.unit("kl") == "nats, KL(unpatched ‖ contrasted), with contrast 1.5"
    assert "p(answer | contrasted)" in grid.unit("pmi:France is")
    assert "contrast 1.5" in grid.table().caption


def targets_of(lm, targets):
    return [t.resolve(lm)[0] for t in targets]


def test_draws_are_from_the_contrasted_distribution(lm64):
    """By hand: temperature and nucleus of contrasted logits, the same uniform numbers, ln p at temperature 1."""
    states, target = lm64.read(SOURCE, positions=-1), ls.Target(TARGET)
    how = {"temperature": 1.5, "top_p": 0.8, "seed": 3}
    grid = ls.Patchscope(lm64, target).generate(states, [(2, 1), (3, 3)], max_new_tokens=3, contrast=ALPHA, **how)
    draws = np.random.default_rng(3).random((2, 3))
    for n, cell in enumerate(grid):
        changes = changes_of(lm64, target, cell.layer, states[cell.source.layer, -1])
        text = list(target.resolve(lm64)[0].ids)
        for step, (token, log_prob) in enumerate(zip(cell.ids, cell.log_probs, strict=True)):
            logits = [run_with_hooks(lm64.model, text, c)[1][0, -1] for c in (changes, {})]
            z = (1 + ALPHA) * logits[0] - ALPHA * logits[1]
            p, order = (z / 1.5).softmax(-1).sort(descending=True, stable=True)
            p = torch.where(p.cumsum(-1) - p < 0.8, p, 0.0).cumsum(-1)
            assert token == int(order[int((p <= draws[n, step] * p[-1]).sum())])
            assert log_prob == pytest.approx(float(z.log_softmax(-1)[token]), abs=1e-6)
            text.append(token)


def test_streamed_explanations_and_their_controls(lm64):
    states, scope = lm64.read(SOURCE, 2, -1), ls.Patchscope(lm64, ls.Target(TARGET, at="x", every=True))
    explanation = stream_explanation(scope, states, max_new_tokens=NEW, seed=3, contrast=ALPHA)
    steps = list(explanation)
    kinds = [row.kind for row in explanation.rows]
    for kind, sources in (("state", states), ("random", random_vectors(states, seed=3))):
        grid = scope.generate(sources, max_new_tokens=NEW, contrast=ALPHA)
        mine = [n for n, other in enumerate(kinds) if other == kind]
        assert [explanation.texts[n] for n in mine] == list(grid.texts)
        for n, values in zip(mine, grid.log_probs, strict=True):
            written = [t.log_prob for step in steps for t in step if t.row == n]
            np.testing.assert_allclose(written, values[: len(written)], atol=1e-5)
    # without a patch there is nothing to contrast
    n = kinds.index("unpatched")
    alone = stream_explanation(scope, states, max_new_tokens=NEW, seed=3)
    plain = [t.log_prob for step in alone for t in step if t.row == n]
    assert explanation.ids[n] == alone.ids[n] == list(lm64.generate(TARGET, NEW).ids)
    np.testing.assert_allclose([t.log_prob for s in steps for t in s if t.row == n], plain, atol=1e-12)


def test_controls_beside_contrasted_states(lm64):
    states = lm64.read(["The cat sat", "This is a test", "capital of France"], 2, -1)
    scope = ls.Patchscope(lm64, ls.Target("one -> one, x"), layers=[1, 2])
    texts = ["cat", "test", "France"]
    plain = generate_with_controls(scope, states, texts, max_new_tokens=NEW)
    contrasted = generate_with_controls(scope, states, texts, max_new_tokens=NEW, contrast=ALPHA)
    for way, sources in (("vector", states), ("random vector", random_vectors(states))):
        grid = scope.generate(sources, max_new_tokens=NEW, contrast=ALPHA)
        assert contrasted.texts[way].ravel().tolist() == list(grid.texts)
    for way in ("text", "no patch"):
        assert np.array_equal(contrasted.texts[way], plain.texts[way])
    assert not np.array_equal(contrasted.texts["vector"], plain.texts["vector"])
    how = {"max_new_tokens": NEW, "contrast": ALPHA}
    scores = score_with_controls(scope, states, texts, lambda text, _: len(text), **how)
    assert scores.scores["vector"].tolist() == [[len(t) for t in row] for row in contrasted.texts["vector"]]


def test_a_saved_grid_knows_its_contrast(lm64, tmp_path):
    grid = ls.Patchscope(lm64, TARGET).generate(lm64.read(SOURCE, 2, -1), [1], max_new_tokens=2, contrast=ALPHA)
    for name in ("grid.json", "grid.parquet"):
        grid.save(tmp_path / name)
        loaded = load_grid(tmp_path / name)
        assert loaded == grid
        assert loaded.contrast == ALPHA
        assert loaded.unit("max_probability") == grid.unit("max_probability")
    document = grid.to_json()
    for wrong in (-1.0, "much", True, None):
        document["provenance"]["contrast"] = wrong
        with pytest.raises((ls.LenscopeError, ValueError), match="contrast"):
            type(grid).from_json(document)


@pytest.mark.parametrize("wrong", [-0.1, 1000.5, 1e38, 1e300, 10**400, math.nan, math.inf, "0.5", True, None, [1.0]])
def test_contrasts_that_are_no_number_from_0_to_1000_are_refused(lm64, wrong):
    states, scope = lm64.read(SOURCE, 2, -1), ls.Patchscope(lm64, TARGET)
    for call in (scope.predict, scope.generate, lambda s, **how: stream_explanation(scope, s, **how)):
        with pytest.raises(ls.LenscopeError, match=r"contrast .*: give a number from 0 to 1000, such as 0\.5"):
            call(states, contrast=wrong)


def test_the_largest_contrast_gives_finite_numbers_in_float32(lm):
    states, scope = lm.read(SOURCE, 2, -1), ls.Patchscope(lm, TARGET)
    grid = scope.predict(states, [1, 3], answers=["a"], contrast=1000)
    assert np.isfinite(grid.log_probs).all()
    assert all(np.isfinite(values).all() for values in grid.measures.values())
    assert np.isfinite(scope.generate(states, [1, 3], max_new_tokens=NEW, contrast=1000).log_probs).all()
