"""What an explanation is worth: what a Patchscope says of vectors, beside what it says of their text, or of nothing.

Knows: how what is said in every way is gathered and scored, cells chosen on other items, paired differences.
Does not know: which Patchscope, which controls there are (control_runs.py), what is scored.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

from lenscope.contents import Brief
from lenscope.engine import sweep
from lenscope.engine.shared_prefix_continuations import continue_prompts
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.control_runs import (
    CONTROLS,
    NONE,
    SHUFFLED,
    TEXT,
    VECTOR,
    cell_count,
    control_runs,
    exchanged_items,
    for_every_item,
    item_count,
    require_items,
    text_prompts,
)
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.selection import Selection, select

KINDS = "oracle", "selected", "mean"

# score(what was said, number of the item) -> a number, higher is better
Score = Callable[[str, int], float]
# score(what was said of each item (N,)) -> numbers (N,), higher is better
ScoreTogether = Callable[[Sequence[str]], np.ndarray]


@final
@dataclass(frozen=True, eq=False, repr=False)
class ControlledScores(Brief):
    """Scores of what a Patchscope says of N items, beside its controls. `score_with_controls` makes it.

    Scores are arrays by name of the way of telling: "vector" and those controls that patch a vector (N, C) have C
    cells, "text" and "no patch" (N, 1) have no layers. `cells` are (source layer, target layer), with a source layer of
    -1 where vectors have none. `units` names what each item belongs to (a
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
        of items whose vector scores higher than their text; for scores 0 and 1, right where the text is not. There are
        such shares where there are texts.
        """
        items = {way: getattr(self.selection(way, cells), f"items_{kind}") for way in self.scores}
        estimates: dict[str, Estimate] = {way: self._mean(values) for way, values in items.items()}
        own = items[VECTOR]
        for way in (w for w in items if w != VECTOR):
            estimates[f"vector - {way}"] = difference(own, items[way], units=self.units, seed=self.seed)
        if TEXT in items:
            estimates["vector above text"] = self._mean(own > items[TEXT])
            estimates["text above vector"] = self._mean(own < items[TEXT])
        return estimates

    def by_layer(self) -> list[dict[str, Any]]:
        """`row` of each source layer, its target layer selected on the other items where it has several."""
        rows = []
        for layer in sorted({source for source, _ in self.cells}):
            mine = [n for n, (source, _) in enumerate(self.cells) if source == layer]
            rows.append({"layer": None if layer < 0 else layer, **self.row(mine)})
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

    def scored_together(
        self, score: ScoreTogether, units: Sequence[Any] | None = None, seed: int = 0
    ) -> ControlledScores:
        """As `scored`, with a score that takes the texts of all items (N,) at once, such as one that runs a model."""
        scores = {}
        for way, table in self.texts.items():
            columns = [np.asarray(score([str(text) for text in column]), dtype=float) for column in table.T]
            scores[way] = np.stack(columns, 1)
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
        columns["source_layer"] += [None if source is None or source < 0 else source for source, _ in layers] * items
        columns["target_layer"] += [target for _, target in layers] * items
        columns[name] += table.reshape(-1).tolist()
    return columns if units is None else {"unit": [str(units[n]) for n in columns["item"]], **columns}


def score_with_controls(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    texts: Sequence[str] | None,
    score: Score,
    layers: Layers = None,
    *,
    answers: Sequence[Hashable] | None = None,
    controls: Sequence[str] | None = None,
    units: Sequence[Any] | None = None,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    contrast: float = 0.0,
    progress: Progress | None = None,
) -> ControlledScores:
    """Score what a Patchscope says of N states or vectors, and what it says without them.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts at one position each, or vectors (N, D) or (N, K, D).
        texts: what stands in the place of the placeholder when the model is given the text instead of the vector, (N,);
            None: there is no such control.
        score: gives a text of an item, by its number, a number.
        layers: as of `Patchscope.generate`.
        answers: what each state is asked for, (N,); None: all differ.
        controls: names of controls, as of `generate_with_controls`.
        units: what each item belongs to, and is resampled with.
        max_new_tokens: tokens of a text at most.
        stop: strings that end a text.
        seed: fixes random vectors, exchanges and intervals.
        contrast: as of `generate_with_controls`.
        progress: called with how much is done and how much there is.
    """
    how: Any = {"answers": answers, "controls": controls, "max_new_tokens": max_new_tokens, "stop": stop, "seed": seed}
    how["contrast"] = contrast
    return generate_with_controls(scope, states, texts, layers, **how, progress=progress).scored(score, units, seed)


def generate_with_controls(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    texts: Sequence[str] | None = None,
    layers: Layers = None,
    *,
    answers: Sequence[Hashable] | None = None,
    controls: Sequence[str] | None = None,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    contrast: float = 0.0,
    progress: Progress | None = None,
) -> ControlledTexts:
    """Let a Patchscope say what each of N states or vectors means, and let every control say the same without it.

    Controls, by name, each where it exists:

    - "text": the text in the place of the placeholder (of all of them, where there are several). It needs `texts`.
    - "no patch": the target prompt as it is, with its own edits where it has some.
    - "random vector": a random direction of each vector's norm.
    - "shuffled source": another item's vector, whose answer differs where `answers` (N,) are given. It is not run
      again: what another item's vector says is known.
    - "mean vector": the mean of the N vectors.
    - "state itself", "unit vector, scaled", "bias alone": where the Patchscope has a map f, what is said without it.
      The state is patched as it is; it is patched at the mean norm of the target prompt's states before the first block
      (its embeddings); and what the map makes of the zero vector, an affine map's bias, is patched for all items.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts at one position each, or vectors (N, D) or (N, K, D) for K placeholders.
        texts: what stands in the place of the placeholder instead of a vector, (N,); None: there is no such control.
        layers: as of `Patchscope.generate`.
        answers: what each state is asked for, (N,); None: all differ.
        controls: names of controls; None: all that exist.
        max_new_tokens: tokens of a text at most.
        stop: strings that end a text.
        seed: fixes random vectors and exchanges.
        contrast: α as of `Patchscope.generate`, for the states and every control that is patched; the text and the
            prompt as it is are continued plainly.
        progress: called with how much is done and how much there is.

    Raises LenscopeError where prompts have more than one position, or texts are not as many; for a Patchscope with
    several targets; for texts where the target has edits, whose places they would move; for a control that does not
    exist here; and as `derange` and `prompts_with_text` do.
    """
    states = require_items(scope, states, layers)
    count = item_count(states)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    runs = control_runs(scope, states, layers, controls, seed)
    asked = [name for name in (CONTROLS if controls is None else controls) if name != TEXT or texts is not None]
    if controls is not None and TEXT in controls and texts is None:
        raise LenscopeError(f"control {TEXT!r}: give the texts")
    with_text = [] if texts is None or TEXT not in asked else text_prompts(scope, texts, count)
    others = exchanged_items(answers, count, seed) if SHUFFLED in asked and count > 1 else []
    sizes = {way: cell_count(run.scope, run.run, layers) for way, run in runs.items()}
    tables: dict[str, np.ndarray] = {}
    cells: tuple[tuple[int, int], ...] = ()
    before = 0
    for way, run in runs.items():

        def advance(done: int, total: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, sum(sizes.values()))

        how: Any = {"max_new_tokens": max_new_tokens, "stop": stops, "contrast": contrast, "progress": advance}
        cells, table = texts_by_cell(run.scope.generate(run.run, layers, **how))
        tables[way] = for_every_item(table, count)
        before += sizes[way]
    if with_text:
        tables[TEXT] = np.array(continue_texts(scope.lm, with_text, max_new_tokens, stops), dtype=object)[:, None]
    if NONE in asked:
        tables[NONE] = np.array([[_unpatched_text(scope, max_new_tokens, stops)]] * count, dtype=object)
    if others:
        tables[SHUFFLED] = tables[VECTOR][others]
    return ControlledTexts(cells, {way: tables[way] for way in (VECTOR, *CONTROLS) if way in tables})


def _unpatched_text(scope: Patchscope, max_new_tokens: int, stops: tuple[str, ...]) -> str:
    """What follows the target prompt, with its own edits, where nothing is patched."""
    rows = scope.without_patch()
    writer = TokenChooser(scope.lm, len(rows), max_new_tokens, stops, 0.0, 1.0, 0)
    written = sweep.generate(scope.lm, rows, writer.choose, max_new_tokens, budget=scope.budget)
    return next(writer.text(one[0].ids) for _, one in written)


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
