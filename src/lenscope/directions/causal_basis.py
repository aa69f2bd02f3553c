"""Causal basis extraction: the directions of a layer's states that matter most to a lens (Belrose et al. 2023, §4.1).

Knows: how the energy of a direction and its gradient are had from logits that are made once, how a basis is grown.
Does not know: what ablating a direction does to the model (influence.py), files of bases (basis.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.directions.basis import Basis
from lenscope.directions.energy import Energy, FactoredEnergy, Site, energies, wide_readout
from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens, lens_layers
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.models.readout import wide
from lenscope.models.same_model import model_identity
from lenscope.text.packing import counted_positions, mark_ids
from lenscope.text.predictions import TextRows, nothing_counts
from lenscope.text.row_states import row_states

# Columns of the vocabulary that directions are first sought on, and how many starts are tried for each.
COLUMNS, STARTS = 4096, 4
# Steps of L-BFGS on drawn columns and on the whole vocabulary; both end below this relative change of the energy.
SOUGHT, POLISHED, STILL = 40, 40, 1e-4


def causal_basis(
    lm: LM,
    rows: TextRows | HiddenStates,
    f: Callable[..., Any] | None = None,
    layers: Sequence[int] | None = None,
    *,
    k: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Basis:
    """The k directions of each layer that matter most to a lens, one after the other (Belrose et al. 2023, Eq. 10–11).

    v_i is the unit vector, orthogonal to the earlier ones, of the largest energy σ(v) = E_h KL(lens(h) ‖ lens(r(h, v)))
    with r(h, v) = h + v vᵀ (E h - h), the mean ablation; a local maximum, as any such search gives. `rows` are texts,
    rows of ids or batches of a corpus, or states that were read. Position 0 of a text, whose state is an attention
    sink, and marks do not count; of a corpus `counted` positions do. f None is the logit lens; `layers` default to all
    that f has maps for, but the last.

    Computed in float32 or wider, whatever the model's dtype. Directions are sought by L-BFGS on 4,096 drawn columns of
    the vocabulary from the best of many starts, then polished on all of it; `energies` are exact. Where the final norm
    scales and f is affine, as always but for soft caps and f of another kind, the ablated logits are a sum of logits
    made once and one product with the head, so that no product over states and vocabulary is made again: time per layer
    is about 60 k passes over (states × columns) and 10 k over (states × V), memory up to 1 GB of logits.
    Raises LenscopeError for too few states, k out of range, an f without gradients, a 16-bit model that is replayed.

    Args:
        lm: the model.
        rows: texts, rows of ids, batches of a corpus, or states that were read.
        f: the lens's mapping; None: the logit lens.
        layers: None: all that f has maps for, but the last.
        k: how many directions a layer gets.
        seed: fixes whatever is drawn.
        progress: called with how much is done and how much there is.
    """
    return _bases(lm, rows, f, layers, k, seed, progress, "causal", _extracted)


def principal_basis(
    lm: LM,
    rows: TextRows | HiddenStates,
    f: Callable[..., Any] | None = None,
    layers: Sequence[int] | None = None,
    *,
    k: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Basis:
    """The k principal components of each layer's states, ordered by their energy: a control of `causal_basis`.

    Args:
        lm: the model.
        rows: texts, rows of ids, batches of a corpus, or states that were read.
        f: the lens's mapping; None: the logit lens.
        layers: None: all that f has maps for, but the last.
        k: how many directions a layer gets.
        seed: fixes whatever is drawn.
        progress: called with how much is done and how much there is.
    """

    def components(energy: "Site") -> Tensor:
        return _components(energy.x, k)

    return _bases(lm, rows, f, layers, k, seed, progress, "principal", components)


def random_basis(
    lm: LM,
    rows: TextRows | HiddenStates,
    f: Callable[..., Any] | None = None,
    layers: Sequence[int] | None = None,
    *,
    k: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Basis:
    """k random orthonormal directions per layer, ordered by their energy: a control of `causal_basis`.

    Args:
        lm: the model.
        rows: texts, rows of ids, batches of a corpus, or states that were read.
        f: the lens's mapping; None: the logit lens.
        layers: None: all that f has maps for, but the last.
        k: how many directions a layer gets.
        seed: fixes whatever is drawn.
        progress: called with how much is done and how much there is.
    """

    def drawn(at: "Site") -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + at.layer)
        return torch.linalg.qr(torch.randn(at.h.shape[1], k, generator=generator, dtype=torch.float64))[0].T

    return _bases(lm, rows, f, layers, k, seed, progress, "random", drawn)


@torch.no_grad()
def promoted(lm: LM, basis: Basis, f: Callable[..., Any] | None = None, *, top: int = 5) -> np.ndarray:
    """The ids (L, k, 2, top) of tokens whose log-probability a lens raises most along each direction, and against it.

    The difference between the lens's distributions at the mean state plus and minus the states' spread along it.
    """
    lens, readout = Lens(lm, f), wide_readout(lm)
    ids = np.zeros((len(basis.layers), basis.k, 2, top), dtype=np.int64)
    for i, layer in enumerate(basis.layers):
        step = (basis.directions[i] * basis.spread[i, :, None]).to(_working_tensor(lm))
        mean = basis.mean[i].to(step)
        both = [readout.prepare(lens.map(mean + sign * step, layer)) for sign in (1, -1)]
        up, down = (wide(readout.columns(x, 0, lm.vocab_size)).log_softmax(-1) for x in both)
        for n, sign in enumerate((1, -1)):
            ids[i, :, n] = (sign * (up - down)).topk(top).indices.cpu().numpy()
    return ids


def _extracted(at: Site) -> Tensor:
    """The causal basis (k, D): sought on drawn columns, polished on all of them."""
    k, size = at.k, at.h.shape[1]
    coarse = at.energy(COLUMNS)
    starts = [_components(at.x, min(2 * k, size))]
    if isinstance(coarse, FactoredEnergy):
        starts.append(coarse.sensitive(min(2 * k, size)))
    starts += [torch.stack([coarse(v)[1] for v in pool]) for pool in starts]
    sought = _sought(coarse, torch.cat(starts), k)
    if at.lens.lm.vocab_size <= COLUMNS:
        return sought
    exact = at.energy(None)
    done = sought[:0]
    for v in sought:
        done = torch.cat([done, _climbed(exact, v, done, POLISHED)[0][None]])
    return done


def _sought(energy: Energy, pool: Tensor, k: int) -> Tensor:
    """Directions (k, D) one after the other, each the best of a few climbs from the best of a pool (M, D) of starts.

    What a start was worth bounds what it is worth now, nearly: only the seemingly best are measured again.
    """
    done = pool[:0]
    worth = torch.full((len(pool),), float("inf"), dtype=torch.float64)
    for _ in range(k):
        fresh = torch.zeros(len(pool), dtype=torch.bool)
        while not fresh[best := worth.topk(min(STARTS, len(pool))).indices].all():
            for n in best[~fresh[best]].tolist():
                v = _orthogonal_part(pool[n], done)
                worth[n] = -1.0 if v is None else energy(v)[0]
                fresh[n] = True
        climbs = [_climbed(energy, pool[n], done, SOUGHT) for n in best.tolist() if worth[n] > 0]
        climbs.sort(key=lambda c: -c[1])
        pool[best[: len(climbs)]] = torch.stack([v for v, _ in climbs])
        worth[best[: len(climbs)]] = torch.tensor([e for _, e in climbs], dtype=torch.float64)
        done = torch.cat([done, climbs[0][0][None]])
    return done


def _climbed(energy: Energy, start: Tensor, done: Tensor, steps: int) -> tuple[Tensor, float]:
    """A local maximum among the unit vectors orthogonal to `done`, by L-BFGS from `start`, and its energy."""
    first = _orthogonal_part(start, done)
    assert first is not None
    w = first.clone().requires_grad_()
    best, most, unit = first, -1.0, 1.0

    def value() -> float:
        nonlocal best, most, unit
        length = w.detach().norm()
        v = _orthogonal_part(w.detach(), done)
        assert v is not None
        worth, gradient = energy(v)
        if most < 0:
            unit = max(worth, 1e-30)
        if worth > most:
            best, most = v, worth
        pull = gradient - (gradient @ v) * v
        pull = pull - done.T @ (done @ pull)
        w.grad = -pull / (unit * length)
        return -worth / unit

    climb = torch.optim.LBFGS(
        [w], max_iter=steps, tolerance_grad=1e-7, tolerance_change=STILL, line_search_fn="strong_wolfe"
    )
    climb.step(value)
    return best, most


def _orthogonal_part(v: Tensor, done: Tensor) -> Tensor | None:
    """v without its part in the span of `done`, of unit length; None if next to nothing is left."""
    v = v / v.norm().clamp_min(1e-30)
    for _ in range(2):
        v = v - done.T @ (done @ v)
        length = v.norm()
        if length < 1e-3:
            return None
        v = v / length
    return v


def _components(x: Tensor, k: int) -> Tensor:
    """The k principal components (k, D) of centred states (N, D)."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    return vectors[:, values.argsort(descending=True)[:k]].T


