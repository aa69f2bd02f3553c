"""Texts that experiments read and keep, and estimates that several of them make.

Knows: what comes before a text whose states are read, how texts become tensors that a setting keeps, how items are
balanced, two groups and many pairs compared. Does not know: what was said.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Series
from lenscope.experiments.setting import Setting
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.statistics.estimates import Estimate, bootstrap, difference, holm, sign_flips
from lenscope.text.packing import find_marks

# random halvings of the items, over which what is selected on one half and used on the other is averaged
SPLITS = 50


def kept_json(setting: Setting, name: str, make: Callable[[], Any], **settings: Any) -> Any:
    """JSON values that `make` makes, or an earlier run of the same settings made: as `Setting.kept`."""

    def tensors() -> dict[str, Tensor]:
        made = bytearray(json.dumps(make(), ensure_ascii=False).encode())
        return {"json": torch.frombuffer(made, dtype=torch.uint8)}

    return json.loads(setting.kept(name, tensors, **settings)["json"].numpy().tobytes())


def begun(lm: LM, texts: Sequence[str]) -> list[Prompt]:
    """Texts as prompts behind what begins a document in the model's training.

    The first position of all is an attention sink in many models, whatever its token: a name of one token that stood
    there would not be read as a name.
    """
    mark = find_marks(lm).document
    return [lm.prompt([*mark, *lm.encoder.ids(text)]) for text in texts]


def apart(values: Sequence[float] | np.ndarray, first: Sequence[bool] | np.ndarray) -> Estimate:
    """The mean of the values (n,) of the items in `first` (n,) less the mean of the others, both resampled."""

    def gap(v: np.ndarray, group: np.ndarray) -> float:
        return float(v[group].mean() - v[~group].mean()) if 0 < group.sum() < len(group) else float("nan")

    return bootstrap(gap, np.asarray(values, dtype=float), np.asarray(first, dtype=bool))


def compared(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[Any] | None]], seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each named pair of scores (n,) of the same items: the paired difference, its p, and p after Holm.

    Each comes with the units of its items, or None: signs are flipped by unit, of whose differences sums are taken.
    """
    made: list[dict[str, Any]] = []
    for name, (a, b, units) in pairs.items():
        apart_by = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
        _, unit = np.unique(np.arange(len(apart_by)) if units is None else np.asarray(units), return_inverse=True)
        p = sign_flips(np.bincount(unit, apart_by), seed=seed)
        made.append({"comparison": name, "difference": difference(a, b, units=units, seed=seed), "p": p})
    corrected = holm([row["p"] for row in made]) if made else []
    return [{**row, "p (Holm)": p} for row, p in zip(made, corrected, strict=True)]


def balanced(answers: Sequence[Hashable], most: int) -> list[int]:
    """Numbers of up to `most` items, the first of each answer in turn, no more than half of them with the same answer.

    So that every item can take the place of one with another answer (controls.exchange). May be empty.
    """
    groups: dict[Hashable, list[int]] = {}
    for n, answer in enumerate(answers):
        groups.setdefault(answer, []).append(n)
    turns = [n for turn in range(len(answers)) for group in groups.values() for n in group[turn : turn + 1]][:most]
    largest = max(groups.values(), key=len, default=[])
    mine = [n for n in turns if n in largest]
    left_out = mine[len(turns) - len(mine) :]
    return sorted(n for n in turns if n not in left_out)


def crossed(scores: np.ndarray, units: Sequence[Any], seed: int = 0, other: np.ndarray | None = None) -> np.ndarray:
    """Scores (N, C) of the cell that is best on the other half of the units, averaged over SPLITS halvings: (N,).

    What `selection.select` has of one halving: of few items and many cells that depends on which. `other` (N, C) are
    read instead in the cells that `scores` chose.
    """
    read = scores if other is None else other
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    made = np.zeros(len(scores))
    for n in range(SPLITS):
        half = (np.random.default_rng([seed, n]).permutation(int(unit.max()) + 1) % 2)[unit]
        for mine in (half == 0, half == 1):
            made[mine] += read[mine, int(scores[~mine].mean(0).argmax())]
    return made / SPLITS


def curve(label: str, x: Sequence[Any], estimates: Sequence[Estimate], dashed: bool = False) -> Series:
    """Estimates over x with their intervals, to be drawn."""
    y, low, high = ([e[i] for e in estimates] for i in range(3))
    return Series(label, x, y, low, high, dashed)


def interval(e: Estimate) -> str:
    """An estimate as it stands in a sentence."""
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
