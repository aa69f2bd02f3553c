"""Features of prompts, most of them of trajectories: numbers by which odd prompts stand out from normal ones.

Knows: which measures of which layers and positions make a row of features; how normal prompts are disturbed.
Does not know: what is odd (outliers.py), where prompts come from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.engine.shared_prefix_states import ReadPrefixes, StatesBehindPrefix, read_sharing_prefix
from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import reduce, token_logits
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers, evenly_spaced
from lenscope.models.progress import Progress

# of a position: what the lens says of it
MEASURES = ("entropy", "kl", "top_log_prob", "agreement")
# of a prompt: where, or pooled how
POOLS = ("last", "mean", "max")
# layers that are read where none are named
LAYERS = 10
# words of another prompt that are put into one
INSERTED = (4, 24)


@final
@dataclass(frozen=True, eq=False, repr=False)
class PromptFeatures(Brief):
    """N prompts in numbers: `trajectory` (N, F) with its `columns`, `states` (N, L, D) the mean states of `layers`."""

    layers: tuple[int, ...]
    columns: tuple[str, ...]
    trajectory: np.ndarray
    states: np.ndarray

    def to_dataframe(self) -> Any:
        """A row for each prompt, a column for each feature of its trajectory; states are not in it.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        return columns_frame(dict(zip(self.columns, self.trajectory.T, strict=True)))


def answer_features(log_probs: np.ndarray) -> np.ndarray:
    """Trajectories of answers, log_probs (N, L, C) in nats → (N, L · C); of two answers their difference (N, L).

    As in Belrose et al. 2023, §5.2. Raises LenscopeError for NaN: prompts must have equally many answers.
    """
    if np.isnan(log_probs).any():
        raise LenscopeError("answers: some prompts have fewer than others; give all prompts as many")
    if log_probs.shape[-1] == 2:
        return np.asarray(log_probs[..., 0] - log_probs[..., 1])
    return log_probs.reshape(len(log_probs), -1)


def sorted_answer_features(log_probs: np.ndarray) -> np.ndarray:
    """As `answer_features`, whatever order the answers are in: at every layer from the likeliest down, (N, L · C).

    For questions whose choices stand in an order without meaning, where the place of an answer is noise.
    """
    if np.isnan(log_probs).any():
        raise LenscopeError("answers: some prompts have fewer than others; give all prompts as many")
    return -np.sort(-log_probs, -1).reshape(len(log_probs), -1)


def spaced_layers(lens: Lens, count: int = LAYERS) -> tuple[int, ...]:
    """Up to `count` of the layers that a lens has, evenly spaced, the last one among them."""
    return evenly_spaced(sorted({*lens.layers, lens.lm.n_layers}), count)


def trajectory_columns(layers: Sequence[int], n_layers: int) -> tuple[str, ...]:
    """The names of the features of free-form prompts: "layer measure pool".

    The last layer has no KL from itself, and agrees.
    """
    names = [(n, m) for n in layers for m in MEASURES if n != n_layers or m in ("entropy", "top_log_prob")]
    return tuple(f"{n} {m} {pool}" for n, m in names for pool in POOLS)


@torch.no_grad()
def measure_prompts(
    lens: Lens,
    prompts: Sequence[PromptLike],
    layers: Sequence[int] | None = None,
    *,
    known: ReadPrefixes | None = None,
    progress: Progress | None = None,
) -> PromptFeatures:
    """Features of free-form prompts, of any length and without answers, and their mean states, in one pass.

    At every layer (by default ten, evenly spaced) and position: entropy, KL from the final distribution, ln p of the
    model's own final top token, and whether it is the lens's top token too; of each the last position's, the mean and
    the maximum. The first position, which has seen nothing, counts only where it is the only one. What prompts have in
    common at their beginning is read and measured once, and not at all where it is `known` from earlier calls.
    """
    lm = lens.lm
    numbers = tuple(sorted({*check_layers(spaced_layers(lens) if layers is None else layers, lm.n_layers, lm.name)}))
    many = [lm.prompt(p) for p in prompts]
    columns = trajectory_columns(numbers, lm.n_layers)
    trajectory = np.empty((len(many), len(columns)))
    means = np.empty((len(many), len(numbers), lm.hidden_size))
    done = 0
    for batch in read_sharing_prefix(lm, many, (*numbers, lm.n_layers), known):
        means[list(batch.numbers)] = batch.mean_states()[:, : len(numbers)].cpu().numpy()
        for i, values in zip(batch.numbers, position_measures(lens, batch, numbers), strict=True):
            trajectory[i] = pooled_measures(values)
        done += len(batch.numbers)
        if progress is not None:
            progress(done, len(many))
    return PromptFeatures(numbers, columns, trajectory, means)


