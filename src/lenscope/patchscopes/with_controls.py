"""What an explanation is worth: what a Patchscope says of states, beside what it says of their text, or of nothing.

Knows: how each control is run and scored beside the states, cells chosen on other items, paired differences.
Does not know: which Patchscope, what is scored.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lenscope.contents import Brief
from lenscope.engine.shared_prefix_continuations import continue_prompts
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.controls import prompts_with_text, random_vectors
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers
from lenscope.statistics.derangements import derange
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.selection import Selection, select

VECTOR, TEXT, NONE, RANDOM, SHUFFLED = CONDITIONS = "vector", "text", "no patch", "random vector", "shuffled source"
KINDS = "oracle", "selected", "mean"

# score(what was said, number of the item) -> a number, higher is better
Score = Callable[[str, int], float]


@final
@dataclass(frozen=True, eq=False, repr=False)
class ControlledScores(Brief):
    """Scores of what a Patchscope says of N items, beside its controls. `score_with_controls` makes it.

    Scores are arrays by name: "vector", "random vector" and "shuffled source" (N, C) have C cells, "text" and "no
    patch" (N, 1) have no layers. `cells` are (source layer, target layer). `units` names what each item belongs to (a
    subject): whole units are resampled, and are in one fold.
    """

    cells: tuple[tuple[int, int], ...]
    scores: Mapping[str, np.ndarray]
    units: Sequence[Any] | None = None
    seed: int = 0

    def selection(self, way: str = VECTOR, cells: Sequence[int] | None = None) -> Selection:
        """The best, the selected and the mean of some `cells` (their numbers; None: all), for one way of telling."""
        table = self.scores[way]
        chosen = table if cells is None or table.shape[1] == 1 else table[:, list(cells)]
        return select(chosen, units=self.units, seed=self.seed)

    def row(self, cells: Sequence[int] | None = None, kind: str = "selected") -> dict[str, Estimate]:
        """Every way's mean score, and what the vector adds: `kind` "selected", "oracle" or "mean" of some cells.

        A way with several cells has its own cell selected, as freely as the vector. "vector above text" is the share
        of items whose vector scores higher than their text; for scores 0 and 1, right where the text is not.
        """
        items = {way: getattr(self.selection(way, cells), f"items_{kind}") for way in self.scores}
        estimates: dict[str, Estimate] = {way: self._mean(values) for way, values in items.items()}
        own = items[VECTOR]
        for way in (w for w in items if w != VECTOR):
            estimates[f"vector - {way}"] = difference(own, items[way], units=self.units, seed=self.seed)
        estimates["vector above text"] = self._mean(own > items[TEXT])
        estimates["text above vector"] = self._mean(own < items[TEXT])
        return estimates

    def by_layer(self) -> list[dict[str, Any]]:
        """`row` of each source layer, its target layer selected on the other items where it has several."""
        rows = []
        for layer in sorted({source for source, _ in self.cells}):
            mine = [n for n, (source, _) in enumerate(self.cells) if source == layer]
            rows.append({"layer": layer, **self.row(mine)})
        return rows

    def to_dataframe(self) -> Any:
        """A row for each item, way and cell, with its score; layers are null where a way has none.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        return columns_frame(_rows_by_way(self.cells, self.scores, "score", self.units))

    def chosen(self, way: str = VECTOR) -> list[tuple[int, int]]:
        """The (source layer, target layer) that was selected for each fold."""
        return [self.cells[n] for n in self.selection(way).chosen]

    def _mean(self, values: np.ndarray) -> Estimate:
        return mean(values, units=self.units, seed=self.seed)


