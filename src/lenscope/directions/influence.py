"""Ablations in the model: what a lens makes of changed states of a layer beside what the model itself makes of them.

Knows: how the blocks above a layer run again alone, whose states replace whose, how two changes of a distribution are
compared. Does not know: how directions are found (causal.py), intervals and files (directions.py).
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.directions.basis import Alignment, Basis, Influence
from lenscope.directions.causal_basis import Run, energies, lens_layers, runs
from lenscope.directions.energy import wide_readout
from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.mappings.mapping import is_of
from lenscope.measures.streamed import WHOLE, reduce
from lenscope.models.batches import TOKENS_PER_RUN
from lenscope.models.edits import Running
from lenscope.models.language_model import LM
from lenscope.models.prompts import Batch, Prompt
from lenscope.models.provenance import provenance
from lenscope.models.readout import FAILURES, Readout, stubbed, wide
from lenscope.models.residual_stream import deviation
from lenscope.text.predictions import Progress, Rows


@torch.no_grad()
def influence(
    lm: LM, rows: Rows, basis: Basis, f: Callable[..., Any] | None = None, *, progress: Progress | None = None
) -> Influence:
    """What ablating each direction of a basis does to the lens f and to the model (Belrose et al. 2023, §4.1, Fig. 8).

    Each direction alone is ablated at every position that counts, r(h, v) = h + v vᵀ (mean - h) with the basis's mean:
    in the states that the lens reads, KL(lens(h) ‖ lens(r)), and in the model's own run at that layer, KL(model ‖
    ablated model), in nats. `rows` are texts, rows of ids or batches of a corpus, of which the positions count
    that `causal_basis` counts; take others than the basis was extracted from. f None is the logit lens.

    The blocks above a layer run for many directions together, those below not at all where that was seen to give the
    same. Raises LenscopeError for a basis of another model.
    """
    _check(lm, basis)
    lens, readout = Lens(lm, f), wide_readout(lm)
    lens_layers(lens, basis.layers)
    some = runs(lm, rows, basis.layers)
    counts = _counts(some)
    sums = np.zeros((2, len(counts), len(basis.layers), basis.k))
    for n, run in enumerate(some):
        units, final = run.units[run.counted.numpy()], run.states[-1][run.counted]
        for i, layer in enumerate(basis.layers):
            states = run.states[i]
            h = states[run.counted].to(wide(final[:0]).dtype)
            ablated = basis.ablated(h, layer)
            on_lens = energies(lens, readout, h, ablated, layer)
            np.add.at(sums[0, :, i], units, _numbers(on_lens.T))
            above = _Above(lm, run, layer, i)
            for at in range(0, basis.k, above.together):
                part = slice(at, at + above.together)
                changed = states.expand(len(ablated[part]), *states.shape).clone()
                changed[:, run.counted] = ablated[part].to(states)
                last = above(changed)[:, run.counted]
                kl = reduce(lm.readout, lm.vocab_size, last, final, None, 1, False).kl
                np.add.at(sums[1, :, i, part], units, _numbers(kl.T))
        if progress is not None:
            progress(n + 1, len(some))
    return Influence(basis, sums, counts, {**provenance(lm), "lens": repr(f), "tokens": int(counts.sum())})


@torch.no_grad()
def alignment(
    lm: LM,
    rows: Rows,
    basis: Basis,
    lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """How alike lenses and model respond to an exchange within a basis's subspace (Belrose et al. 2023, §4.2, Fig. 9).

    The component of every counted state in the span of the basis's directions becomes that of a counted state of
    another row, drawn with `seed` (resampling ablation). Stimulus: what this changes in the log-probabilities that the
    lens reads there; response: what it changes in those of the model, whose blocks above run on. The two are compared
    by `aitchison_cosine`, weighted by the mean of the model's probabilities without and with the change. `lenses` are
    mappings f by name, by default the logit lens (f None); all see the same changes.

    Raises LenscopeError for a basis of another model, and where one row has more than half of the positions.
    """
    _check(lm, basis)
    given = {"logit lens": None} if lenses is None else lenses
    made = [Lens(lm, f, name=name) for name, f in given.items()]
    readout = wide_readout(lm)
    for lens in made:
        lens_layers(lens, basis.layers)
    some = runs(lm, rows, basis.layers)
    counts = _counts(some)
    sums = np.zeros((2, len(made), len(counts), len(basis.layers)))
    row = np.concatenate([np.nonzero(run.counted.numpy())[0] + 10**6 * n for n, run in enumerate(some)])
    source = torch.from_numpy(deranged(row, seed))
    for i, layer in enumerate(basis.layers):
        h = torch.cat([run.states[i][run.counted] for run in some])
        h = h.to(wide(h[:0]).dtype)
        treated = basis.exchanged(h, h[source], layer)
        at = 0
        for run in some:
            part = slice(at, at := at + int(run.counted.sum()))
            changed = run.states[i].clone()
            changed[run.counted] = treated[part].to(changed)
            final = torch.stack([run.states[-1], _Above(lm, run, layer, i)(changed[None])[0]])[:, run.counted]
            found = _similarity(made, readout, layer, final, torch.stack([h[part], treated[part]]))
            known = ~np.isnan(found)
            for n, some_known in enumerate(known):
                units = run.units[run.counted.numpy()][some_known]
                np.add.at(sums[0, n, :, i], units, found[n, some_known])
                np.add.at(sums[1, n, :, i], units, 1)
        if progress is not None:
            progress(i + 1, len(basis.layers))
    about = {**provenance(lm), "lenses": {n: repr(f) for n, f in given.items()}, "seed": seed, "tokens": len(row)}
    return Alignment(basis, tuple(given), sums[0], sums[1], about)


def aitchison_cosine(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The cosine of two changes of log-probabilities, (..., V) each → (...), -1…1 (Belrose et al. 2023, §4.2).

    In the Aitchison geometry weighted by probabilities w: clr(x) = x - Σ w x, ⟨x, y⟩ = Σ w clr(x) clr(y), in which what
    is added to all logits does not count. NaN where one of the two is no change.
    """
    a, b = (v - (weights * v).sum(-1, keepdim=True) for v in (x, y))
    inner, first, second = ((weights * u * v).sum(-1) for u, v in ((a, b), (a, a), (b, b)))
    size = (first * second).sqrt()
    return torch.where(size > 0, inner / size, torch.nan).clamp(-1, 1)


