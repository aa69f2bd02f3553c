"""A model explains another's states (Ghandeharioun et al. 2024, §4.4): through fitted maps, with and without context.

Knows: which models, layers and target prompts, what a patched state is compared with, statistics, the reading.
Does not know: how maps are fitted (fitting/model_to_model.py), how tokens of two vocabularies are compared
(next_token_readings.py).
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Heatmap
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.patchscopes_paper.cross_model_descriptions import DescribedEntities, descriptions
from lenscope.experiments.patchscopes_paper.next_token_readings import (
    FEWEST,
    PRECISION,
    SAMPLED,
    SURPRISAL,
    TOKENS,
    ReadingScores,
    Vocabularies,
    draw_places,
    fit_map,
    held_out,
    patched,
    random_instead,
    score_readings,
    top_tokens,
    training,
    with_other_answers,
)
from lenscope.experiments.report import Report, ReportTable, prose
from lenscope.experiments.setting import Setting
from lenscope.mappings import mapping as mappings
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.models.layers import evenly_spaced
from lenscope.models.loading import BUILT_IN, load
from lenscope.models.provenance import provenance
from lenscope.patchscopes.methods import token_identity
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.selection import Selection, select
from lenscope.statistics.significance import holm, sign_flips

CLAIM = (
    "Ghandeharioun et al. 2024, §4.4, Figs 3, 10, 11: through affine maps per pair of layers Vicuna-13B reads the next "
    "token from states of Vicuna-7B, and Pythia-12B from those of Pythia-6.9B, with a precision@1 of up to .7 and .8, "
    "best at target layer 0 and along the diagonal, and a surprisal of 1.1–8 nats, the target prompt being the "
    "source's own context. Vicuna-13B describes entities from the 7B model's states as well as that model or better; "
    "Pythia-12B does not."
)
OTHER = "gemma3-270m"
# documents
DOCUMENTS = {"quick": 32, "full": 64}
# source layers, target layers
LAYERS = {"quick": (5, 4), "full": (7, 5)}
# entities that are described
ENTITIES = {"quick": 16, "full": 40}
# what is patched
MAPPED, SHUFFLED, RANDOM, NOTHING = "mapped state", "another document's state", "random vector", "no patch"
CONTROLS = (SHUFFLED, RANDOM, NOTHING)
# where it is patched
CONTEXT, IDENTITY, ALONE = "the source's context", "token identity", '"?" alone'
WHERE = (CONTEXT, IDENTITY, ALONE)


@final
@dataclass(frozen=True, eq=False)
class Way:
    """One direction: a model's states read by another, at source layers S and target layers T.

    `scores` (N, S · T), or (N, 1) without a patch, by target prompt and what is patched; `r2` (S, T) of the map;
    `shared` is the share of places whose own prediction is one token of both models.
    """

    name: str
    layers: tuple[int, ...]
    targets: tuple[int, ...]
    r2: np.ndarray
    shared: float
    scores: Mapping[tuple[str, str], ReadingScores]
    described: DescribedEntities
    seed: int = 0

    def cell(self, n: int) -> str:
        """A cell's layers."""
        return f"{self.layers[n // len(self.targets)]} → {self.targets[n % len(self.targets)]}"

    @cached_property
    def best(self) -> dict[tuple[str, str, str], Selection]:
        """The scores by cell, of each target prompt, what is patched and measure, higher being better."""
        return {
            (*key, measure): select(s.precision if measure == PRECISION else -s.surprisal, seed=self.seed)
            for key, s in self.scores.items()
            for measure in (PRECISION, SURPRISAL)
        }

    def grid(self, where: str, what: str, measure: str) -> np.ndarray:
        """The mean over places of every cell (S, T)."""
        values = self.scores[where, what][measure == SURPRISAL].mean(0)
        return np.asarray(values.reshape(len(self.layers), len(self.targets)))


