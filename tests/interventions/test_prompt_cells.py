"""Interventions on a tiny float64 Llama against hooks and masks on the transformers model itself."""

import importlib
import io
import itertools

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

import lenscope as ls
from lenscope.engine import run as rows
from lenscope.interventions import prompt_cells as iv
from lenscope.interventions.activation_patching import activation_patching
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.causal_tracing import causal_tracing, embedding_std
from lenscope.interventions.effects import load_effects
from lenscope.patchscopes import methods

PROMPT, OTHER = "The cat sat on the mat", "The dog sat on the log"
TWO = "is a"  # an answer of several tokens


def plain(lm, ids, puts=(), barred=(), noise=()):
    """log p (T, V) and states (L, T, D) of one run: states put at (layer, position), (block, query, key) barred."""
    blocks, length = lm.model.model.layers, len(ids)
    states = [None] * (len(blocks) + 1)

    def changed(layer, h):
        h = h.clone()
        for position, vector in noise if layer == 0 else ():
            h[0, position] += vector
        for at, position, vector in puts:
            if at == layer:
                h[0, position] = vector
        states[layer] = h[0]
        return h

    def before(block, args, kwargs):
        n = list(blocks).index(block)
        mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
        for at, query, key in barred:
            if at == n + 1:
                mask[query, key] = -torch.inf
        h = changed(0, args[0]) if n == 0 else args[0]
        return (h, *args[1:]), {**kwargs, "attention_mask": mask[None, None]}

    def after(block, args, output):
        return changed(list(blocks).index(block) + 1, output)

    hooks = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    hooks += [b.register_forward_hook(after) for b in blocks]
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return log_p, torch.stack(states)


def answered(log_p, ids):
    return sum(float(log_p[n - len(ids), i]) for n, i in enumerate(ids))


@pytest.fixture
def raw(monkeypatch):
    """What is found in float64, before it becomes float32 columns: (run, measures, totals) per prompt."""
    for method in ("causal_tracing", "activation_patching", "attention_knockout"):
        module = importlib.import_module(f"lenscope.interventions.{method}")
        monkeypatch.setattr(module, "as_effects", lambda lm, method, numbers, traced, how: traced)


def tokens(lm, text, answer):
    return list(lm.prompt(text).ids), lm.encoder.ids(answer)


