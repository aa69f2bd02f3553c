"""Lenses measured on held-out text, all of them and all layers in one pass; and translators on other layers' states.

Knows: which predictions count, which sums over text the measures are made of, what is resampled for intervals.
Does not know: how logits are reduced (measures), how text becomes rows (text), how results look.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.lenses.evaluation_results import MEASURES, Evaluation
from lenscope.lenses.lens import Lens
from lenscope.lenses.transfer_results import Transfer
from lenscope.mappings import mapping as mappings
from lenscope.measures.streamed import Reduced, average, averaged_at_once, reduce
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.statistics.intervals import RESAMPLES, jackknife, percentiles, times_drawn
from lenscope.text.predictions import Predictions, TextRows, predictions

BINS = 15
# groups of units whose summed distributions are kept apart, for the intervals of the bias
GROUPS = 10
# columns of the sums: these, then one per bin
SUMMED = ("cross_entropy", "kl", "agreement", "entropy")

# of a lens at a layer: the numbers of both, and themselves
_Cell = tuple[int, int, Lens, int]


class EvaluationInterrupted(KeyboardInterrupt):
    """A measurement was interrupted; `result` is that of the text read so far, if any was."""

    def __init__(self, result: Evaluation | Transfer | None) -> None:
        super().__init__()
        self.result = result


def evaluate(
    lm: LM,
    rows: TextRows,
    lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    layers: Sequence[int] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well each lens tells at each layer what the model will predict, and what comes next in the text.

    All predictions of a next token count except those made at position 0 (an attention sink) and at marks (special
    tokens between documents). For a Corpus, only its `counted` positions count.

    Means over predictions, in nats: cross-entropy against the text, KL(model ‖ lens) (Belrose et al. 2023, Eq. 9),
    entropy; the share whose top token is the model's. Bits per byte: cross-entropies in bits over the UTF-8 bytes of
    the tokens predicted. Calibration: the expected calibration error Σ_b |Σ_{i in b} (right_i - confidence_i)| / n
    of the top token against the text's next, in 15 bins of confidence of equal width (Guo et al. 2017, §2). Bias:
    KL(mean model ‖ mean lens), the means being over predictions (Belrose et al. 2023, Fig. 3); of few tokens it comes
    out too large, as the means are still noisy.

    Intervals are percentiles of 1,000 resamples, drawn with `seed`, of documents (corpus) or rows, taken further out
    the fewer of these there are (expanded percentiles: Hesterberg 2015, arXiv 1411.5279); with under about 10 they are
    still too narrow. Calibration, too, comes out too large of few tokens, and its interval with it. The interval of
    bias is that of a jackknife over ten groups of units (`statistics.intervals.jackknife`).

    Time is one forward pass and one unembedding per lens and layer; memory 80 bytes · lenses · layers · V, and at most
    256 MB of exponentials. An interrupt raises EvaluationInterrupted with what was measured. Raises LenscopeError for
    text without a prediction that counts, be it one row, layers out of range, lenses of other models, and states that
    are not numbers.

    Args:
        lm: the model that predicts.
        rows: texts, rows of token ids, or batches of a corpus (`corpus.batches(tokens=…)`).
        lenses: mappings f by name, as `Lens` takes them; by default the logit lens (f None).
        layers: which layers are read; by default all but the last, which is the model's own.
        seed: what resamples are drawn with.
        progress: called with how much of the text is read, and how much there is.
    """
    by_name = {name: Lens(lm, f, name=name) for name, f in ({"logit lens": None} if lenses is None else lenses).items()}
    if not by_name:
        raise LenscopeError("lenses: none given; name at least one, such as {'logit lens': None}")
    numbers = _layers_asked_for(lm, layers)
    cells = [
        (i, n, lens, at) for i, lens in enumerate(by_name.values()) for n, at in enumerate(numbers) if at in lens.layers
    ]
    for i, name in enumerate(by_name):
        if not any(cell[0] == i for cell in cells):
            raise LenscopeError(f"lens {name}: has no weights for any of the layers {', '.join(map(str, numbers))}")
    sums = _no_sums(len(cells) + 1)

    def result() -> Evaluation | None:
        return _evaluation(lm, by_name, numbers, cells, sums, seed) if sums.tokens else None

    try:
        for batch in predictions(lm, rows, (*numbers, lm.n_layers), progress):
            sums = sums.plus(batch, *_sums_of_batch(lm, batch, cells))
    except KeyboardInterrupt as stop:
        raise EvaluationInterrupted(result()) from stop
    return _evaluation(lm, by_name, numbers, cells, sums, seed)


