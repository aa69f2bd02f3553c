"""Fitting mappings: closed-form ridge regression from one model's hidden states to another's, measured on other texts.

Knows: which positions of two tokenizations stand for the same text, the sums a regression needs, honest controls.
Does not know: how models run, what mappings are used for.
"""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil, isfinite

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.mappings.mapping import Affine
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.load_options import dtype_name
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.models.same_model import model_identity
from lenscope.text.beginnings import CHARACTERS, Beginnings, check_texts, part_texts

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# texts that are read together, and that a shuffled control's pairs are drawn from
TEXTS = 8
# held-out positions whose next token is predicted, and how many of them at once: logits of large vocabularies are large
PREDICTED, AT_ONCE = 512, 64


def fit_mapping(
    source_lm: LM,
    target_lm: LM,
    texts: Iterable[str],
    *,
    layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    ahead: int = 0,
    held_out: float = 0.1,
    ridges: Sequence[float] = RIDGES,
    length: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Affine:
    """Fit affine maps from the states of one model to those of another, or from layer to layer of one model.

    There is a map from each of `layers` to each of `target_layers`: least squares between two models' states, as in
    Ghandeharioun et al. 2024, §4.4, with an L2 penalty. With x in units of its standard deviation per dimension and
    both sides centred, it minimises mean ‖y - W x‖² + ridge ‖W‖². The states paired are those of tokens that end at the
    same character of a text (`aligned`). With one model as both it is the linear shortcut from layer to layer; with
    `ahead` N each state is paired with that N tokens on in the target's prompt (Future Lens, Pal et al. 2023).

    A fraction `held_out` of the texts is not fitted: half of it selects each pair's ridge, the other half gives what
    `report` has per pair: `r2` = 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖² with ȳ the fitted texts' mean, and for the target's last
    layer `precision_at_1`, how often unembed(ŷ) and unembed(y) have the same top token. Beside them the same for two
    controls: `_shuffled`, fitted with each x beside a y of another text, and `_copy`, ŷ = α x + b on the first min(D,
    D*) dimensions.

    Memory: 12 bytes (16 where both models are float64) · layers · target layers · D · D*, of which the mapping keeps 4,
    and the states of 8 texts. Raises LenscopeError for layers out of range, models without tokenizer, and too few texts
    or tokens.

    Args:
        source_lm: the model whose states are mapped.
        target_lm: the model whose states they are mapped to.
        texts: texts that both models read.
        layers: the source's layers; None: all.
        target_layers: the target's layers; None: all.
        ahead: how many tokens further on the target's state is.
        held_out: the fraction of the texts that is not fitted.
        ridges: the penalties that are tried.
        length: tokens of each text that are read at most.
        seed: fixes whatever is drawn.
        progress: called with how much is done and how much there is.
    """
    numbers = _sorted_layers(source_lm, layers), _sorted_layers(target_lm, target_layers)
    if not ridges or not all(isfinite(r) and r > 0 for r in ridges):
        raise LenscopeError(f"ridges {tuple(ridges)}: give positive numbers, such as {RIDGES}")
    train, select, test = _three_parts_of_pairs(
        _read_together(source_lm, target_lm, texts, length, ahead), held_out, seed
    )
    job = PairReader(source_lm, target_lm, numbers, torch.Generator().manual_seed(seed), progress)
    job.total = sum(len(_text_batches(part)) for part in (train, select, test))
    tokens = [sum(len(t.positions) for t in part) for part in (train, select, test)]
    if tokens[0] <= source_lm.hidden_size:
        raise LenscopeError(
            f"texts: have {tokens[0]} pairs of tokens to fit, and {source_lm.name} needs more than "
            f"{source_lm.hidden_size}, its hidden size; give more text"
        )
    regressions = _regressions(job, train)
    errors = torch.zeros(len(regressions), 2, len(ridges), len(numbers[1]), dtype=torch.float64, device=job.device)
    for x, y, _ in job.states(select):
        for s, regression in enumerate(regressions):
            errors[s] += regression.errors(x[:, s], y, ridges)
    best = errors.argmin(2).tolist()
    models = model_identity(source_lm), model_identity(target_lm)
    fitted, shuffled = (
        Affine(
            {
                (layer, target): weights
                for s, layer in enumerate(numbers[0])
                for target, weights in zip(
                    numbers[1], regressions[s].weights(which, [ridges[b] for b in best[s][which]]), strict=True
                )
            },
            *models,
        )
        for which in (0, 1)
    )
    measured = _measured_pairs(job, test, fitted, shuffled, regressions)
    pairs = [
        {
            "layer": layer,
            "target_layer": target,
            "ridge": ridges[best[s][0][t]],
            "ridge_shuffled": ridges[best[s][1][t]],
            **measured[s][t],
        }
        for s, layer in enumerate(numbers[0])
        for t, target in enumerate(numbers[1])
    ]
    about = dict(zip(("fitted", "selecting", "measured"), tokens, strict=True))
    report = {"tokens": about, "length": length, "ahead": ahead, "seed": seed, "ridges": list(ridges), "pairs": pairs}
    return replace(fitted, report=report)


@dataclass(frozen=True)
class AlignedText:
    """One text in the tokens of both models, and the pairs of positions that stand for the same text."""

    source: Prompt
    target: Prompt
    positions: list[tuple[int, int]]


def aligned(source: Prompt, target: Prompt, marks: Sequence[Collection[int]] = ((), ())) -> list[tuple[int, int]]:
    """Pairs of positions whose tokens end at the same character of one text; of several, the last token that does.

    Left out are special tokens (`marks` of each, where the text spells one out), and position 0 of either: its state is
    an attention sink, 150 times as long as others (SmolLM2-135M, layer 15). With it among what is fitted, R² at other
    positions fell from 0.64 to below 0 within that model (layer 5 → 15); to a model that puts a BOS token in front it
    made no difference.
    """
    ends = [
        {stop: i for i, (start, stop) in enumerate(p.spans) if stop > start and i > 0 and p.ids[i] not in known}
        for p, known in zip((source, target), marks, strict=True)
    ]
    return [(i, ends[1][stop]) for stop, i in ends[0].items() if stop in ends[1]]


def _read_together(
    source_lm: LM, target_lm: LM, texts: Iterable[str], length: int, ahead: int = 0
) -> list[AlignedText]:
    """The texts, each once, cut to `length` tokens of both models; those without common positions are left out."""
    check_texts(texts)
    if length < 2:
        raise LenscopeError(f"length {length}: give at least 2 tokens per text, such as 256")
    if ahead < 0:
        raise LenscopeError(f"ahead {ahead}: give 0 or a number of tokens to look ahead")
    for lm in (source_lm, target_lm):
        if lm.tokenizer is None:
            raise LenscopeError(f"{lm.name} was loaded without a tokenizer: the models' tokens are aligned by text")
    beginnings = [Beginnings(lm, length) for lm in (source_lm, target_lm)]
    marks = [b.encoder.spelling.special if b.encoder.spelling is not None else () for b in beginnings]
    cut = []
    for text in dict.fromkeys(text[: CHARACTERS * length] for text in texts if text):
        source, target = (b.of(text) for b in beginnings)
        positions = [(i, j + ahead) for i, j in aligned(source, target, marks) if _is_text(target, j + ahead, marks[1])]
        if positions:
            cut.append(AlignedText(source, target, positions))
    return cut


def _is_text(prompt: Prompt, position: int, marks: Collection[int]) -> bool:
    return position < len(prompt) and prompt.ids[position] not in marks


def _three_parts_of_pairs(
    texts: list[AlignedText], held_out: float, seed: int
) -> tuple[list[AlignedText], list[AlignedText], list[AlignedText]]:
    """Texts to fit, to select ridges with, and to measure with, at random."""
    if not 0 < held_out < 1:
        raise LenscopeError(f"held_out {held_out}: give a fraction of the texts between 0 and 1, such as 0.1")
    held = max(2, round(held_out * len(texts)))
    if len(texts) < held + 2:
        raise LenscopeError(
            f"texts: {len(texts)} of them differ and have tokens in common, and {held} are to be held out; give "
            "more, or a smaller held_out"
        )
    return part_texts(texts, held, random.Random(seed))


def _sorted_layers(lm: LM, layers: Sequence[int] | None) -> tuple[int, ...]:
    wanted = range(lm.n_layers + 1) if layers is None else layers
    return tuple(sorted(set(check_layers(wanted, lm.n_layers, lm.name))))


def _text_batches(texts: list[AlignedText]) -> list[list[AlignedText]]:
    count = ceil(len(texts) / TEXTS)
    return [texts[n::count] for n in range(count)]


class PairReader:
    """The two models, the layers, and how far the work is."""

    def __init__(
        self,
        source: LM,
        target: LM,
        layers: tuple[tuple[int, ...], tuple[int, ...]],
        draw: torch.Generator,
        progress: Progress | None,
    ) -> None:
        self.models = source, target
        self.layers = layers
        self.draw = draw
        self.progress = progress
        self.done = self.total = 0
        self.dtype = torch.float64 if {source.dtype, target.dtype} == {torch.float64} else torch.float32
        # Apple's devices have no float64
        self.device = torch.device("cpu") if source.device.type == "mps" else source.device

    def states(self, texts: list[AlignedText]) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Per batch of texts the states (n, S, D) and (n, T, D*) of its n pairs of positions, and n of each text."""
        for batch in _text_batches(texts):
            counts = [len(t.positions) for t in batch]
            row = torch.tensor([b for b, n in enumerate(counts) for _ in range(n)])
            columns = torch.tensor([p for t in batch for p in t.positions]).T
            pair = []
            for side, lm in enumerate(self.models):
                prompts = [t.target if side else t.source for t in batch]
                read = lm.read(prompts, self.layers[side]).tensor[row, :, columns[side]]
                if not torch.isfinite(read).all():
                    dtype = dtype_name(lm.dtype)
                    raise LenscopeError(
                        f"{lm.name}: a state holds NaN or infinity in {dtype}; load the model with dtype='float32'"
                    )
                pair.append(read.to(self.device, self.dtype))
            yield pair[0], pair[1], counts
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)

    def elsewhere(self, counts: list[int]) -> Tensor:
        """A permutation of a batch's n positions that gives each one of another text.

        Where one text has more than half of them that cannot be: some then get another position of their own.
        """
        starts = [sum(counts[:n]) for n in range(len(counts))]
        mixed = [a + torch.randperm(n, generator=self.draw) for a, n in zip(starts, counts, strict=True)]
        return torch.cat(mixed).roll(sum(counts) // 2).to(self.device)


class PairSums:
    """What a regression needs of the states, summed in float64 over positions, from a first batch's mean.

    `wrong` is `xy` with each x beside a y of another text, all else being equal; a control does with float32.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        (_, s, d), (_, t, e) = x.shape, y.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=x.device)
        self.n = 0
        self.x0, self.y0 = x.mean(0), y.mean(0)
        self.x, self.y, self.xx = zeros((s, d)), zeros((t, e)), zeros((s, d, d))
        self.xy = [zeros((d, t * e)) for _ in range(s)]
        self.wrong = [zeros((d, t * e), dtype=x.dtype) for _ in range(s)]

    def add(self, x: Tensor, y: Tensor, elsewhere: Tensor) -> None:
        """Add n positions: x (n, S, D), y (n, T, D*), and a permutation of them."""
        x, y = x - self.x0, y - self.y0
        self.n += len(x)
        self.x += x.sum(0, dtype=torch.float64)
        self.y += y.sum(0, dtype=torch.float64)
        y = y.flatten(1)
        other = y[elsewhere]
        for s in range(x.shape[1]):
            own = x[:, s]
            self.xx[s] += own.double().T @ own.double()
            self.xy[s] += own.T @ y
            self.wrong[s].addmm_(own.T, other)


