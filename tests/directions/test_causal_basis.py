"""Causal bases, ablations and responses equal what plain hooks on the transformers model and autograd give."""

import json
import random

import numpy as np
import pytest
import tiny
import torch
from affine_lens import affine

import lenscope as ls
from lenscope.directions import energy
from lenscope.directions.alignment import Alignment, aitchison_cosine, alignment, places_of_other_rows
from lenscope.directions.basis import Basis, load_basis
from lenscope.directions.causal_basis import causal_basis, principal_basis, promoted, random_basis
from lenscope.directions.energy import FactoredEnergy, GeneralEnergy, Site, wide_readout
from lenscope.directions.influence import Influence, influence
from lenscope.engine import resume
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import fidelity
from lenscope.lenses.lens import Lens
from lenscope.measures.sampled_kl import SampledKL
from lenscope.models.same_model import model_identity
from lenscope.statistics.rank_correlations import rank_correlation
from lenscope.text import row_states

WORDS = "the cat sat on a mat in this capital city of France and Paris is it while tests of tokens go on"

# final norm and head of each family, and how their product becomes logits
TAILS = {
    "llama": lambda m, h: m.lm_head(m.model.norm(h)),
    "gpt2": lambda m, h: m.lm_head(m.transformer.ln_f(h)),
    "cohere": lambda m, h: m.lm_head(m.model.norm(h)) * m.config.logit_scale,
    "gemma2": lambda m, h: (
        torch.tanh(m.lm_head(m.model.norm(h)) / m.config.final_logit_softcapping) * m.config.final_logit_softcapping
    ),
}
BLOCKS = {
    "llama": lambda m: m.model.layers,
    "gpt2": lambda m: m.transformer.h,
    "bloom": lambda m: m.transformer.h,
    "gemma3n_text": lambda m: m.model.layers,
}


def lm_of(kind, dtype=torch.float64):
    return ls.LM(tiny.model(kind, dtype=dtype), tiny.tokenizer(), f"tiny-{kind}")


def rows_of(lm, count=6, length=9):
    return [tiny.ids(lm.model, 1, length, n)[0].tolist() for n in range(count)]


def states(lm, rows, layer):
    """Of all positions that count, row after row: not of the first one."""
    return lm.read(rows, layer).tensor[:, 0, 1:].flatten(0, 1)


def behind(h, new):
    """States (1, T, D) with those after position 0 replaced by `new`."""
    return torch.cat([h[:, :1], new], 1)


def kl(a, b):
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def ablate(h, v, mean):
    return h + ((mean - h) @ v)[..., None] * v


def sigma(tail, f, h, v, mean=None):
    """The definition, by the model's own modules."""
    return kl(tail(f(h)), tail(f(ablate(h, v, h.mean(0) if mean is None else mean)))).mean()


def unit(size, seed=0):
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm()


@pytest.mark.parametrize(("kind", "factored"), [("llama", True), ("gpt2", True), ("cohere", True), ("gemma2", False)])
@pytest.mark.parametrize("tuned", [False, True])
def test_energy_and_gradient_are_those_of_the_definition(kind, factored, tuned):
    lm = lm_of(kind)
    f = affine(lm) if tuned else None
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm, f), wide_readout(lm), 2, h, 4, 0)
    assert (site.factors is not None) == factored
    v = unit(lm.hidden_size).requires_grad_()
    read = (lambda h: f(h, 2, lm.n_layers)) if tuned else (lambda h: h)
    expected = sigma(lambda y: TAILS[kind](lm.model, y), read, h, v)
    (gradient,) = torch.autograd.grad(expected, v)
    # most norms are computed in float32 whatever the model's dtype; LayerNorm is not
    close = {"rtol": 1e-9, "atol": 1e-10} if kind == "gpt2" else {"rtol": 2e-5, "atol": 2e-6}
    objective = SampledKL(lm, site._mean_distribution(), None, 0)
    for made in [
        GeneralEnergy(site, objective),
        *([FactoredEnergy(site, objective, *site.factors)] if factored else []),
    ]:
        found, pull = made(v.detach())
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected.detach(), **close)
        torch.testing.assert_close(pull, gradient, **close)


def test_drawn_columns_give_the_energy_of_the_weighted_vocabulary():
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm), wide_readout(lm), 2, h, 4, 0)
    columns = SampledKL(lm, site._mean_distribution(), 64, 0).draw(0)
    assert len(columns.ids) == 64
    assert columns.added.max() > 1
    v = unit(lm.hidden_size)
    tail = TAILS["gpt2"]
    expected = sigma(lambda y: tail(lm.model, y)[:, columns.ids] + columns.added, lambda h: h, h, v)
    assert site.energy(64)(v)[0] == pytest.approx(expected.item(), rel=1e-9)