def deranged(row: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of places (N,) that moves each to one of another row: random, drawn with `seed`.

    Raises LenscopeError where one row has more than half of the places.
    """
    random = np.random.default_rng(seed)
    names, number, sizes = np.unique(row, return_inverse=True, return_counts=True)
    most, count = int(sizes.max()), len(row)
    if 2 * most > count:
        raise LenscopeError(
            f"rows: one has {most} of {count} positions; give more rows, so that others can lend theirs"
        )
    # rows one after the other in a ring, each in an order of its own: a shift by the longest leaves every row
    order = np.lexsort((random.random(count), random.permutation(len(names))[number]))
    found = np.empty(count, dtype=np.int64)
    found[order] = np.roll(order, random.integers(most, count - most + 1))
    return found


class _Above:
    """The blocks above a layer of the model, on the rows of a run: changed states → the last layer's.

    The blocks below are left out where the rows' own states then give the rows' own last states (not where blocks
    pass on more than the stream, such as keys for others to use): else the whole model runs, with the states put in.
    """

    def __init__(self, lm: LM, run: Run, layer: int, index: int) -> None:
        self.lm, self.layer = lm, layer
        self.ids = torch.tensor([p.ids for p in run.prompts], device=lm.anatomy.ids.device)
        self.together = max(1, TOKENS_PER_RUN // self.ids.numel())
        self.short = layer > 0 and self._agrees(run.states[index, :1], run.states[-1, :1])

    def __call__(self, h: Tensor) -> Tensor:
        """Last states of G times the run's rows, (G, B, T, D) → (G, B, T, D)."""
        if self.layer == self.lm.n_layers:
            return h
        return self._run(self.ids.repeat(len(h), 1), h.flatten(0, 1)).view(h.shape)

    def _agrees(self, h: Tensor, last: Tensor) -> bool:
        self.short = True
        try:
            found = self._run(self.ids[:1], h)
        except FAILURES:
            return False
        logits = (self.lm.own_logits(x.flatten(0, 1)) for x in (found, last))
        return deviation(*logits) <= self.lm.tolerance()

    def _run(self, ids: Tensor, h: Tensor) -> Tensor:
        lm, kept = self.lm, list[Tensor]()
        prompts = [Prompt("", tuple(row), (), ()) for row in ids.tolist()]
        batch = Batch(ids, torch.ones_like(ids), (0,) * len(ids), (ids.shape[1],) * len(ids))
        running = Running(prompts, range(len(ids)), len(ids), batch, probe=True)
        with lm.exclusive.alone(), ExitStack() as undo:
            if self.short:
                known = lm.anatomy
                below = replace(known, blocks=known.blocks[: self.layer], outputs=known.outputs[: self.layer])
                undo.enter_context(stubbed(below, known.stream.unpack(h)))
            else:
                undo.callback(lm.hook(self.layer, lambda _: h).remove)
            lm.capture(running, {lm.n_layers}, lambda _, out: kept.append(out.to(lm.device, copy=True)))
        return kept[0]


def _similarity(lenses: list[Lens], readout: Readout, layer: int, final: Tensor, h: Tensor) -> np.ndarray:
    """Similarities (lenses, P) from last states and the layer's states, without and with the change: (2, P, D) each."""
    lm = lenses[0].lm

    def log_probs(which: Readout, states: Tensor) -> Tensor:
        z = wide(which.columns(which.prepare(states.flatten(0, 1)), 0, lm.vocab_size))
        return z.log_softmax(-1).view(2, -1, lm.vocab_size)

    found = []
    for part in torch.arange(final.shape[1]).split(max(1, WHOLE // (8 * lm.vocab_size))):
        own = log_probs(lm.readout, final[:, part])
        weights = own.exp().mean(0)
        read = (log_probs(readout, lens.map(h[:, part], layer)) for lens in lenses)
        found.append(torch.stack([aitchison_cosine(r[1] - r[0], own[1] - own[0], weights) for r in read]))
    return _numbers(torch.cat(found, 1))


def _counts(some: list[Run]) -> np.ndarray:
    units = np.concatenate([run.units[run.counted.numpy()] for run in some])
    return np.bincount(units, minlength=int(max(run.units.max() for run in some)) + 1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()


def _check(lm: LM, basis: Basis) -> None:
    if not is_of(basis.model, lm):
        raise LenscopeError(
            f"basis: extracted from {basis.model['model']}, not from {lm.name} or not these weights; extract one anew"
        )