def _working_tensor(lm: LM) -> Tensor:
    """An empty tensor of the dtype and device in which lenses are computed."""
    return wide(torch.empty(0, dtype=lm.dtype, device=lm.device))


def _bases(
    lm: LM,
    rows: TextRows | HiddenStates,
    f: Callable[..., Any] | None,
    layers: Sequence[int] | None,
    k: int,
    seed: int,
    progress: Progress | None,
    kind: str,
    choose: Callable[[Site], Tensor],
) -> Basis:
    lens, readout = Lens(lm, f), wide_readout(lm)
    if layers is None and isinstance(rows, HiddenStates):
        layers = [n for n in rows.layers if n in lens.layers]
    numbers = lens_layers(lens, layers)
    h = _gathered(lm, rows, numbers)
    if not 1 <= k <= lm.hidden_size:
        raise LenscopeError(f"k {k}: states of {lm.name} have 1–{lm.hidden_size} directions")
    if h.shape[1] < 2:
        raise LenscopeError(f"rows: {h.shape[1]} position counts; a mean ablation needs at least 2")
    parts = []
    for n, layer in enumerate(numbers):
        at = Site(lens, readout, layer, h[n], k, seed)
        v = choose(at).cpu().double()
        unordered = Basis(
            v[None].float(), torch.zeros(1, k), at.mean[None], torch.zeros(1, k), (layer,), kind, lens.name,
            model_identity(lm),
        )  # fmt: skip
        energy = energies(lens, readout, at.h, unordered.ablated(at.h, layer), layer).cpu().double().mean(-1)
        along = at.x.cpu().double() @ v.T
        sign = along.pow(3).mean(0).sign()
        order = energy.argsort(descending=True, stable=True)
        v = v * torch.where(sign == 0, 1.0, sign)[:, None]
        spread = along.square().mean(0).sqrt()
        parts.append((v[order].float(), energy[order].float(), at.mean.cpu().float(), spread[order].float()))
        if progress is not None:
            progress(n + 1, len(numbers))
    about = {**provenance(lm), "lens": repr(f), "k": k, "seed": seed, "tokens": h.shape[1]}
    v, energy, mean, spread = (torch.stack(p) for p in zip(*parts, strict=True))
    return Basis(v, energy, mean, spread, numbers, kind, lens.name, model_identity(lm), about)


def _gathered(lm: LM, rows: TextRows | HiddenStates, layers: tuple[int, ...]) -> Tensor:
    """The states that count, (L, N, D), in float32 or wider."""
    if isinstance(rows, HiddenStates):
        marks = mark_ids(lm)
        states = []
        for one in rows.split():
            counts = counted_positions(one.prompts[0].ids, marks)
            states.append(one[list(layers), :][:, torch.from_numpy(counts[list(one.positions[0])])])
        if not any(h.shape[1] for h in states):
            raise nothing_counts("position")
    else:
        states = [run.states[:-1][:, run.counted] for run in row_states(lm, rows, layers)]
    return torch.cat(states, 1).to(_working_tensor(lm))