def test_logits_that_are_not_kept_are_made_again(monkeypatch):
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm, affine(lm)), wide_readout(lm), 2, h, 4, 0)
    v = unit(lm.hidden_size)
    kept = site.energy(None)(v)
    monkeypatch.setattr(energy, "KEPT", 0)
    monkeypatch.setattr(energy, "PIECE", 30_000)
    again = site.energy(None)(v)
    assert again[0] == pytest.approx(kept[0], rel=1e-12)
    torch.testing.assert_close(again[1], kept[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_basis_is_orthonormal_sorted_exact_and_at_maxima(tuned):
    lm = lm_of("gpt2")
    f = affine(lm) if tuned else None
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, f, [1, 2], k=3)
    assert basis.layers == (1, 2)
    for i, layer in enumerate(basis.layers):
        v = basis[layer].double()
        torch.testing.assert_close(v @ v.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        h = states(lm, rows, layer)
        read = (lambda h, layer=layer: f(h, layer, lm.n_layers)) if tuned else (lambda h: h)

        def value(v, h=h, read=read):
            return sigma(lambda y: TAILS["gpt2"](lm.model, y), read, h, v)

        found = torch.stack([value(one) for one in v]).detach()
        torch.testing.assert_close(basis.energies[i].double(), found, rtol=1e-5, atol=1e-7)
        assert (found.diff() <= 0).all()
        torch.testing.assert_close(basis.mean[i].double(), h.mean(0), rtol=1e-5, atol=1e-5)
        along = (h - h.mean(0)) @ v.T
        torch.testing.assert_close(basis.spread[i].double(), along.square().mean(0).sqrt(), rtol=1e-5, atol=1e-6)
        assert (along.pow(3).mean(0) > 0).all()
        # at each, what would raise it further lies within the directions themselves
        for one, energy_of in zip(v, found, strict=True):
            one = one.clone().requires_grad_()
            (pull,) = torch.autograd.grad(value(one), one)
            outside = pull - v.T @ (v @ pull)
            assert float(outside.norm()) < 0.05 * float(energy_of)


def test_no_search_of_ones_own_finds_more_for_the_first_direction():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    h = states(lm, rows, 2)
    best = 0.0
    for seed in range(4):
        w = unit(lm.hidden_size, seed).requires_grad_()
        climb = torch.optim.LBFGS([w], max_iter=30, line_search_fn="strong_wolfe")

        def value(w=w):
            return sigma(lambda y: TAILS["gpt2"](lm.model, y), lambda h: h, h, w / w.norm())

        def step(w=w, climb=climb, value=value):
            climb.zero_grad()
            loss = -value()
            loss.backward()
            return loss

        climb.step(step)
        best = max(best, float(value().detach()))
    assert float(causal_basis(lm, rows, None, [2], k=1).energies[0, 0]) > 0.95 * best


def test_a_lens_that_reads_one_direction_has_that_one():
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    # the states' own longest axis: else it would pay to lean towards that
    u, w = torch.linalg.svd(h - h.mean(0)).Vh[0], 2 * unit(lm.hidden_size, 4)

    def one(h):
        return torch.ones_like(h).cumsum(-1) + (h @ u.to(h))[..., None] * w.to(h)

    basis = causal_basis(lm, rows_of(lm), one, [2], k=2)
    # what is ablated is finite, so that a little of other axes pays
    assert abs(float(basis[2][0].double() @ u)) > 1 - 1e-3
    assert basis.energies[0, 1] < 1e-2 * basis.energies[0, 0]


def test_sixteen_bit_models_are_read_in_float32():
    lm, finer = lm_of("llama", torch.bfloat16), lm_of("llama", torch.bfloat16)
    finer = ls.LM(finer.model.float(), tiny.tokenizer(), "wider")
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, None, [2], k=2)
    assert basis.directions.dtype == torch.float32
    h = states(lm, rows, 2).float()
    expected = [float(sigma(lambda y: TAILS["llama"](finer.model, y), lambda h: h, h, v).detach()) for v in basis[2]]
    torch.testing.assert_close(basis.energies[0], torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert lm.model.lm_head.weight.dtype == torch.bfloat16


def test_states_that_were_read_give_the_basis_of_their_text():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    first, second = (causal_basis(lm, given, None, [1], k=2) for given in (rows, lm.read(rows, [1, 3])))
    torch.testing.assert_close(first.directions, second.directions)
    assert causal_basis(lm, lm.read(rows, [1, 3]), k=1).layers == (1, 3)


def test_corpora_count_what_they_say(tmp_path):
    lm = lm_of("gpt2")
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"the cat number {n} sat on the mat"}) for n in range(60)))
    batches = list(ls.Corpus.open(lm, path, length=16).batches(64, 2))
    basis = principal_basis(lm, batches, None, [2], k=2)
    h = torch.cat([lm.read(b.ids[n].tolist(), 2).tensor[0, 0, b.counted[n]] for b in batches for n in range(2)])
    torch.testing.assert_close(basis.mean[0].double(), h.mean(0), rtol=1e-5, atol=1e-5)
    assert basis.provenance["tokens"] == len(h) < 64
    found = influence(lm, batches, basis)
    assert found.counts.sum() == len(h)
    assert len(found.counts) == len({int(d) for b in batches for d in b.document.flatten()})