def _run_cross_model(setting: Setting) -> Report:
    """Reads one place of each held-out document by another model, in three target prompts, with controls in each."""
    lm = setting.lm
    target = _explainer(setting)
    pairs = [(lm, target)] if target is lm else [(lm, target), (target, lm)]
    texts = held_out(setting, setting.choose(**DOCUMENTS))
    # a model's own samples take long to write, and both directions fit on the same
    train = cache(partial(training, setting))
    ways = [_way(setting, *models, texts, train) for models in pairs]
    tests = {m: _tests_of_ways(ways, m, setting.seed) for m in (PRECISION, SURPRISAL)}
    described_by = _tested_descriptions(ways, setting.seed)
    tables: dict[str, ReportTable] = {m: _summary_of_ways(ways, m) for m in (PRECISION, SURPRISAL)}
    tables |= {f"mapped state beside controls, {m}": rows for m, rows in tests.items()}
    tables |= {
        "entity descriptions, RougeL": [{"direction": w.name, **row} for w in ways for row in w.described.rows()],
        "descriptions beside controls, RougeL": described_by,
        "descriptions": [{"direction": w.name, **row} for w in ways for row in w.described.examples()],
        "cells": [row for w in ways for row in _cells(w)],
    }
    alone = "" if target is not lm else (
        f"No other model was at hand ({OTHER} is not installed, or is the source): {lm.name} reads itself, which says "
        "nothing of a more capable model. "
    )  # fmt: skip
    return Report(
        experiment="cross-model",
        model=lm.name if target is lm else f"{lm.name} and {target.name}",
        claim=CLAIM,
        reading=alone + "\n".join(_cross_model_reading(w, tests, described_by) for w in ways),
        tables=tables,
        figures=tuple(_cross_model_figure(w, n) for n, w in enumerate(ways)),
        settings=setting.settings(
            target=target.name,
            places={
                w.name: f"{len(w.scores[CONTEXT, NOTHING].precision)}, {w.shared:.0%} of those drawn" for w in ways
            },
            layers={w.name: [list(w.layers), list(w.targets)] for w in ways},
            map_tokens=_tokens(setting),
            tokens_compared="a reading counts as the longest token of the source model that its text begins with",
            map_r2={w.name: f"{np.nanmin(w.r2):.2f}–{np.nanmax(w.r2):.2f}" for w in ways},
        ),
        provenance={**setting.provenance(), "target": provenance(target)},
    )


def _explainer(setting: Setting) -> LM:
    """The other model that was named, else the built-in one if it is installed, else the model itself."""
    if setting.target_lm is not None:
        return setting.target_lm
    try:
        for part in BUILT_IN[OTHER].parts:
            importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return setting.lm
    return setting.lm if setting.lm.name == OTHER else load(OTHER)


def _tokens(setting: Setting) -> int:
    return setting.choose(**(TOKENS if setting.text else SAMPLED))


# -- one direction


