"""Features that probes tell attacks by: states, trajectories of several lenses, a prompt's length and likelihood.

Knows: what is measured of every position, how positions become one row, which sets of features (views) there are.
Does not know: which prompts are attacks, how a view is chosen.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.detection.prompt_features import LAYERS, MEASURES, measures_of_mapped
from lenscope.engine.shared_prefix_states import ReadPrefixes, StatesBehindPrefix, read_sharing_prefix
from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import token_logits, top_token
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers, evenly_spaced
from lenscope.models.progress import Progress

# how the values of a prompt's positions become numbers of the prompt
POSITION_POOLS = ("last", "mean", "max", "change", "rise")
LAST, MEAN, BOTH, TRAJECTORIES = "last state", "mean state", "states and trajectories", "trajectories"
LENGTH, PERPLEXITY = "length", "perplexity"
# the key of views that are not of one layer
ALL_LAYERS = -1


@final
@dataclass(frozen=True, eq=False, repr=False)
class ProbeFeatures(Brief):
    """N prompts in numbers: `views` maps a view to layers, and these to features (N, F); the key is -1 without a layer.

    "last state" and "mean state" are states (D wide) at each of the layers, in float32, the mean one over all positions
    but the first. "trajectory NAME" has the measures of the lens of that name, and "trajectories" those of all lenses;
    `columns` names both. "states and trajectories" has, for each layer, the last state and then the trajectories.
    "length" is the logarithm of the number of tokens, and "perplexity" the mean surprisal of a token in nats, 0 for a
    prompt of one token.
    """

    texts: tuple[str, ...]
    views: dict[str, dict[int, np.ndarray]]
    columns: dict[str, tuple[str, ...]]


@final
@dataclass(frozen=True, eq=False)
class ProbeReading:
    """What is read of prompts for some views: states at `state_layers`, each lens at its own layers.

    `lenses` maps names to lenses, and `lens_layers` the same names to the layers that are read through each.
    """

    lm: LM
    views: tuple[str, ...]
    state_layers: tuple[int, ...]
    lenses: dict[str, Lens] = field(default_factory=dict)
    lens_layers: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which the model's states are needed."""
        states = self.state_layers if {LAST, MEAN, BOTH} & {*self.views} else ()
        through = [n for name in self.through for n in self.lens_layers[name]]
        last = [self.lm.n_layers] if through or PERPLEXITY in self.views else []
        return tuple(sorted({*states, *through, *last})) or (0,)

    @property
    def through(self) -> dict[str, Lens]:
        """The lenses that a view needs."""
        of_all = {BOTH, TRAJECTORIES} & {*self.views}
        return {n: lens for n, lens in self.lenses.items() if of_all or f"trajectory {n}" in self.views}

    def batches(self, prompts: Sequence[PromptLike], known: ReadPrefixes | None = None) -> Iterator[StatesBehindPrefix]:
        """The states of prompts, each prompt in one batch; what they begin with is read once, or `known`."""
        return read_sharing_prefix(self.lm, [self.lm.prompt(p) for p in prompts], self.layers, known)

    def rows(self, batch: StatesBehindPrefix) -> dict[str, dict[int, np.ndarray]]:
        """The features of the prompts of a batch, by view and layer, (B, F) each."""
        out: dict[str, dict[int, np.ndarray]] = {}
        at = {n: i for i, n in enumerate(batch.layers)}
        if {LAST, BOTH} & {*self.views}:
            last = batch.last_states().float().cpu().numpy()
            out[LAST] = {n: last[:, at[n]] for n in self.state_layers}
        if MEAN in self.views:
            mean = batch.mean_states().float().cpu().numpy()
            out[MEAN] = {n: mean[:, at[n]] for n in self.state_layers}
        of_lenses = position_values(self.through, batch, self.lens_layers) if self.through else {}
        pooled = [np.stack([pool_positions(v) for v in values]) for values in of_lenses.values()]
        out.update({f"trajectory {n}": {ALL_LAYERS: x} for n, x in zip(self.through, pooled, strict=True)})
        if {TRAJECTORIES, BOTH} & {*self.views}:
            together = np.concatenate(pooled, 1)
            out[TRAJECTORIES] = {ALL_LAYERS: together}
            if BOTH in self.views:
                out[BOTH] = {n: np.concatenate([x, together.astype(np.float32)], 1) for n, x in out[LAST].items()}
        if LENGTH in self.views:
            out[LENGTH] = {ALL_LAYERS: np.log([[len(p)] for p in batch.prompts])}
        if PERPLEXITY in self.views:
            surprisals = [s[0, :-1] for s in position_surprisals(self.lm, batch)]
            out[PERPLEXITY] = {ALL_LAYERS: np.array([[s.mean() if len(s) else 0.0] for s in surprisals])}
        return {view: out[view] for view in self.views}

    def read(
        self, prompts: Sequence[PromptLike], known: ReadPrefixes | None = None, progress: Progress | None = None
    ) -> dict[str, dict[int, np.ndarray]]:
        """The features of prompts, by view and layer, (N, F) each."""
        out: dict[str, dict[int, np.ndarray]] = {}
        done = 0
        for batch in self.batches(prompts, known):
            for view, by_layer in self.rows(batch).items():
                for layer, x in by_layer.items():
                    whole = out.setdefault(view, {})
                    if layer not in whole:
                        whole[layer] = np.empty((len(prompts), x.shape[1]), x.dtype)
                    whole[layer][list(batch.numbers)] = x
            done += len(batch.numbers)
            if progress is not None:
                progress(done, len(prompts))
        return out