def position_measures(lens: Lens, batch: StatesBehindPrefix, layers: tuple[int, ...]) -> list[np.ndarray]:
    """The measures of every position of the prompts of a batch, (M, T) each, in the order of `trajectory_columns`.

    The batch must have states at `layers` and at the last layer of the model.
    """
    at = [batch.layers.index(n) for n in layers]
    last = batch.layers.index(lens.lm.n_layers)

    def measured(h: Tensor, _: Tensor) -> np.ndarray:
        return _measured_states(lens, h[at], h[last], layers)

    return batch.of_positions((lens, layers), measured)


def pooled_measures(values: np.ndarray) -> np.ndarray:
    """Features (F,) of a prompt by its measures at all positions (M, T), without the first where there are others."""
    counted = values[:, min(1, values.shape[1] - 1) :]
    return np.stack([counted[:, -1], counted.mean(-1), counted.max(-1)], -1).reshape(-1)


def _measured_states(lens: Lens, h: Tensor, final: Tensor, layers: tuple[int, ...]) -> np.ndarray:
    """The measures of states h (L, P, D) whose last ones are `final` (P, D), in the order of the columns: (M, P)."""
    lm = lens.lm
    mapped = torch.stack([lens.map(x, n) for x, n in zip(h, layers, strict=True)])
    values = measures_of_mapped(lm, mapped, final)
    names = [name.split()[:2] for name in trajectory_columns(layers, lm.n_layers)[:: len(POOLS)]]
    return torch.stack([values[m][layers.index(int(n))] for n, m in names]).double().cpu().numpy()


def measures_of_mapped(lm: LM, mapped: Tensor, final: Tensor) -> dict[str, Tensor]:
    """The `MEASURES`, (L, P) each, of mapped states (L, P, D), where the model itself ends in `final` (P, D).

    The vocabulary is read once for the final states and once for those mapped states that are not these themselves, as
    a lens's at the last layer are: on small models that is nearly all the time that features take.
    """
    readout, size = lm.runner.readout, lm.vocab_size
    places = [len(mapped) if torch.equal(x, final) else n for n, x in enumerate(mapped)]
    read = sorted({*places, len(mapped)})
    h = torch.cat([mapped, final[None]])[read]
    r = reduce(readout, size, h, final, None, 1, True)
    own = r.top_ids[..., 0]
    top = own[-1].expand_as(own)
    # ln p of the model's top token is that of the lens's own and the difference of their logits
    of_top, of_own = token_logits(readout, size, h, torch.stack([top, own], -1)).unbind(-1)
    at = [read.index(n) for n in places]
    values = {
        "entropy": r.entropy,
        "kl": r.kl,
        "top_log_prob": r.top_log_probs[..., 0] + (of_top - of_own),
        "agreement": (own == top).to(r.kl),
    }
    return {name: v[at] for name, v in values.items()}


def mean_states(
    lm: LM, prompts: Sequence[PromptLike], layers: Sequence[int], *, known: ReadPrefixes | None = None
) -> np.ndarray:
    """The mean states (N, L, D) of prompts over all positions but the first, as `measure_prompts` gives them too."""
    many = [lm.prompt(p) for p in prompts]
    numbers = check_layers(layers, lm.n_layers, lm.name)
    out = np.empty((len(many), len(numbers), lm.hidden_size))
    for batch in read_sharing_prefix(lm, many, numbers, known):
        at = [batch.layers.index(n) for n in numbers]
        out[list(batch.numbers)] = batch.mean_states()[:, at].cpu().numpy()
    return out


def disturb_prompts(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Each text as no normal text is: by turns its words shuffled, or some words of another one put into it.

    Anomalies made of normal data alone, by which detectors are chosen. Changed is the last paragraph, without a label
    that it ends with, such as "Answer:"; words are what blanks part. Raises LenscopeError for fewer than two texts.
    """
    if len(texts) < 2:
        raise LenscopeError(f"{len(texts)} text: give at least two, of which one can be put into the other")
    parts = [_parted(t) for t in texts]
    prompts = []
    for n, (before, body, label) in enumerate(parts):
        random = np.random.default_rng([seed, n])
        words = body.split(" ")
        if n % 2 and len(words) > 3:
            words = [words[i] for i in random.permutation(len(words)).tolist()]
        else:
            other = (n + 1 + int(random.integers(len(texts) - 1))) % len(texts)
            given = parts[other][1].split(" ")
            count = min(int(random.integers(*INSERTED)), len(given))
            start, at = int(random.integers(len(given) - count + 1)), int(random.integers(len(words) + 1))
            words[at:at] = given[start : start + count]
        prompts.append(before + " ".join(words) + label)
    return prompts


def _parted(text: str) -> tuple[str, str, str]:
    """What stands before the last paragraph, the paragraph, the label at its end."""
    start = text.rstrip().rfind("\n\n") + 2
    start = start if start > 1 else 0
    label = re.search(r"\n[^\n]{0,30}:\s*$", text[start:])
    stop = len(text) if label is None else start + label.start()
    return text[:start], text[start:stop], text[stop:]