@final
@dataclass(frozen=True, eq=False, repr=False)
class ControlledTexts(Brief):
    """What a Patchscope says of N items, beside its controls. `generate_with_controls` makes it.

    The texts are in arrays as those of `ControlledScores`.
    """

    cells: tuple[tuple[int, int], ...]
    texts: Mapping[str, np.ndarray]

    def scored(self, score: Score, units: Sequence[Any] | None = None, seed: int = 0) -> ControlledScores:
        """All texts, as one score takes them."""
        scores = {}
        for way, table in self.texts.items():
            scores[way] = np.array([[float(score(text, n)) for text in row] for n, row in enumerate(table)])
        return ControlledScores(self.cells, scores, units, seed)

    def to_dataframe(self) -> Any:
        """A row for each item, way and cell, with its text; layers are null where a way has none.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        return columns_frame(_rows_by_way(self.cells, self.texts, "text", None))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        texts = {way: table.tolist() for way, table in self.texts.items()}
        return {"cells": [list(cell) for cell in self.cells], "said": texts}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "ControlledTexts":
        """The inverse of `to_json`."""
        texts = {way: np.array(table, dtype=object) for way, table in data["said"].items()}
        return ControlledTexts(tuple((source, target) for source, target in data["cells"]), texts)


def _rows_by_way(
    cells: Sequence[tuple[int, int]], tables: Mapping[str, np.ndarray], name: str, units: Sequence[Any] | None
) -> dict[str, list[Any]]:
    """Tables (N, C) or (N, 1) by way, as columns of one long table."""
    columns: dict[str, list[Any]] = {"item": [], "way": [], "source_layer": [], "target_layer": [], name: []}
    for way, table in tables.items():
        items, places = table.shape
        layers = cells if places == len(cells) and way not in (TEXT, NONE) else [(None, None)] * places
        columns["item"] += np.repeat(np.arange(items), places).tolist()
        columns["way"] += [way] * table.size
        columns["source_layer"] += [source for source, _ in layers] * items
        columns["target_layer"] += [target for _, target in layers] * items
        columns[name] += table.reshape(-1).tolist()
    return columns if units is None else {"unit": [str(units[n]) for n in columns["item"]], **columns}


def score_with_controls(
    scope: Patchscope,
    states: HiddenStates,
    texts: Sequence[str],
    score: Score,
    layers: Layers = None,
    *,
    answers: Sequence[Hashable] | None = None,
    units: Sequence[Any] | None = None,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> ControlledScores:
    """Score what a Patchscope says of N states, and what it says without them.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts, at one position each.
        texts: what stands in the place of the placeholder when the model is given the text instead of the vector, (N,).
        score: gives a text of an item, by its number, a number.
        layers: as of `Patchscope.generate`.
        answers: what each state is asked for, (N,); None: all differ.
        units: what each item belongs to, and is resampled with.
        max_new_tokens: tokens of a text at most.
        stop: strings that end a text.
        seed: fixes random vectors, exchanges and intervals.
        progress: called with how much is done and how much there is.
    """
    how: Any = {"answers": answers, "max_new_tokens": max_new_tokens, "stop": stop, "seed": seed, "progress": progress}
    return generate_with_controls(scope, states, texts, layers, **how).scored(score, units, seed)


def generate_with_controls(
    scope: Patchscope,
    states: HiddenStates,
    texts: Sequence[str],
    layers: Layers = None,
    *,
    answers: Sequence[Hashable] | None = None,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> ControlledTexts:
    """Let a Patchscope say what each of N states means, and let every control say the same without the state.

    Controls are "text": the text in the place of the placeholder; "no patch": the target prompt as it is; "random
    vector": a random direction of each state's norm; "shuffled source": another prompt's state, whose answer differs
    where `answers` (N,) are given. The shuffled states are not run again: what another prompt's state says is known.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts, at one position each.
        texts: what stands in the place of the placeholder instead of a vector, (N,).
        layers: as of `Patchscope.generate`.
        answers: what each state is asked for, (N,); None: all differ.
        max_new_tokens: tokens of a text at most.
        stop: strings that end a text.
        seed: fixes random vectors and exchanges.
        progress: called with how much is done and how much there is.

    Raises LenscopeError where prompts have more than one position, or texts are not as many; for a Patchscope with
    several targets, or with edits of its target, which a text has no place for; and as `derange` and
    `prompts_with_text` do.
    """
    if not isinstance(states, HiddenStates):
        raise LenscopeError(
            f"states: are {type(states).__name__}, and controls take hidden states of prompts (lm.read); of vectors "
            "compare with lenscope.patchscopes.random_vectors"
        )
    count = len(states.prompts)
    if len(texts) != count or any(len(places) != 1 for places in states.positions):
        raise LenscopeError(f"{len(texts)} texts, {count} prompts: give one text for each, and states of one position")
    if len(scope.fixed) > 1 or scope.fixed[0]:
        raise LenscopeError("scope: has several targets, or edits; give a Patchscope with one target and no edits")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    others = derange(range(count) if answers is None else answers, seed)
    written = []
    for turn, sources in enumerate((states, random_vectors(states, seed))):

        def advance(done: int, total: int, turn: int = turn) -> None:
            if progress is not None:
                progress(done + turn * total, 2 * total)

        how: Any = {"max_new_tokens": max_new_tokens, "stop": stops, "progress": advance}
        written.append(texts_by_cell(scope.generate(sources, layers, **how)))
    (cells, own), (_, random) = written
    plain = continue_texts(scope.lm, [*prompts_with_text(scope, texts), scope.resolved[0][0]], max_new_tokens, stops)
    return ControlledTexts(
        cells,
        {
            VECTOR: own,
            TEXT: np.array(plain[:count], dtype=object)[:, None],
            NONE: np.array([plain[count]] * count, dtype=object)[:, None],
            RANDOM: random,
            SHUFFLED: own[others],
        },
    )


def texts_by_cell(grid: Grid) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
    """The texts of a grid of one target as (prompts, cells), and the (source layer, target layer) of each cell.

    The grid's sources are hidden states of several prompts, one position each, all at the same layers.
    """
    layer = [grid.sources[n].layer for n in grid.source.tolist()]
    pairs = list(zip(layer, grid.layer.tolist(), strict=True))
    cells = tuple(sorted(set(pairs)))
    number = {cell: n for n, cell in enumerate(cells)}
    item = grid.source // len({source.layer for source in grid.sources})
    texts = np.full((int(item.max()) + 1, len(cells)), "", dtype=object)
    texts[item, [number[pair] for pair in pairs]] = grid.texts
    return cells, texts


def continue_texts(
    lm: LM, prompts: Sequence[PromptLike], max_new_tokens: int, stop: str | Sequence[str] = ()
) -> list[str]:
    """What follows each prompt, greedily, cut off as `Patchscope.generate` cuts: the same for text as for vectors."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    writer = TokenChooser(lm, 0, max_new_tokens, stops, 0.0, 1.0, 0)
    many: list[str | Prompt] = [lm.prompt(p) for p in prompts]
    return [writer.text(one.ids) for one in continue_prompts(lm, many, max_new_tokens)]