@torch.no_grad()
def measure_probe_features(
    lenses: Mapping[str, Lens],
    prompts: Sequence[PromptLike],
    layers: Sequence[int] | None = None,
    *,
    views: Sequence[str] | None = None,
    known: ReadPrefixes | None = None,
    progress: Progress | None = None,
) -> ProbeFeatures:
    """Measure features of prompts, in one run of the model for all lenses and views.

    Of every position, the first one apart, each lens gives at each layer what `Lens.trajectory` gives too: the entropy,
    the KL from the final distribution, ln p of the model's own top token, whether the lens has the same one (all nats);
    then the drift (the cosine distance between the mapped states of neighbouring layers that are read) and the
    prediction depth (the first of these layers from which on the lens's top token is the model's own, as a share of all
    layers). Of each, a row has the last position's value, the mean, the maximum, the change (the mean absolute
    difference from one position to the next) and the rise (the mean of the last quarter of positions less that of the
    first). A prompt's features are its own, whatever company it is in.

    Args:
        lenses: lenses of one model, by name.
        prompts: texts, ids or `Prompt`s.
        layers: where states are read, and lenses as far as they have them; none: ten, evenly spaced.
        views: which views are measured; none: all.
        known: prefixes that earlier calls have read.
        progress: is called with the prompts done and all there are.

    Raises LenscopeError for no lens, lenses of several models, no prompts, and views that there are not.
    """
    reading = probe_reading(lenses, layers, views)
    if not len(prompts):
        raise LenscopeError("prompts: there are none; give at least one")
    texts = tuple(reading.lm.prompt(p).text for p in prompts)
    columns = {f"trajectory {n}": trajectory_names(at, reading.lm.n_layers) for n, at in reading.lens_layers.items()}
    columns[TRAJECTORIES] = tuple(f"{name} {c}" for name in lenses for c in columns[f"trajectory {name}"])
    return ProbeFeatures(texts, reading.read(prompts, known, progress), columns)


def probe_reading(
    lenses: Mapping[str, Lens], layers: Sequence[int] | None = None, views: Sequence[str] | None = None
) -> ProbeReading:
    """What `measure_probe_features` reads; LenscopeError as it says."""
    if not lenses:
        raise LenscopeError("lenses: there are none; give at least one, such as {'logit lens': Lens(lm)}")
    lm = next(iter(lenses.values())).lm
    if any(lens.lm is not lm for lens in lenses.values()):
        raise LenscopeError("lenses: are of several models; give lenses of one")
    known = all_views(lenses)
    unknown = [v for v in views or () if v not in known]
    if unknown or (views is not None and not len(views)):
        raise LenscopeError(f"view {', '.join(map(repr, unknown)) or 'none'}: there are {', '.join(map(repr, known))}")
    if layers is None:
        has = {n for lens in lenses.values() for n in lens.layers} | {lm.n_layers}
        numbers: tuple[int, ...] = evenly_spaced(sorted(has), LAYERS)
    else:
        numbers = tuple(sorted({*check_layers(layers, lm.n_layers, lm.name)}))
    own = {name: tuple(n for n in numbers if n in lens.layers) for name, lens in lenses.items()}
    bare = [name for name, at in own.items() if not at]
    if bare:
        raise LenscopeError(f"lens {bare[0]}: maps none of the layers {', '.join(map(str, numbers))}; name its own")
    return ProbeReading(lm, tuple(known if views is None else views), numbers, dict(lenses), own)


def all_views(lenses: Iterable[str]) -> tuple[str, ...]:
    """The views that there are with lenses of these names."""
    return LAST, MEAN, *(f"trajectory {n}" for n in lenses), TRAJECTORIES, BOTH, LENGTH, PERPLEXITY