class RidgeRegression:
    """Ridge regressions from one source layer to all target layers, for every ridge at once, and their controls.

    In the eigenvectors of x's correlations a ridge only divides: ŷ = ȳ + (z / (eigenvalues + ridge)) r. `r` is that of
    the true pairs and of the wrong ones. Takes the sums' cross products away, as they are as large as its own.
    """

    def __init__(self, sums: PairSums, s: int) -> None:
        mean, y_mean = sums.x[s] / sums.n, sums.y / sums.n
        cov = sums.xx[s] / sums.n - mean.outer(mean)
        std = cov.diagonal().clamp_min(0).sqrt()
        # a dimension that hardly moves would be divided by rounding errors
        std = std.clamp_min(max(1e-6 * float(std.max()), 1e-30))
        self.eigenvalues, vectors = torch.linalg.eigh(cov / std / std[:, None])
        self.basis = vectors / std[:, None]
        self.mean, self.y_mean = sums.x0[s].double() + mean, sums.y0.double() + y_mean
        both = [crossed.pop().double() / sums.n - mean.outer(y_mean.flatten()) for crossed in (sums.xy, sums.wrong)]
        self.r = [(self.basis.T @ c).to(sums.x0.dtype) for c in both]
        shared = min(len(mean), y_mean.shape[1])
        moved = both[0].view(len(mean), *y_mean.shape)[:shared, :, :shared].diagonal(dim1=0, dim2=2)
        self.copy = moved.sum(1) / cov.diagonal()[:shared].sum().clamp_min(1e-30)

    def errors(self, x: Tensor, y: Tensor, ridges: Sequence[float]) -> Tensor:
        """Σ‖y - ŷ‖² of x (n, D) and y (n, T, D*), for true and wrong pairs, per ridge and target layer: (2, R, T)."""
        z, y = (x - self.mean.to(x)) @ self.basis.to(x), y - self.y_mean.to(y)
        errors = [
            (z * self._shrink(ridge).to(z) @ r).view_as(y).sub_(y).square_().sum((0, 2), dtype=torch.float64)
            for r in self.r
            for ridge in ridges
        ]
        return torch.stack(errors).view(2, len(ridges), -1)

    def weights(self, which: int, ridges: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """A (D*, D) and b (D*) per target layer, from the true pairs (0) or the wrong ones (1); frees their `r`."""
        r, self.r[which] = self.r[which], torch.empty(0)
        weights = []
        for y_mean, part, ridge in zip(self.y_mean, r.split(self.y_mean.shape[1], 1), ridges, strict=True):
            a = (self.basis * self._shrink(ridge) @ part.double()).T.contiguous()
            weights.append((a.float(), (y_mean - a @ self.mean).float()))
        return weights

    def copies(self, h: Tensor, t: int) -> Tensor:
        """The control that copies dimensions: ȳ + α (h - x̄) in the first min(D, D*) of them, ȳ in the others."""
        out = self.y_mean[t].to(h).expand(*h.shape[:-1], -1).clone()
        shared = min(h.shape[-1], out.shape[-1])
        out[..., :shared] += self.copy[t].to(h) * (h - self.mean.to(h))[..., :shared]
        return out

    def _shrink(self, ridge: float) -> Tensor:
        return 1 / (self.eigenvalues.clamp_min(0) + ridge)


def _regressions(job: PairReader, train: list[AlignedText]) -> list[RidgeRegression]:
    sums = None
    for x, y, counts in job.states(train):
        sums = sums or PairSums(x, y)
        sums.add(x, y, job.elsewhere(counts))
    assert sums is not None
    return [RidgeRegression(sums, s) for s in reversed(range(len(sums.x)))][::-1]


def _measured_pairs(
    job: PairReader, test: list[AlignedText], fitted: Affine, shuffled: Affine, regressions: list[RidgeRegression]
) -> list[list[dict[str, float | None]]]:
    """Per pair R² and, for the target's last layer, precision@1, of the mapping and its two controls."""
    controls = ("", "_shuffled", "_copy")
    shape = (len(regressions), len(job.layers[1]), len(controls))
    errors = torch.zeros(shape, dtype=torch.float64)
    hits = torch.zeros(shape, dtype=torch.float64)
    spread = torch.zeros(shape[1], dtype=torch.float64)
    predicted, each = 0, ceil(PREDICTED / len(_text_batches(test)))
    last = job.models[1].n_layers
    for x, y, _ in job.states(test):
        spread += (y - regressions[0].y_mean.to(y)).square().sum((0, 2), dtype=torch.float64).cpu()
        drawn = torch.randperm(len(x), generator=job.draw)[:each].to(job.device)
        predicted += len(drawn)
        own = _top(job.models[1], y[drawn, -1]) if job.layers[1][-1] == last else None
        for s, layer in enumerate(job.layers[0]):
            for t, target in enumerate(job.layers[1]):
                h = x[:, s]
                guesses = fitted(h, layer, target), shuffled(h, layer, target), regressions[s].copies(h, t)
                for n, guess in enumerate(guesses):
                    errors[s, t, n] += float((y[:, t] - guess).square().sum(dtype=torch.float64))
                    if own is not None and target == last:
                        hits[s, t, n] += int((_top(job.models[1], guess[drawn]) == own).sum())
    r2, precision = 1 - errors / spread[:, None], hits / predicted
    rows: list[list[dict[str, float | None]]] = [[{} for _ in range(shape[1])] for _ in range(shape[0])]
    for s, t, n in product(*map(range, shape)):
        # a target state that never changes has nothing to explain
        rows[s][t][f"r2{controls[n]}"] = float(r2[s, t, n]) if spread[t] else None
        if job.layers[1][t] == last:
            rows[s][t][f"precision_at_1{controls[n]}"] = float(precision[s, t, n])
    return rows


def _top(lm: LM, h: Tensor) -> Tensor:
    """The most probable token (n,) of each of the last layer's states (n, D)."""
    return torch.cat([lm.unembed(part).argmax(-1) for part in h.split(AT_ONCE)])
