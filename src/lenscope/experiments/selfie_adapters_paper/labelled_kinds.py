"""Labels by kind: which are trained on, which choose settings, which are reported, and among which one is searched.

Knows: files of titles, facts and entities, the built-in ones, how labels are divided so that none is on two sides.
Does not know: vectors, maps, what is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.files import text_files
from lenscope.tasks.relation_files import load_entities, load_relations
from lenscope.tasks.relations import builtin_entities, builtin_relations

# what titles are called, and labels are searched among
TOPICS, SEARCHED = "topics", 1000
# built-in relations whose subjects are kinds never trained on: adjectives, and buildings and mountains
NEVER_TRAINED = "opposite", "landmark"
# fewest labels that are trained on, that settings are chosen with, that are reported, and of another kind
LEAST = {"train": 16, "chosen": 8, "reported": 8, "kind": 8}


@dataclass(frozen=True, eq=False, repr=False)
class DividedLabels(Brief):
    """Labels of topics in three parts, no label in two of them, and labels of other kinds.

    Attributes:
        train: what maps are trained on.
        chosen: what chooses among shapes of maps, embeddings and weights of contrast.
        reported: what is reported.
        kinds: labels of kinds that nothing is trained on, by the kind's name.
        unused: topics that are in none of these, which are searched among.
    """

    train: tuple[str, ...]
    chosen: tuple[str, ...]
    reported: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]

    def searched(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Up to 1,000 labels that are searched among: these, then other topics, those never trained on first."""
        others = [*self.reported, *self.chosen, *self.unused, *self.train]
        return tuple(dict.fromkeys([*labels, *others]))[:SEARCHED]


def load_kinds(paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Labels by kind, the topics first: of files, or the built-in ones without any.

    A table (.jsonl, .tsv, .csv) has facts (relation, subject, object), whose subjects are a kind for each relation, or
    entities (name, description), which are a kind; any other text file has topics, one a line. A label that several
    kinds have counts for the first of them. Raises LenscopeError for files without topics, and for what is no table.
    """
    kinds: dict[str, list[str]] = {TOPICS: []}
    for path in paths:
        name = Path(path).name.removesuffix(".gz")
        if Path(name).suffix.lower() not in text_files.TABLES:
            kinds[TOPICS] += [line.strip() for line in text_files.read_lines(path) if line.strip()]
        elif _has_descriptions(path):
            kinds.setdefault("entities", []).extend(entity.name for entity in load_entities(path))
        else:
            for relation in load_relations(path):
                kinds.setdefault(relation.name, []).extend(fact.subject for fact in relation.facts)
    if len(kinds) == 1:
        for relation in builtin_relations():
            subjects = [fact.subject for fact in relation.facts]
            if relation.name in NEVER_TRAINED:
                kinds[relation.name] = subjects
            elif not paths:
                kinds[TOPICS] += subjects
        kinds["entities"] = [entity.name for entity in builtin_entities()]
    if not kinds[TOPICS]:
        raise LenscopeError(
            f"{', '.join(paths)}: no topics; give a text file with one label a line, beside facts and entities"
        )
    seen: set[str] = set()
    distinct: dict[str, tuple[str, ...]] = {}
    for kind, labels in kinds.items():
        fresh: dict[str, str] = {}
        for label in labels:
            # the same word in another case is the same label
            if label.casefold() not in seen:
                fresh.setdefault(label.casefold(), label)
        seen |= set(fresh)
        distinct[kind] = tuple(fresh.values())
    return distinct


def divide(
    kinds: Mapping[str, tuple[str, ...]], *, train: int, chosen: int, reported: int, of_a_kind: int, seed: int
) -> DividedLabels:
    """Divide labels by chance: at most so many to report, to choose with, to train on, and of every other kind.

    Where there are fewer topics, a quarter of them is reported, and an eighth chooses. Kinds of fewer than 8 labels are
    left out. Raises LenscopeError for too few topics.
    """
    topics = _shuffled(kinds[TOPICS], seed)
    sizes = min(reported, len(topics) // 4), min(chosen, len(topics) // 8)
    parts = topics[: sizes[0]], topics[sizes[0] : sum(sizes)], topics[sum(sizes) :]
    for name, part in zip(("reported", "chosen", "train"), parts, strict=True):
        if len(part) < LEAST[name]:
            raise LenscopeError(f"topics: {len(topics)} are too few; give at least {8 * LEAST['chosen']}")
    others = {
        kind: _shuffled(labels, seed)[:of_a_kind]
        for kind, labels in kinds.items()
        if kind != TOPICS and len(labels) >= LEAST["kind"]
    }
    return DividedLabels(parts[2][:train], parts[1], parts[0], others, parts[2][train:])


def _shuffled(labels: Sequence[str], seed: int) -> tuple[str, ...]:
    return tuple(labels[n] for n in np.random.default_rng(seed).permutation(len(labels)).tolist())


def _has_descriptions(path: str) -> bool:
    """Whether the first row of a table is an entity's."""
    first = next((row for _, row in text_files.read_table(path)), {})
    return "description" in first and "relation" not in first