def pool_positions(values: np.ndarray) -> np.ndarray:
    """The features (M · 5,) of a prompt by its values at all positions (M, T), each value's `POSITION_POOLS` together.

    The first position counts only where it is the only one.
    """
    v = values[:, min(1, values.shape[1] - 1) :]
    quarter = max(1, v.shape[1] // 4)
    change = np.abs(np.diff(v, axis=1)).mean(1) if v.shape[1] > 1 else np.zeros(len(v))
    rise = v[:, -quarter:].mean(1) - v[:, :quarter].mean(1)
    return np.stack([v[:, -1], v.mean(1), v.max(1), change, rise], -1).reshape(-1)


def trajectory_names(layers: Sequence[int], n_layers: int) -> tuple[str, ...]:
    """The names of what `pool_positions` makes of `position_values`: "layer measure pool", "prediction depth pool"."""
    return tuple(f"{name} {pool}" for name in _value_names(layers, n_layers) for pool in POSITION_POOLS)


def _value_names(layers: Sequence[int], n_layers: int) -> list[str]:
    """The names of the values of a position; the last layer has no KL from itself, and agrees."""
    own = [f"{n} {m}" for n in layers for m in MEASURES if n != n_layers or m in ("entropy", "top_log_prob")]
    return [*own, *(f"{n} drift" for n in layers[1:]), "prediction depth"]


def position_values(
    lenses: Mapping[str, Lens], batch: StatesBehindPrefix, layers: Mapping[str, tuple[int, ...]]
) -> dict[str, list[np.ndarray]]:
    """What each lens says of every position of the prompts of a batch, (M, T) each, in the order of `trajectory_names`.

    The batch must have states at each lens's `layers` and at the model's last one, which all lenses of one model share:
    its distributions are read once.
    """
    own = {name: (lens, layers[name]) for name, lens in lenses.items()}
    last = batch.layers.index(next(iter(lenses.values())).lm.n_layers)

    def measured(h: Tensor, _: Tensor) -> np.ndarray:
        return _values_of_states([*own.values()], {n: h[i] for i, n in enumerate(batch.layers)}, h[last])

    together = batch.of_positions((*own.values(), "probe"), measured)
    counts = [len(_value_names(at, lens.lm.n_layers)) for lens, at in own.values()]
    split = [np.split(values, np.cumsum(counts)[:-1]) for values in together]
    return {name: [values[n] for values in split] for n, name in enumerate(own)}


def position_surprisals(lm: LM, batch: StatesBehindPrefix) -> list[np.ndarray]:
    """-ln p of the token behind every position, (1, T) for each prompt; at the last one, which has none, of token 0."""
    last = batch.layers.index(lm.n_layers)

    def measured(h: Tensor, following: Tensor) -> np.ndarray:
        targets = following.clamp_min(0).to(h.device)
        _, _, total = top_token(lm, h[last])
        logits = token_logits(lm.runner.readout, lm.vocab_size, h[last], targets[:, None])[:, 0]
        return np.asarray((total - logits)[None].double().cpu().numpy())

    return batch.of_positions("surprisal", measured)


@torch.no_grad()
def _values_of_states(
    lenses: Sequence[tuple[Lens, tuple[int, ...]]], h: Mapping[int, Tensor], final: Tensor
) -> np.ndarray:
    """The values (M, P), lens by lens, of states h (P, D) of layers by their numbers, whose last ones are `final`."""
    every = [torch.stack([lens.map(h[n], n) for n in layers]) for lens, layers in lenses]
    measures = measures_of_mapped(lenses[0][0].lm, torch.cat(every), final)
    rows, start = [], 0
    for (lens, layers), mapped in zip(lenses, every, strict=True):
        own = {name: v[start : start + len(layers)] for name, v in measures.items()}
        rows += _rows_of_lens(own, mapped, layers, lens.lm.n_layers)
        start += len(layers)
    return torch.stack([r.double() for r in rows]).cpu().numpy()


def _rows_of_lens(
    measures: Mapping[str, Tensor], mapped: Tensor, layers: tuple[int, ...], n_layers: int
) -> list[Tensor]:
    """The values (P,) of a lens in the order of `_value_names`, by its measures (L, P) and mapped states (L, P, D)."""
    drift = 1 - torch.cosine_similarity(mapped[1:].double(), mapped[:-1].double(), dim=-1)
    # from which of the layers on all agree; where the last one read does not, all layers are needed
    stays = measures["agreement"].bool().flip(0).long().cumprod(0).flip(0).bool()
    shares = torch.tensor(layers, device=mapped.device, dtype=torch.float64) / n_layers
    depth = torch.where(stays, shares[:, None], 1.0).amin(0)
    rows = []
    for name in _value_names(layers, n_layers):
        layer, measure = name.split()
        if measure == "depth":
            rows.append(depth)
        elif measure == "drift":
            rows.append(drift[layers.index(int(layer)) - 1])
        else:
            rows.append(measures[measure][layers.index(int(layer))])
    return rows