def transfer(
    lm: LM,
    rows: TextRows,
    f: Callable[..., Any],
    layers: Sequence[int] | None = None,
    *,
    progress: Progress | None = None,
) -> Transfer:
    """Measure the translator of every layer of a lens on the states of every other (Belrose et al. 2023, §3, Fig. 7).

    Cost: layers² unembeddings per token, 2 · layers² · D · V operations (51 billion for SmolLM2-135M), so a few
    thousand tokens, or every few layers, must do. Raises as `evaluate` does, and for an f that does not depend on the
    layer.

    Args:
        lm: the model that predicts.
        rows: text, as in `evaluate`.
        f: the lens, called as f(h, layer, n_layers) with `layer` another one than that of h.
        layers: which layers are compared; by default those that f has weights for.
        progress: called with how much of the text is read, and how much there is.
    """
    lens = Lens(lm, f)
    if mappings.arguments_used(f) < 2:
        raise LenscopeError(f"f {lens.name}: is the same for all layers; give one with a map for each layer")
    own = lens.layers
    numbers = tuple(n for n in range(lm.n_layers) if n in own) if layers is None else _layers_asked_for(lm, layers)
    if set(numbers) - set(own):
        raise LenscopeError(
            f"layer {min(set(numbers) - set(own))}: f has maps for the layers {', '.join(map(str, own))}"
        )
    shape = (2, len(numbers), len(numbers))
    totals = np.zeros(shape), 0, 0, hashlib.sha256()

    def result() -> Transfer | None:
        sums, count, tokens, digest = totals
        if not tokens:
            return None
        about = {**provenance(lm), "lens": repr(f), "ids_sha256": digest.hexdigest()}
        both = sums / tokens
        return Transfer(lm.name, lm.n_layers, lens.name, numbers, count, tokens, both[0], both[1], about)

    try:
        for batch in predictions(lm, rows, (*numbers, lm.n_layers), progress):
            sums = np.zeros(shape)
            for i, layer in enumerate(numbers):
                h = torch.stack([lens.map(batch.h[:, n], layer) for n in range(len(numbers))])
                r = reduce(lm.runner.readout, lm.vocab_size, h, batch.h[:, -1], batch.targets, 1, False)
                sums[:, i] = [_to_float64(r.cross_entropy).sum(1), _to_float64(r.kl).sum(1)]
            _check(sums, lm)
            before, count, tokens, digest = totals
            totals = before + sums, count + batch.rows, tokens + len(batch.targets), batch.hashed(digest)
    except KeyboardInterrupt as stop:
        raise EvaluationInterrupted(result()) from stop
    matrices = result()
    assert matrices is not None
    return matrices


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the text so far: per unit, cell (the model first) and column; of distributions, per group and cell."""

    sums: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray | None
    means: dict[int, Tensor]
    tokens: int
    rows: int
    digest: Any

    def plus(self, batch: Predictions, columns: np.ndarray, means: dict[int, Tensor]) -> "_Sums":
        """With more predictions: `columns` (P, cells, K), and per group summed distributions (cells, V)."""
        units = max(len(self.counts), int(batch.units.max()) + 1)
        sums, counts = (_longer(x, units) for x in (self.sums, self.counts))
        np.add.at(sums, batch.units, columns)
        np.add.at(counts, batch.units, 1)
        sizes = None
        if self.sizes is not None and batch.sizes is not None:
            sizes = _longer(self.sizes, units)
            np.add.at(sizes, batch.units, batch.sizes)
        for group, mean in means.items():
            self.means[group] = self.means[group].add_(mean) if group in self.means else mean
        tokens, rows = self.tokens + len(batch.targets), self.rows + batch.rows
        return _Sums(sums, counts, sizes, self.means, tokens, rows, batch.hashed(self.digest))


def _no_sums(cells: int) -> _Sums:
    return _Sums(np.zeros((0, cells, len(SUMMED) + BINS)), np.zeros(0), np.zeros(0), {}, 0, 0, hashlib.sha256())


def _sums_of_batch(lm: LM, batch: Predictions, cells: list[_Cell]) -> tuple[np.ndarray, dict[int, Tensor]]:
    """What `_Sums.plus` takes of P predictions."""
    means: dict[int, Tensor] = {}
    columns = np.zeros((len(batch.targets), len(cells) + 1, len(SUMMED) + BINS))
    groups = torch.from_numpy(batch.units % GROUPS)
    for group in groups.unique().tolist():
        mine = (groups == group).nonzero()[:, 0]
        means[group] = torch.zeros(len(cells) + 1, lm.vocab_size, dtype=torch.float64)
        for part in mine.tensor_split(ceil(len(mine) / averaged_at_once(lm.runner.readout, lm.vocab_size))):
            states = (lens.map(batch.h[part, n], layer) for _, n, lens, layer in cells)
            own: Tensor | None = None
            read = average(lm.runner.readout, lm.vocab_size, batch.h[part, -1], states, batch.targets[part])
            for cell, (r, mean) in enumerate(read):
                own = r.top_ids if own is None else own
                columns[part.numpy(), cell] = _columns(r, own, lm)
                means[group][cell] += mean.cpu()
    return columns, means


def _columns(r: Reduced, top: Tensor, lm: LM) -> np.ndarray:
    """The columns of the sums of each of P predictions, (P, K)."""
    agrees = (r.top_ids == top)[..., 0]
    means = np.stack([_to_float64(v[0]) for v in (r.cross_entropy, r.kl, agrees, r.entropy)], 1)
    _check(means, lm)
    confidence = _to_float64(r.max_probability[0])
    at = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    bins = np.zeros((len(at), BINS))
    bins[np.arange(len(at)), at] = _to_float64(r.rank[0] == 0) - confidence
    return np.concatenate([means, bins], 1)


def _evaluation(
    lm: LM,
    lenses: Mapping[str, Lens],
    layers: tuple[int, ...],
    cells: list[_Cell],
    total: _Sums,
    seed: int,
) -> Evaluation:
    seen = total.counts > 0
    sums, counts = total.sums[seen], total.counts[seen]
    size = np.full(len(counts), np.nan) if total.sizes is None else total.sizes[seen]
    value = _measures(sums.sum(0), counts.sum(), size.sum())
    value["bias"], without = _bias(list(total.means.values()))
    drawn = _resampled(sums, counts, size, seed)
    cell_values = {name: _with_interval(v, drawn[name], len(counts)) for name, v in value.items() if name != "bias"}
    cell_values["bias"] = np.stack([value["bias"], *jackknife(value["bias"], without).clip(min=0)], -1)
    baseline = next((name for name, lens in lenses.items() if lens.f is None), None)
    at = [(i, n) for i, n, _, _ in cells]
    differences = {}
    if baseline is not None:
        first = {n: c for c, (i, n) in enumerate(at, 1) if i == list(lenses).index(baseline)}
        base = [0, *(first[n] for _, n in at)]
        apart = {name: _with_interval(value[name] - value[name][base], v - v[:, base], len(counts))
                 for name, v in drawn.items()}  # fmt: skip
        bias = value["bias"] - value["bias"][base]
        apart["bias"] = np.stack([bias, *jackknife(bias, without - without[:, base])], -1)
        differences = {name: _spread(v, at, len(lenses), len(layers)) for name, v in apart.items()}
    names = {name: "identity" if lens.f is None else repr(lens.f) for name, lens in lenses.items()}
    about = {"lenses": names, "ids_sha256": total.digest.hexdigest(), "seed": seed, "bins": BINS}
    return Evaluation(
        model=lm.name,
        n_layers=lm.n_layers,
        lenses=tuple(lenses),
        layers=layers,
        baseline=baseline,
        rows=total.rows,
        units=len(counts),
        tokens=total.tokens,
        bytes=None if total.sizes is None else int(size.sum()),
        values={name: _spread(v, at, len(lenses), len(layers)) for name, v in cell_values.items()},
        differences=differences,
        own={name: v[0] for name, v in cell_values.items()},
        provenance={**provenance(lm), **about, "resamples": RESAMPLES},
    )


def _measures(sums: np.ndarray, count: Any, size: Any) -> dict[str, np.ndarray]:
    """The measures of sums (…, cells, K) over `count` predictions of tokens of `size` bytes, but for the bias."""
    means = {name: sums[..., n] / count for n, name in enumerate(SUMMED)}
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = sums[..., 0] / (np.where(size > 0, size, np.nan) * log(2))
    measures = {**means, "bits_per_byte": bits, "calibration": np.abs(sums[..., len(SUMMED) :]).sum(-1) / count}
    return {name: measures[name] for name in MEASURES if name in measures}


def _bias(means: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """KL(mean model ‖ mean lens) of every cell from each group's summed distributions (cells, V), the model's first.

    Of all groups (cells,), and without each of the groups (groups, cells); of a single one nothing is left.
    """
    each: list[Any] = [
        slice(None),
        *([m for m in range(len(means)) if m != n] for n in range(len(means)) if len(means) > 1),
    ]
    model = torch.stack([mean[0] for mean in means])
    own = [model[groups].sum(0) for groups in each]
    divergences = np.zeros((len(each), len(means[0])))
    for cell in range(len(means[0])):
        lens = torch.stack([mean[cell] for mean in means])
        # summed anew each time: a difference would leave rounding where a lens has hardly any mass
        divergences[:, cell] = [_kl_of_sums(p, lens[groups].sum(0)) for p, groups in zip(own, each, strict=True)]
    return divergences[0], divergences[1:]


def _kl_of_sums(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) of summed distributions (V,), at least 0."""
    p, q, positive = p / p.sum(), q / q.sum(), p > 0
    q = q[positive].clamp_min(torch.finfo(torch.float64).tiny)
    return float((p[positive] * (p[positive] / q).log()).sum().clamp_min(0))