@pytest.mark.parametrize(("window", "answer", "subject"), [(1, None, "cat"), (2, "o", [4]), (3, TWO, "at sat")])
def test_traced_cells_are_hooks_on_the_model(lm64, raw, window, answer, subject):
    samples, n = 3, lm64.n_layers
    [(run, found, totals)] = causal_tracing(
        lm64, PROMPT, subject, answer, window=window, samples=samples, noise=0.7, seed=5
    )
    ids, wanted = tokens(lm64, PROMPT, answer or "o")
    if answer is None:
        wanted = [int(plain(lm64, ids)[0][-1].argmax())]
    text = [*ids, *wanted[:-1]]
    draws = torch.randn(
        samples, len(run.marked), lm64.hidden_size, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    clean_p, clean = plain(lm64, text)
    noises = [[(p, 0.7 * draws[s, k]) for k, p in enumerate(run.marked)] for s in range(samples)]
    base = np.array([answered(plain(lm64, text, noise=noise)[0], wanted) for noise in noises])
    assert totals["clean_log_prob"] == pytest.approx(answered(clean_p, wanted), abs=1e-9)
    assert totals["corrupted"] == pytest.approx(np.exp(base).mean(), abs=1e-9)
    assert totals["total_effect"] == pytest.approx(np.exp(answered(clean_p, wanted)) - np.exp(base).mean(), abs=1e-9)
    assert run.places == tuple((p,) for p in range(len(ids)))
    for layer, p in itertools.product(range(n + 1), range(len(ids))):
        around = range(max(0, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        puts = [(at, p, clean[at, p]) for at in around]
        lp = np.array([answered(plain(lm64, text, puts, noise=noise)[0], wanted) for noise in noises])
        effect = np.exp(lp) - np.exp(base)
        assert found["probability"][layer, p] == pytest.approx(np.exp(lp).mean(), abs=1e-9)
        assert found["effect"][layer, p] == pytest.approx(effect.mean(), abs=1e-9)
        assert found["standard_error"][layer, p] == pytest.approx(effect.std(ddof=1) / samples**0.5, abs=1e-9)
        assert found["log_prob"][layer, p] == pytest.approx(lp.mean(), abs=1e-9)
        assert found["log_effect"][layer, p] == pytest.approx((lp - base).mean(), abs=1e-9)
    assert np.abs(found["log_effect"]).max() > 0.1
    assert answer is not None or np.abs(found["effect"]).max() > 1e-3


def test_a_subject_of_one_token_is_whole_again_when_restored(lm64):
    found = causal_tracing(lm64, PROMPT, [2], samples=4)
    effect, total = found.cells("effect"), found.totals["total_effect"][0]
    assert abs(total) > 1e-3
    assert effect[0, 2] == pytest.approx(total, abs=1e-6)
    assert effect[-1, -1] == pytest.approx(total, abs=1e-6)
    assert not effect[:, :2].any()
    assert not causal_tracing(lm64, PROMPT, [2], positions=[0, 1], samples=1).cells().any()
    assert not effect[-1, :-1].any()
    one = causal_tracing(lm64, PROMPT, [2], samples=1)
    assert np.isnan(one.measures["standard_error"]).all()


def test_other_vectors_are_restored_as_controls(lm64, raw):
    ids = lm64.prompt(PROMPT).ids
    states = lm64.read(list(reversed(ids)))[:, :]
    [(run, found, _)] = causal_tracing(lm64, PROMPT, "cat", "o", samples=1, noise=1.0, restore=states)
    draws = torch.randn(
        1, len(run.marked), lm64.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    noise = list(zip(run.marked, draws[0], strict=True))
    wanted = lm64.encoder.ids("o")
    for layer, p in itertools.product(range(lm64.n_layers + 1), range(len(ids))):
        log_p = plain(lm64, ids, [(layer, p, states[layer, p])], noise=noise)[0]
        assert found["log_prob"][layer, p] == pytest.approx(answered(log_p, wanted), abs=1e-9)


def test_noise_is_three_deviations_of_the_subjects_embeddings(lm64):
    prompt = lm64.prompt(PROMPT)
    at = [i for i, (a, b) in enumerate(prompt.spans) if a < 7 and b > 4]  # "cat"
    rows = lm64.model.get_input_embeddings().weight[list(prompt.ids)][at].detach().numpy()
    expected = np.std(rows, ddof=1)
    assert embedding_std(lm64, PROMPT, "cat") == pytest.approx(expected, abs=1e-12)
    assert causal_tracing(lm64, PROMPT, "cat", samples=1).totals["noise"][0] == pytest.approx(3 * expected, rel=1e-6)
    pooled = embedding_std(lm64, [PROMPT, OTHER], ["cat", "dog"])
    subjects = (PROMPT, "cat"), (OTHER, "dog")
    parts = [lm64.read(p, 0, list(iv.positions_of(lm64.prompt(p), s))).tensor for p, s in subjects]
    assert pooled == pytest.approx(float(torch.cat([t.flatten() for t in parts]).std()), abs=1e-12)


@pytest.mark.parametrize(("window", "answer", "alternative"), [(1, "o", "e"), (2, TWO, "e"), (4, "o", TWO)])
def test_patched_cells_are_hooks_on_the_model(lm64, raw, window, answer, alternative):
    clean, wrong = list(lm64.prompt(PROMPT).ids), list(lm64.prompt(PROMPT).ids)
    wrong[2], wrong[5] = wrong[5], wrong[2]
    n = lm64.n_layers
    [(run, found, totals)] = activation_patching(lm64, clean, wrong, answer, alternative, window=window)
    states = plain(lm64, clean)[1]
    wanted, rival = lm64.encoder.ids(answer), lm64.encoder.ids(alternative)

    def both(ids, puts=()):
        return [answered(plain(lm64, [*ids, *a[:-1]], puts)[0], a) for a in (wanted, rival)]

    full, none = both(clean), both(wrong)
    assert totals["clean_difference"] == pytest.approx(full[0] - full[1], abs=1e-9)
    assert (run.answer, run.alternative) == (answer, alternative)
    for layer, p in itertools.product(range(n + 1), range(len(clean))):
        around = range(max(0, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        a, b = both(wrong, [(at, p, states[at, p]) for at in around])
        assert found["log_prob"][layer, p] == pytest.approx(a, abs=1e-9)
        assert found["log_effect"][layer, p] == pytest.approx(a - none[0], abs=1e-9)
        assert found["effect"][layer, p] == pytest.approx(np.exp(a) - np.exp(none[0]), abs=1e-9)
        assert found["difference"][layer, p] == pytest.approx(a - b, abs=1e-9)
        part = ((a - b) - (none[0] - none[1])) / ((full[0] - full[1]) - (none[0] - none[1]))
        assert found["recovered"][layer, p] == pytest.approx(part, abs=1e-7)


def test_the_difference_of_single_tokens_is_that_of_their_logits(lm64, raw):
    [(_, found, _)] = activation_patching(lm64, PROMPT, PROMPT, "o", "e", layers=[2], positions=-1)
    a, b = lm64.encoder.ids("o")[0], lm64.encoder.ids("e")[0]
    z = lm64.model(input_ids=torch.tensor([list(lm64.prompt(PROMPT).ids)])).logits[0, -1]
    assert found["difference"][0, 0] == pytest.approx((z[a] - z[b]).item(), abs=1e-9)


def test_equal_runs_recover_nothing_that_is_defined(lm64):
    found = activation_patching(lm64, PROMPT, PROMPT)
    assert np.isnan(found.measures["recovered"]).all()
    assert np.abs(found.measures["log_effect"]).max() < 1e-6
    base = lm64.unembed(lm64.read(PROMPT)[lm64.n_layers, -1])
    assert found.runs[0].answer == lm64.encoder.tokens([int(base.argmax())])[0]


def test_prompts_of_unequal_length_are_patched_at_pairs(lm64, raw):
    short = PROMPT[:-4]
    assert len(lm64.prompt(short)) != len(lm64.prompt(PROMPT))
    with pytest.raises(ls.LenscopeError, match=r"has \d+ tokens, the corrupted one \d+: give positions as pairs"):
        activation_patching(lm64, PROMPT, short)
    [(run, found, _)] = activation_patching(lm64, PROMPT, short, "o", layers=[1], positions=[("cat", 0), (-1, -2)])
    states, wanted = plain(lm64, lm64.prompt(PROMPT).ids)[1], lm64.encoder.ids("o")
    ids = lm64.prompt(short).ids
    assert run.places == ((0,), (len(ids) - 2,))
    cat = lm64.prompt(PROMPT).position("cat")
    for column, (a, b) in enumerate([(cat, 0), (-1, len(ids) - 2)]):
        log_p = plain(lm64, ids, [(1, b, states[1, a])])[0]
        assert found["log_prob"][0, column] == pytest.approx(answered(log_p, wanted), abs=1e-9)


@pytest.mark.parametrize(
    ("window", "keys", "queries", "answer"),
    [(1, "cat", -1, "o"), (3, "cat sat", -1, TWO), (2, [0, 3], [3, 5], "o"), (4, None, -1, "o"), (1, [-1], -1, "o")],
)
def test_knocked_out_attention_is_a_mask_on_each_block(lm64, raw, window, keys, queries, answer):
    [(run, found, totals)] = attention_knockout(lm64, PROMPT, keys, answer, queries=queries, window=window)
    ids, wanted = tokens(lm64, PROMPT, answer)
    text, n = [*ids, *wanted[:-1]], lm64.n_layers
    base = answered(plain(lm64, text)[0], wanted)
    assert totals["clean_log_prob"] == pytest.approx(base, abs=1e-9)
    asking = [len(ids) - 1, *range(len(ids), len(text))] if queries == -1 else queries
    for layer in range(1, n + 1):
        around = range(max(1, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        for column, place in enumerate(run.places):
            barred = [(b, q, k) for b in around for q in asking for k in place if k <= q]
            lp = answered(plain(lm64, text, barred=barred)[0], wanted)
            assert found["log_prob"][layer - 1, column] == pytest.approx(lp, abs=1e-9)
            assert found["effect"][layer - 1, column] == pytest.approx(np.exp(lp) - np.exp(base), abs=1e-9)
    assert np.abs(found["log_effect"]).max() > 1e-4


def test_knockout_windows_are_a_fifth_of_the_blocks(lm64):
    assert attention_knockout(lm64, PROMPT, "cat").provenance["window"] == 1

    class Deep:
        n_layers = 48

    found = [max(1, n // 5 - (n // 5 + 1) % 2) for n in (4, 12, 30, Deep.n_layers)]
    assert found == [1, 1, 5, 9]


def test_back_patches_write_later_states_earlier(lm64):
    scope, states, pairs = methods.back_patching(lm64, PROMPT, "cat")
    grid = scope.predict(states, pairs, answers=["o"])
    at = lm64.prompt(PROMPT).position("cat")
    own = plain(lm64, lm64.prompt(PROMPT).ids)[1]
    n = lm64.n_layers
    assert [(c.source.layer, c.layer) for c in grid] == [(a, b) for a in range(1, n + 1) for b in range(a)]
    for cell in grid:
        log_p = plain(lm64, lm64.prompt(PROMPT).ids, [(cell.layer, at, own[cell.source.layer, at])])[0]
        assert cell.measures["log_prob:o"] == pytest.approx(answered(log_p, lm64.encoder.ids("o")), abs=1e-6)


def test_a_list_is_each_prompt_alone(lm64):
    prompts, subjects = [PROMPT, "This is a test of the tokenizer"], ["cat", "test"]
    many = causal_tracing(lm64, prompts, subjects, ["o", TWO], samples=2)
    hidden = attention_knockout(lm64, prompts, subjects)
    for n, (prompt, subject, answer) in enumerate(zip(prompts, subjects, ["o", TWO], strict=True)):
        alone = causal_tracing(lm64, prompt, subject, answer, samples=2)
        assert np.allclose(many.cells("effect", n), alone.cells(), atol=1e-7)
        assert many.totals["clean"][n] == pytest.approx(alone.totals["clean"][0], abs=1e-7)
        assert np.allclose(hidden.cells("effect", n), attention_knockout(lm64, prompt, subject).cells(), atol=1e-7)
    lengths = [len(lm64.prompt(p)) for p in prompts]
    cells = [(r, layer, p) for r in (0, 1) for layer in range(5) for p in range(lengths[r])]
    assert list(zip(many.run.tolist(), many.layer.tolist(), many.place.tolist(), strict=True)) == cells
    swapped = activation_patching(lm64, [PROMPT, PROMPT], [PROMPT[:4], PROMPT], "o", positions=[(0, 0)])
    assert len(swapped.runs) == 2


def test_draws_depend_on_the_seed_alone(lm64, monkeypatch):
    found = causal_tracing(lm64, PROMPT, "cat", samples=2)
    monkeypatch.setattr(rows, "MOST", 5)
    assert np.allclose(causal_tracing(lm64, PROMPT, "cat", samples=2).cells(), found.cells(), atol=1e-7)
    assert not np.allclose(causal_tracing(lm64, PROMPT, "cat", samples=2, seed=1).cells(), found.cells(), atol=1e-4)


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_saved_effects_load_equal(lm64, tmp_path, suffix):
    path = tmp_path / f"e{suffix}"
    for found in (
        causal_tracing(lm64, [PROMPT, OTHER], ["cat", "dog"], samples=1),
        activation_patching(lm64, PROMPT, PROMPT, "o", "e", layers=[0, 3], positions=[1, -1]),
        attention_knockout(lm64, PROMPT, "cat"),
    ):
        found.save(path)
        loaded = load_effects(path)
        assert loaded.to_json() == found.to_json()
        assert all(loaded.measures[k].dtype == np.float32 for k in loaded.measures)
        assert np.array_equal(loaded.cells(), found.cells())
    path.write_bytes(b"{}")
    with pytest.raises(ls.LenscopeError, match="is no table of effects"):
        load_effects(path)


def shown(table, width=None):
    console = Console(width=width or 400, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_show_numbers_tokens_and_what_does_not_fit(lm64):
    found = causal_tracing(lm64, PROMPT, "cat", "o", samples=2)
    text = shown(found.table())
    assert "indirect effect" in text
    assert "answer 'o'" in text
    value = found.cells()[-1, -1]
    assert (f"{100 * value:.0f}%" if abs(value) >= 0.1 else f"{100 * value:.1f}%") in text
    narrow = shown(found.table("log_effect", width=40), 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert "do not fit" in " ".join(narrow.split())
    assert "–" in shown(causal_tracing(lm64, PROMPT, "cat", samples=1).table("standard_error"))
    assert "cat" in shown(attention_knockout(lm64, PROMPT, "cat").table())


def test_models_without_a_maskable_attention_say_so():
    lm = ls.LM(tiny.model("mamba", dtype=torch.float64), tiny.tokenizer(), "tiny-mamba")
    with pytest.raises(ls.LenscopeError, match="attention knockout and masked placeholders are not supported"):
        attention_knockout(lm, PROMPT, "cat")
    assert len(causal_tracing(lm, PROMPT, "cat", samples=1, layers=[1], positions=[-1])) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: causal_tracing(lm, PROMPT, "dog"), "'dog': not in the prompt"),
        (lambda lm: causal_tracing(lm, PROMPT, []), "the list is empty"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", samples=0), "samples 0: give at least 1"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", noise=-1.0), "noise -1.0: give a positive"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", window=0), "window 0"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", layers=[9]), "layer 9: tiny-llama has layers 0–4"),
        (
            lambda lm: causal_tracing(lm, PROMPT, "cat", restore=torch.zeros(2, 3)),
            r"restore of shape \(2, 3\)",
        ),
        (lambda lm: causal_tracing(lm, [PROMPT, OTHER], ["cat"]), "1 given for 2 prompts"),
        (lambda lm: activation_patching(lm, [PROMPT], [PROMPT, OTHER]), "1 clean and 2 corrupted"),
        (lambda lm: attention_knockout(lm, PROMPT, "cat", layers=[0, 1]), "layer 0: no block"),
        (lambda lm: attention_knockout(lm, PROMPT, -1, queries=0), "which never see them"),
        (lambda lm: attention_knockout(lm, PROMPT, 0, queries=0), "hidden from itself"),
        (lambda lm: attention_knockout(lm, PROMPT, [-2, -1]), "hidden from itself"),
        (lambda lm: attention_knockout(lm, PROMPT, queries=0), "hidden from itself"),
        (
            lambda lm: attention_knockout(lm, PROMPT, "cat").cells("kl"),
            "measure 'kl': these effects have",
        ),
        (lambda lm: attention_knockout(lm, PROMPT, "cat").cells(run=3), "run 3: there are runs 0–0"),
        (
            lambda lm: attention_knockout(lm, PROMPT, "cat").save("x.txt"),
            "saved as .parquet or .json",
        ),
    ],
)
def test_mistakes_are_one_clear_line(lm64, call, message):
    with pytest.raises(ls.LenscopeError, match=message) as error:
        call(lm64)
    assert "\n" not in str(error.value)
