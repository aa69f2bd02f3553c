"""Entities described by another model from a model's states, beside controls (Ghandeharioun et al. 2024, §4.3, §4.4).

Knows: how entities become sources, which cells are run, what descriptions are compared with.
Does not know: how maps are fitted, how a description is cut out of a text (entities.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from lenscope.experiments.patchscopes_paper.entities import description_in, pick
from lenscope.experiments.patchscopes_paper.next_token_readings import random_instead, with_other_answers
from lenscope.experiments.setting import Setting
from lenscope.mappings.mapping import Affine
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.patchscopes.controls import prompts_with_text
from lenscope.patchscopes.methods import entity_description
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.with_controls import continue_texts, texts_by_cell
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.selection import Selection, select
from lenscope.tasks.relations import Entity, builtin_entities
from lenscope.tasks.text_match import rouge
from lenscope.text.packing import find_marks

# tokens that a description is written with
WRITTEN = 12
# source and target layers up to this depth: descriptions come from early layers (§4.3)
EARLY = 0.5
MAPPED, ITSELF = "mapped state", "the source model of its own state"
SHUFFLED, RANDOM, NOTHING, NAME = "another entity's state", "random vector", "no patch", "the entity's name instead"
SHOWN = 6


@final
@dataclass(frozen=True, eq=False)
class DescribedEntities:
    """What was said of E entities: texts (E, C) by what was patched, in C cells; C is 1 where no vector is patched."""

    entities: Sequence[Entity]
    texts: Mapping[str, np.ndarray]
    cells: Mapping[str, Sequence[str]]
    seed: int = 0

    def scores(self, what: str, kind: str = "rougeL") -> np.ndarray:
        """Rouge (E, C) of the descriptions and the entities' own."""
        rows = zip(self.texts[what], self.entities, strict=True)
        return np.array([[getattr(rouge(text, e.description), kind) for text in row] for row, e in rows])

    @cached_property
    def best(self) -> dict[str, Selection]:
        """RougeL by cell, of what was patched."""
        return {what: select(self.scores(what), seed=self.seed) for what in self.texts}

    @property
    def selected(self) -> Estimate:
        """RougeL of the mapped states in a cell selected on the other half."""
        return self.best[MAPPED].selected

    def rows(self) -> list[dict[str, Any]]:
        """Oracle, selected and mean cell of what is patched and of every control."""
        rows: list[dict[str, Any]] = []
        for what, best in self.best.items():
            values = {name: getattr(best, name) for name in ("oracle", "selected", "mean")}
            cells = " or ".join(self.cells[what][c] for c in dict.fromkeys(best.chosen))
            one = select(self.scores(what, "rouge1"), seed=self.seed).selected
            rows.append({"patched": what, **values, "cell": cells, "Rouge1, selected": one})
        return rows

    def gains(self) -> dict[str, np.ndarray]:
        """RougeL (E,) of the mapped state less that of everything else, each in its own selected cell."""
        mine = self.best[MAPPED].items_selected
        return {what: mine - best.items_selected for what, best in self.best.items() if what != MAPPED}

    def examples(self) -> list[dict[str, Any]]:
        """What was said of a few entities in the selected cells."""
        chosen: dict[str, list[str]] = {}
        for what, texts in self.texts.items():
            number = np.arange(texts.size).reshape(texts.shape)
            chosen[what] = [str(texts.flat[int(n)]) for n in self.best[what].at(number)]
        numbers = np.unique(np.linspace(0, len(self.entities) - 1, SHOWN).round().astype(int)).tolist()
        return [
            {
                "entity": self.entities[n].name,
                "reference": self.entities[n].description,
                **{what: texts[n] for what, texts in chosen.items()},
            }
            for n in numbers
        ]


def descriptions(
    setting: Setting,
    key: str,
    models: tuple[LM, LM],
    layers: tuple[Sequence[int], Sequence[int]],
    f: Affine,
    count: int,
) -> DescribedEntities:
    """Descriptions of built-in entities by the second model, from the early ones of the first one's layers.

    Args:
        setting: what the run is given.
        key: the direction's name in the cache.
        models: the one whose states are read, and the one that describes.
        layers: source layers of the first, target layers of the second; of both only those up to half depth are used.
        f: the map from the first model's states to the second's.
        count: how many entities.
    """
    source, target = models
    entities = pick(builtin_entities(), count)
    early = [[n for n in numbers if n <= EARLY * lm.n_layers] for lm, numbers in zip(models, layers, strict=True)]
    pairs = [(s, t) for s in early[0] for t in early[1]]
    # behind what begins a document: the first position of all is an attention sink, whatever token it is
    mark = find_marks(source).document
    prompts = [source.prompt([*mark, *source.encoder.ids(e.name)]) for e in entities]

    def compute() -> dict[str, list[list[str]]]:
        states = source.read(prompts, early[0], -1)
        across = entity_description(target, f, source_lm=source)
        at_random = Patchscope(target, across.targets, random_instead(f, setting.seed), source_lm=source)
        runs = {
            MAPPED: (across, pairs),
            RANDOM: (at_random, pairs),
            ITSELF: (entity_description(source), [(n, n) for n in early[0]]),
        }
        texts: dict[str, list[list[str]]] = {}
        for what, (scope, cells) in runs.items():
            with setting.progress(f"descriptions: {source.name} → {scope.lm.name}, {what}") as advance:
                options: Any = {"max_new_tokens": WRITTEN, "stop": "\n", "progress": advance}
                texts[what] = texts_by_cell(scope.generate(states, cells, **options))[1].tolist()
        names = [e.name for e in entities]
        plain = continue_texts(target, [*prompts_with_text(across, names), across.resolved[0][0]], WRITTEN, "\n")
        elsewhere = with_other_answers([e.description for e in entities], setting.seed)
        return {
            **texts,
            SHUFFLED: [texts[MAPPED][n] for n in elsewhere],
            NOTHING: [plain[-1:]] * len(entities),
            NAME: [[text] for text in plain[:-1]],
        }

    written = setting.cached(
        f"descriptions-{key}",
        compute,
        models=[model_hash(lm.model) for lm in models],
        layers=early,
        entities=[[e.name, e.description] for e in entities],
    )
    cells = {what: [f"{s} → {t}" for s, t in pairs] for what in (MAPPED, SHUFFLED, RANDOM)}
    cells |= {NOTHING: ["–"], NAME: ["–"], ITSELF: [f"{n} → {n}" for n in early[0]]}
    texts = {
        what: np.array([[description_in(t) for t in row] for row in written[what]], dtype=object) for what in cells
    }
    return DescribedEntities(entities, texts, cells, setting.seed)