def _way(setting: Setting, source: LM, target: LM, texts: Sequence[str], train: Callable[[int], list[str]]) -> Way:
    name = f"{source.name} → {target.name}"
    counts = setting.choose(**LAYERS)
    layers = evenly_spaced(list(range(source.n_layers + 1)), counts[0])
    # the last layer is the head alone, and slow to fit for large vocabularies
    targets = evenly_spaced(list(range(target.n_layers + setting.choose(quick=0, full=1))), counts[1])
    key = "there" if source is setting.lm else "back"
    f, r2 = fit_map(setting, key, (source, target), (layers, targets), _tokens(setting), train)
    prompts, contexts = draw_places(source, target, texts, setting.seed)
    states = source.read(prompts, sorted({*layers, source.n_layers}), -1)
    own = top_tokens(source, states[source.n_layers, -1])
    known = np.flatnonzero(Vocabularies(source, target).whole(own))
    if len(known) < FEWEST:
        raise LenscopeError(
            f"{name}: {len(known)} of {len(own)} predictions are tokens of both models; give more text, {FEWEST} are "
            "the least"
        )
    states = _of_prompts(states, known)
    contexts = [contexts[n] for n in known]
    final, own = states[source.n_layers, -1], own[known]

    def compute() -> dict[tuple[str, str], np.ndarray]:
        top: dict[tuple[str, str], np.ndarray] = {}
        mapped, exchanged = _mapped(f, states, layers, targets), with_other_answers(own.tolist(), setting.seed)
        at_random = _mapped(random_instead(f, setting.seed), states, layers, targets)
        prompts = _target_prompts(target, contexts)
        with setting.progress(f"target prompts: {name}") as advance:
            for done, (where, here) in enumerate(prompts.items(), 1):
                row = np.arange(len(known)) if where == CONTEXT else np.zeros(len(known), dtype=np.int64)
                plain = top_tokens(target, target.read(here, target.n_layers, -1)[target.n_layers, -1])
                top[where, NOTHING] = plain[row][:, None]
                # in one prompt for all what another document's state says is known
                vectors = {MAPPED: mapped, RANDOM: at_random}
                if where == CONTEXT:
                    vectors[SHUFFLED] = mapped[exchanged]
                which = np.tile(np.repeat(row, len(layers) * len(targets)), len(vectors))
                h = torch.stack(list(vectors.values())).flatten(0, 3)
                ids = patched(target, here, which, np.tile(targets, len(h) // len(targets)), h)
                by_kind = ids.reshape(len(vectors), len(known), -1)
                top |= {(where, what): read for what, read in zip(vectors, by_kind, strict=True)}
                if where != CONTEXT:
                    top[where, SHUFFLED] = top[where, MAPPED][exchanged]
                advance(done, len(prompts))
        return top

    models = [model_hash(lm.model) for lm in (source, target)]
    readings = setting.cached(
        f"readings-{key}", compute, models=models, layers=[layers, targets], prompts=[list(p.ids) for p in contexts]
    )
    back = Vocabularies(target, source)
    scores = {
        (where, what): score_readings(source, final, back.first(readings[where, what]))
        for where in WHERE
        for what in (MAPPED, *CONTROLS)
    }
    entities = descriptions(setting, key, (source, target), (layers, targets), f, setting.choose(**ENTITIES))
    return Way(name, layers, targets, r2, len(known) / len(prompts), scores, entities, setting.seed)


def _of_prompts(states: HiddenStates, rows: np.ndarray) -> HiddenStates:
    """The states of the prompts of these numbers."""
    prompts, positions = tuple(states.prompts[n] for n in rows), tuple(states.positions[n] for n in rows)
    return replace(states, tensor=states.tensor[torch.from_numpy(rows)], prompts=prompts, positions=positions)


def _mapped(f: Callable[..., Any], states: HiddenStates, layers: Sequence[int], targets: Sequence[int]) -> Tensor:
    """f of every place (N, S, T, D*)."""
    mapped = [torch.stack([mappings.call_mapping(f, states[s, -1], s, t) for t in targets], 1) for s in layers]
    return torch.stack(mapped, 1)


def _target_prompts(target: LM, contexts: Sequence[Any]) -> dict[str, list[Any]]:
    """The target prompts: each place's own, or one for all."""
    ((identity, _),) = token_identity(target).resolved
    return {CONTEXT: list(contexts), IDENTITY: [identity], ALONE: [target.prompt("?")]}


# -- tables


def _summary_of_ways(ways: Sequence[Way], measure: str) -> list[dict[str, Any]]:
    """Oracle, selected and mean cell of what is patched and of every control, in every target prompt."""
    rows: list[dict[str, Any]] = []
    for way in ways:
        for where in WHERE:
            for what in (MAPPED, *CONTROLS):
                best = way.best[where, what, measure]
                values = {n: _signed(getattr(best, n), measure) for n in ("oracle", "selected", "mean")}
                cells = "–" if what == NOTHING else " or ".join(way.cell(c) for c in dict.fromkeys(best.chosen))
                rows.append({"direction": way.name, "target prompt": where, "patched": what, **values, "cell": cells})
    return rows


def _signed(e: Estimate, measure: str) -> Estimate:
    return e if measure == PRECISION else Estimate(-e.value, -e.high, -e.low)


def _tests_of_ways(ways: Sequence[Way], measure: str, seed: int) -> list[dict[str, Any]]:
    """How much better the mapped state is than each control, both in cells selected on the other half; p by Holm."""
    rows: list[dict[str, Any]] = []
    apart = []
    for way in ways:
        for where in WHERE:
            mine = way.best[where, MAPPED, measure].items_selected
            for what in CONTROLS:
                its = way.best[where, what, measure].items_selected
                apart.append(sign_flips(mine - its, seed=seed))
                rows.append(
                    {"direction": way.name, "target prompt": where, "over": what, "gain": difference(mine, its)}
                )
    return [{**row, "p (Holm)": p} for row, p in zip(rows, holm(apart), strict=True)]


def _tested_descriptions(ways: Sequence[Way], seed: int) -> list[dict[str, Any]]:
    gains = [(way.name, other, values) for way in ways for other, values in way.described.gains().items()]
    p = holm([sign_flips(values, seed=seed) for *_, values in gains])
    return [{"direction": name, "over": other, "gain": mean(values), "p (Holm)": one}
            for (name, other, values), one in zip(gains, p, strict=True)]  # fmt: skip


def _cells(way: Way) -> list[dict[str, Any]]:
    shown_here = [(where, what) for where in WHERE for what in (MAPPED, SHUFFLED)]
    grids = {(*key, m): way.grid(*key, m) for key in shown_here for m in (PRECISION, SURPRISAL)}
    return [
        {
            "direction": way.name,
            "layer": layer,
            "target layer": target,
            "R² of the map": float(way.r2[s, t]),
            **{f"{m}, {where}, {what}": float(grid[s, t]) for (where, what, m), grid in grids.items()},
        }
        for s, layer in enumerate(way.layers)
        for t, target in enumerate(way.targets)
    ]


def _cross_model_figure(way: Way, number: int) -> Figure:
    shown_here = (CONTEXT, MAPPED), (CONTEXT, SHUFFLED), (IDENTITY, MAPPED)
    panels = [
        Heatmap(
            f"{where}, {what}", f"target layer ({way.name.partition(' → ')[2]})",
            f"source layer ({way.name.partition(' → ')[0]})", way.targets, way.layers, way.grid(where, what, measure),
            measure,
        )
        for measure in (PRECISION, SURPRISAL)
        for where, what in shown_here
    ]  # fmt: skip
    return Figure("cross-model" + "-back" * number, panels)


# -- the reading


def _cross_model_reading(way: Way, tests: Mapping[str, ReportTable], descriptions: Sequence[Mapping[str, Any]]) -> str:
    sure = {
        (row["target prompt"], row["over"]): row
        for row in tests[PRECISION]
        if row["direction"] == way.name
    }  # fmt: skip
    beyond, carried = _above(sure[CONTEXT, NOTHING]), _above(sure[IDENTITY, SHUFFLED])
    verdict = (
        "Replicates" if beyond and carried else "Replicates in part" if beyond or carried else "Does not replicate"
    )
    best = {(where, what): way.best[where, what, PRECISION] for where in WHERE for what in (MAPPED, *CONTROLS)}
    mapped, grid = best[CONTEXT, MAPPED], way.grid(CONTEXT, MAPPED, PRECISION)
    leak = way.grid(CONTEXT, SHUFFLED, PRECISION).mean(0)
    at = int(grid.mean(0).argmax())
    parts = [
        f"{way.name}: {verdict.lower()}. With the source's own context as the target prompt (the paper's protocol) "
        f"precision@1 is {prose(mapped.selected)} in a cell (pair of layers) selected on other documents, at most "
        f"{grid.max():.2f} in any one cell (the paper: .7 and .8), {mapped.oracle.value:.2f} in the best cell of each "
        f"place, {mapped.mean.value:.2f} in the mean cell, highest at target layer {way.targets[at]} of "
        f"{way.targets[0]}–{way.targets[-1]}."
    ]
    parts.append(
        f"Control: the target model sees the context too. Without any patch it is "
        f"{prose(best[CONTEXT, NOTHING].selected)} (the patch adds {_gain(sure[CONTEXT, NOTHING])}); with another "
        f"document's state it is {best[CONTEXT, SHUFFLED].mean.value:.2f} in the mean cell ({leak[0]:.2f} at target "
        f"layer {way.targets[0]}, {leak[-1]:.2f} at {way.targets[-1]})."
    )
    for where in (IDENTITY, ALONE):
        parts.append(
            f"Without the context ({where}): {prose(best[where, MAPPED].selected)} in a selected cell, mean cell "
            f"{best[where, MAPPED].mean.value:.2f}; over another document's state {_gain(sure[where, SHUFFLED])}, over "
            f"a random vector {_gain(sure[where, RANDOM])}."
        )
    surprise = {where: way.grid(where, MAPPED, SURPRISAL) for where in (CONTEXT, IDENTITY)}
    parts.append(
        f"Surprisal by cell: {surprise[CONTEXT].min():.1f}–{surprise[CONTEXT].max():.1f} nats in the context (the "
        f"paper: 1.1–8), {surprise[IDENTITY].min():.1f}–{surprise[IDENTITY].max():.1f} without."
    )
    selected = way.described.selected
    gains = [r for r in descriptions if r["direction"] == way.name]
    parts.append(
        f"Descriptions of {len(way.described.entities)} entities, RougeL in a selected cell: {prose(selected)}; "
        + "; ".join(f"over {r['over']} {_gain(r)}" for r in gains)
        + "."
    )
    return "\n".join(parts)


def _above(row: Mapping[str, Any]) -> bool:
    return bool(row["gain"].value > 0 and row["p (Holm)"] < 0.05)


def _gain(row: Mapping[str, Any]) -> str:
    return f"{prose(row['gain'])}, p = {row['p (Holm)']:.2g}"


EXPERIMENT = Experiment(data="text", lens=False, across=True, run=_run_cross_model)