def test_controls_are_orthonormal_and_span_what_they_say():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    h = states(lm, rows, 2)
    for maker in (principal_basis, random_basis):
        v = maker(lm, rows, None, [2], k=4)[2].double()
        torch.testing.assert_close(v @ v.T, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    v = principal_basis(lm, rows, None, [2], k=4)[2].double()
    values = torch.linalg.svdvals(h - h.mean(0))[:4].square()
    assert float(((h - h.mean(0)) @ v.T).square().sum()) == pytest.approx(float(values.sum()), rel=1e-6)
    again, other = random_basis(lm, rows, None, [2], k=4), random_basis(lm, rows, None, [2], k=4, seed=1)
    assert torch.equal(random_basis(lm, rows, None, [2], k=4).directions, again.directions)
    assert not torch.equal(other.directions, again.directions)


def hooked(lm, kind, row, layer, change):
    """The last block's output of a row when `change` is made at a layer, by hooks of one's own."""
    blocks, kept = BLOCKS[kind](lm.model), []

    def pre(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def post(_, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    if layer == 0:
        hook = blocks[0].register_forward_pre_hook(pre, with_kwargs=True)
    else:
        hook = blocks[layer - 1].register_forward_hook(post)
    last = blocks[-1].register_forward_hook(lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
    try:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    finally:
        hook.remove()
        last.remove()
    return logits


@pytest.mark.parametrize(("kind", "layer"), [("llama", 0), ("llama", 2), ("gpt2", 3), ("bloom", 1), ("bloom", 4)])
def test_influence_on_the_model_is_that_of_a_plain_hook(kind, layer):
    lm = lm_of(kind)
    rows = [*rows_of(lm, 3), *rows_of(lm, 2, 5)]
    basis = random_basis(lm, rows, None, [layer], k=3)
    found = influence(lm, rows, basis)
    mean = basis.mean[0].double()
    expected = np.zeros((len(rows), 3))
    for n, row in enumerate(rows):
        clean = hooked(lm, kind, row, layer, lambda h: h)
        for d, v in enumerate(basis[layer].double()):
            changed = hooked(lm, kind, row, layer, lambda h, v=v: behind(h, ablate(h[:, 1:], v, mean)))
            expected[n, d] = float(kl(clean, changed)[1:].sum())
    np.testing.assert_allclose(found.by_unit[1, :, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(found.counts, [len(r) - 1 for r in rows])
    if layer == lm.n_layers:
        np.testing.assert_allclose(found.lens, found.model, rtol=1e-9)


def test_blocks_below_are_left_out_only_where_that_gives_the_same():
    ids = [list(range(20, 29)), list(range(40, 49))]
    for kind, layer, short in (("llama", 2, True), ("gemma3n_text", 3, False)):
        lm = lm_of(kind)
        (run,) = row_states.row_states(lm, ids, [layer])
        above = resume.RunAbove(lm.runner, run.prompts, layer, run.states[0], run.states[-1])
        assert above.short == short
        torch.testing.assert_close(above(run.states[:1])[0], run.states[-1], rtol=1e-9, atol=1e-9)
        assert not any("forward" in vars(b) for b in lm.runner.anatomy.blocks)


def test_the_lower_blocks_do_not_run(monkeypatch):
    lm = lm_of("llama")
    (run,) = row_states.row_states(lm, rows_of(lm, 2), [3])
    above = resume.RunAbove(lm.runner, run.prompts, 3, run.states[0], run.states[-1])
    ran = []
    hooks = [
        b.self_attn.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(lm.model.model.layers)
    ]
    above(run.states[:1])
    for hook in hooks:
        hook.remove()
    assert ran == [3]


def test_only_positions_that_count_are_ablated(tmp_path):
    lm = lm_of("llama")
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and " * 40)
    (batch,) = ls.Corpus.open(lm, path, length=12, skip=4).batches(12, 1)
    basis = random_basis(lm, [batch], None, [1], k=1)
    found = influence(lm, [batch], basis)
    counted, v, mean = batch.counted[0], basis[1][0].double(), basis.mean[0].double()
    row = batch.ids[0].tolist()
    changed = hooked(lm, "llama", row, 1, lambda h: torch.where(counted[:, None], ablate(h, v, mean), h))
    expected = kl(hooked(lm, "llama", row, 1, lambda h: h), changed)[counted]
    assert len(expected) < 12
    assert found.model[0, 0] == pytest.approx(float(expected.mean()), rel=1e-7)


def test_alignment_is_that_of_plain_hooks():
    lm = lm_of("llama")
    f, rows, layer = affine(lm), rows_of(lm, 4), 2
    basis = causal_basis(lm, rows, f, [layer], k=3)
    found = alignment(lm, rows, basis, {"tuned": f, "logit": None}, seed=5)
    h = states(lm, rows, layer)
    source = places_of_other_rows(np.repeat(np.arange(4), 8), 5)
    v = basis[layer].double()
    treated = h + (h[source] - h) @ v.T @ v
    tail = TAILS["llama"]
    for n, row in enumerate(rows):
        part = slice(8 * n, 8 * n + 8)
        before = hooked(lm, "llama", row, layer, lambda h: h)[1:].log_softmax(-1)
        after = hooked(lm, "llama", row, layer, lambda h, part=part: behind(h, treated[part][None]))[1:].log_softmax(-1)
        w = (before.exp() + after.exp()) / 2
        for i, read in enumerate((lambda y: f(y, layer, lm.n_layers), lambda y: y)):
            x = tail(lm.model, read(treated[part])) - tail(lm.model, read(h[part]))
            y = after - before
            x, y = (z - (w * z).sum(-1, keepdim=True) for z in (x, y))
            cosine = (w * x * y).sum(-1) / ((w * x * x).sum(-1) * (w * y * y).sum(-1)).sqrt()
            assert found.by_unit[i, n, 0] == pytest.approx(float(cosine.detach().sum()), rel=1e-5)
    assert (found.counts == 8).all()
    np.testing.assert_allclose(found.similarity[:, 0], found.by_unit.sum(1)[:, 0] / 32)
    assert found.estimate("tuned", layer).value == pytest.approx(found.units("tuned", layer).mean())


def test_the_last_layer_aligns_with_itself():
    lm = lm_of("gpt2")
    rows = rows_of(lm, 4)
    found = alignment(lm, rows, random_basis(lm, rows, None, [lm.n_layers], k=2))
    np.testing.assert_allclose(found.similarity, 1, rtol=1e-9)


def test_the_aitchison_cosine_with_even_weights_is_the_correlation():
    draw = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(5, 40, generator=draw, dtype=torch.float64) for _ in range(3))
    even = torch.full_like(x, 1 / 40)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(aitchison_cosine(x, y, even), expected, rtol=1e-10)
    w = w.softmax(-1)
    found = aitchison_cosine(x, y, w)
    torch.testing.assert_close(aitchison_cosine(x + 3, 2 * y - 7, w), found)
    torch.testing.assert_close(aitchison_cosine(x, -y, w), -found)
    a, b = (np.cov(np.stack([x[0], y[0]]), aweights=w[0].numpy(), ddof=0)[i] for i in range(2))
    assert float(found[0]) == pytest.approx(a[1] / (a[0] * b[1]) ** 0.5)
    assert torch.isnan(aitchison_cosine(torch.ones(1, 4), torch.arange(4.0)[None], torch.full((1, 4), 0.25))).all()


@pytest.mark.parametrize("sizes", [(3, 3), (1, 2, 3), (5, 1, 1, 4), (2,) * 20])
def test_every_place_gets_a_state_of_another_row(sizes):
    row = np.repeat(np.arange(len(sizes)) * 7, sizes)
    for seed in range(20):
        found = places_of_other_rows(row, seed)
        assert sorted(found) == list(range(len(row)))
        assert (row[found] != row).all()
    assert len({tuple(places_of_other_rows(row, seed)) for seed in range(20)}) > 2


def test_tokens_promoted_are_those_of_the_lens():
    lm = lm_of("llama")
    f, rows = affine(lm), rows_of(lm)
    basis = causal_basis(lm, rows, f, [1], k=2)
    found = promoted(lm, basis, f, top=3)
    tail = TAILS["llama"]
    for d in range(2):
        step = basis[1][d].double() * basis.spread[0, d].double()
        mean = basis.mean[0].double()
        change = (tail(lm.model, f(mean + step, 1, lm.n_layers)).log_softmax(-1)
                  - tail(lm.model, f(mean - step, 1, lm.n_layers)).log_softmax(-1))  # fmt: skip
        assert found[0, d, 0].tolist() == change.topk(3).indices.tolist()
        assert found[0, d, 1].tolist() == (-change).topk(3).indices.tolist()


def test_what_is_saved_is_loaded(tmp_path):
    lm = lm_of("gpt2")
    basis = causal_basis(lm, rows_of(lm), affine(lm), [1, 3], k=2)
    basis.save(tmp_path / "basis")
    again = load_basis(tmp_path / "basis")
    for name in ("directions", "energies", "mean", "spread"):
        assert torch.equal(getattr(again, name), getattr(basis, name))
    for name in ("layers", "kind", "lens", "model", "provenance"):
        assert getattr(again, name) == getattr(basis, name)
    (weights,) = (tmp_path / "basis").glob("basis-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ls.LenscopeError, match="damaged"):
        load_basis(tmp_path / "basis")
    with pytest.raises(ls.LenscopeError, match="no basis"):
        load_basis(tmp_path)


def test_a_basis_is_exchanged_and_ablated_along_its_directions():
    lm = lm_of("gpt2")
    basis = random_basis(lm, rows_of(lm), None, [1], k=3).top(2)
    h, other = torch.randn(2, 4, lm.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v, mean = basis[1].double(), basis.mean[0].double()
    new = basis.exchanged(h, other, 1)
    torch.testing.assert_close(new @ v.T, other @ v.T, atol=1e-6, rtol=1e-6)
    rest = torch.eye(lm.hidden_size, dtype=torch.float64) - v.T @ v
    torch.testing.assert_close(new @ rest, h @ rest, atol=1e-5, rtol=1e-5)
    for d, one in enumerate(basis.ablated(h, 1)):
        torch.testing.assert_close(one, h + ((mean - h) @ v[d])[:, None] * v[d])


def test_mistakes_are_told():
    lm, other = lm_of("gpt2"), lm_of("llama")
    rows = rows_of(lm)
    basis = random_basis(lm, rows, None, [1], k=2)
    for wrong, call in {
        "k 33: states of tiny-gpt2 have 1–32": lambda: causal_basis(lm, rows, k=33),
        "layer 9: tiny-gpt2 has layers 0–4": lambda: causal_basis(lm, rows, layers=[9]),
        "needs at least 2": lambda: causal_basis(lm, [[5, 6]], layers=[1], k=1),
        r"rows: \[5\] has no position that counts: of its tokens \(1\) the first do": lambda: causal_basis(lm, [[5]]),
        "rows: is one string": lambda: causal_basis(lm, "text"),
        "no position counts": lambda: causal_basis(lm, []),
        "has no gradient": lambda: causal_basis(lm, rows, lambda h: h.detach(), [1], k=1),
        "extracted from tiny-gpt2": lambda: influence(other, rows_of(other), basis),
        "one has 8 of 8 positions": lambda: alignment(lm, rows[:1], basis),
        "layer 3: this basis has layers 1": lambda: basis[3],
        "k 3: this basis has 1–2": lambda: basis.top(3),
        "give \\(layers, k, D\\)": lambda: Basis(basis.directions[0], *([basis.mean] * 3), (1,), "", "", basis.model),
    }.items():
        with pytest.raises(ls.LenscopeError, match=wrong):
            call()
    with pytest.raises(ls.LenscopeError, match="lens 'x'"):
        alignment(lm, rows, basis).units("x", 1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    draw = random.Random(0)
    words = WORDS.split()
    path.write_text("\n".join(json.dumps({"text": " ".join(draw.choices(words, k=60))}) for _ in range(300)))
    return str(path)


@pytest.fixture(scope="module")
def setting(text, tmp_path_factory):
    lm = lm_of("llama", torch.float32)
    return Setting(lm, data=(text,), text=(text,), lens=affine(lm), quick=True, folder=tmp_path_factory.mktemp("run"))


def test_the_fidelity_experiment_reports_what_the_library_gives(setting, monkeypatch):
    for name, small in {"FOUND_ON": 192, "MEASURED_ON": 128, "K": 4, "LAYERS": 3}.items():
        monkeypatch.setattr(fidelity, name, {"quick": small, "full": 0})
    report = fidelity.EXPERIMENT.run(setting)
    rows = report.tables["fidelity"]
    assert [r["layer"] for r in rows] == [0, 2, 3]
    lm = setting.lm
    parts = setting.held_out.split(0.5)
    sizes = fidelity.FOUND_ON["quick"], fidelity.MEASURED_ON["quick"]
    found, measured = (list(p.batches(n, 8)) for p, n in zip(parts, sizes, strict=True))
    basis = random_basis(lm, found, setting.lens, [2], k=4)
    again = influence(lm, measured, basis, setting.lens)
    assert rows[1]["random directions"].value == pytest.approx(again.fidelity()[0].value)
    sums = report.tables["influence"]
    assert sums[1]["random, model"] == pytest.approx(again.model[0].sum(), rel=1e-5)
    assert sums[1]["random, lens"] == pytest.approx(again.lens[0].sum(), rel=1e-5)
    for row in rows:
        assert row["minus random directions"].value == pytest.approx(
            row["causal basis"].value - row["random directions"].value
        )
    assert "Fidelity" in report.reading
    assert fidelity.EXPERIMENT.run(setting).tables["influence"] == sums


def test_the_alignment_experiment_reports_what_the_library_gives(setting, monkeypatch):
    from lenscope.experiments.tuned_lens_paper import alignment as experiment

    for name, small in {"FOUND_ON": 192, "MEASURED_ON": 256, "K": 4, "LAYERS": 3}.items():
        monkeypatch.setattr(experiment, name, {"quick": small, "full": 0})
    report = experiment.EXPERIMENT.run(setting)
    rows = report.tables["alignment"]
    lm = setting.lm
    first, second = setting.held_out.split(0.5)
    basis = random_basis(lm, list(first.batches(experiment.FOUND_ON["quick"], 8)), setting.lens, [0, 2, 3], k=4)
    again = alignment(
        lm, list(second.batches(experiment.MEASURED_ON["quick"], 8)), basis, {"tuned": setting.lens, "logit": None}
    )
    for row in rows:
        expected = again.estimate("logit", row["layer"])
        assert row["logit lens, random subspace"].value == pytest.approx(expected.value, abs=1e-5)
        same = row["tuned - logit, same exchanges"]
        assert same.low <= same.value <= same.high
    assert report.settings["documents"] > 1
    assert "Tuned above logit" in report.reading


def test_results_show_themselves():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, None, [1], k=3)
    found = influence(lm, rows, basis)
    assert isinstance(found, Influence)
    assert "48 tokens" in repr(found)
    assert found.table(1, [["a"], ["b"], ["c"]], limit=2).row_count == 2
    assert found.to_json()["influence_on_lens"] == found.lens.tolist()
    same = alignment(lm, rows, basis)
    assert isinstance(same, Alignment)
    assert "48 tokens" in repr(same)


def test_fidelities_are_compared_over_all_layers(lm64):
    """Directions whose influences agree at every layer, beside some that disagree, and some of both."""
    k, draw = 40, np.random.default_rng(0)
    nothing = torch.zeros(2, k, lm64.hidden_size)
    basis = Basis(
        nothing, nothing[..., 0], nothing[:, 0], nothing[..., 0], (1, 2), "random", "l", model_identity(lm64), {}
    )

    def made(sign):
        lens = draw.random((2, k))
        model = sign * lens if sign else draw.random((2, k))
        return Influence(basis, np.stack([lens, model])[:, None], np.ones(1), {})

    same, opposite, noise = made(1), made(-1), made(0)
    assert fidelity._mean_difference(same, opposite, 0) == (2, 2, 2)
    assert fidelity._mean_difference(same, same, 0) == (0, 0, 0)
    found = fidelity._mean_difference(same, noise, 0)
    each = [1 - rank_correlation(noise.lens[n], noise.model[n]) for n in range(2)]
    assert found.value == pytest.approx(np.mean(each))
    # the standard error of a mean of two correlations of 40 unrelated pairs is 1 / sqrt(2 * 39)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / np.sqrt(78), rel=0.3)