def _resampled(sums: np.ndarray, counts: np.ndarray, size: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The measures of resamples of the units, (resamples, cells) each, but for the bias."""
    units = len(counts)
    draws = times_drawn(units, RESAMPLES, np.random.default_rng(seed))
    drawn = (draws @ sums.reshape(units, -1)).reshape(RESAMPLES, *sums.shape[1:])
    return _measures(drawn, (draws @ counts)[:, None], (draws @ size)[:, None])


def _with_interval(value: np.ndarray, drawn: np.ndarray, units: int) -> np.ndarray:
    """Values (cells,) with the 95 % intervals of their resamples (resamples, cells) of so many units, (cells, 3)."""
    if units < 2:
        low = high = np.full_like(value, np.nan)
    else:
        low, high = percentiles(drawn, units)
    return np.stack([value, low, high], -1)


def _spread(values: np.ndarray, at: list[tuple[int, int]], lenses: int, layers: int) -> np.ndarray:
    """Values (1 + cells, 3) without the model's own as (lenses, layers, 3), NaN where there is no cell."""
    spread = np.full((lenses, layers, 3), np.nan)
    spread[tuple(np.array(at).T)] = values[1:]
    return spread


def _layers_asked_for(lm: LM, layers: Sequence[int] | None) -> tuple[int, ...]:
    wanted = range(lm.n_layers) if layers is None else layers
    return tuple(sorted(set(check_layers(wanted, lm.n_layers, lm.name))))


def _check(sums: np.ndarray, lm: LM) -> None:
    if np.isnan(sums).any():
        dtype = str(lm.dtype).removeprefix("torch.")
        raise LenscopeError(f"{lm.name}: a measure came out as NaN in {dtype}; load the model with dtype='float32'")


def _longer(array: np.ndarray, units: int) -> np.ndarray:
    """A copy with zeros for units that are new."""
    longer = np.zeros((units, *array.shape[1:]))
    longer[: len(array)] = array
    return longer


def _to_float64(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
