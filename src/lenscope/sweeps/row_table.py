"""The columns of a part: what every row is, by which id it is known, and what it said.

Knows: names, order and types of columns, the same for every part and every sweep, but that of contrasts, which sweeps
have that ask for one. Does not know: how rows are run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lenscope.files.parquet_tables import list_column, number_column
from lenscope.models.prompts import Prompt
from lenscope.sweeps.configurations import Bench, Configuration
from lenscope.sweeps.parts import SweepRows
from lenscope.sweeps.row_scores import NUMBERS, RowScores


@dataclass(frozen=True, eq=False)
class Addresses:
    """Which row is which: `spots` (S,) are a part's, `spot` (N,) counts among them, `layers` (N, 2) are a row's
    source and target layers. Rows of no spot have neither.
    """

    spots: np.ndarray
    spot: np.ndarray
    layers: np.ndarray

    def __len__(self) -> int:
        return len(self.spot)


def nowhere(n: int) -> Addresses:
    """The addresses of n rows of no spot."""
    return Addresses(np.zeros(0, dtype=np.int64), np.full(n, -1), np.full((n, 2), -1))


def row_table(
    bench: Bench, rows: SweepRows, one: Configuration, prompts: Sequence[Prompt], addresses: Addresses,
    answers: Sequence[str | None], scores: RowScores,
) -> pa.Table:  # fmt: skip
    """The table of a part's N rows; what a row has not, such as the layer of an unpatched run, is null.

    Args:
        bench: the models, targets and mappings by their names.
        rows: all rows, of which these are some.
        one: the configuration of these.
        prompts: the prompts of the part's spots.
        addresses: spot and layers of each row.
        answers: what each row was asked for.
        scores: what each row said.
    """
    n, spec = len(addresses), bench.spec
    at = addresses.spot
    patched = len(addresses.spots) > 0
    spots, others = addresses.spots, rows.others[addresses.spots] if one.control == "other-source" else None
    target = None if one.target < 0 else spec.targets[one.target]
    contrast = bench.contrast(one) if patched and target is not None else None
    texts = [p.text for p in prompts]
    places = rows.spots.position[spots].tolist()

    def of_spots(values: Sequence[str] | None) -> pa.Array:
        return pa.array([None] * n if values is None or not patched else [values[s] for s in at], type=pa.string())

    def numbers_of_spots(values: np.ndarray | None) -> pa.Array:
        chosen = np.full(n, -1) if values is None or not patched else values[at]
        return _whole(chosen)

    known = [len(ids) for ids in scores.ids]
    flat = np.array([i for ids in scores.ids for i in ids], dtype=np.int32)
    flat_log_probs = np.array([p for values in scores.log_probs for p in values], dtype=np.float32)
    columns = {
        "id": pa.array(_row_ids(rows, one, addresses, answers), type=pa.string()),
        "control": _constant(one.control, n),
        "method": _constant(spec.methods[one.method].kind, n),
        "model": _constant(bench.names[0], n),
        "explained_by": _constant(bench.names[spec.models.index(spec.explainers[one.explainer])], n),
        "prompt": of_spots(texts),
        "token": of_spots([p.tokens[place] for p, place in zip(prompts, places, strict=True)]),
        "position": numbers_of_spots(rows.spots.position[spots]),
        "layer": _whole(addresses.layers[:, 0]),
        "other_prompt": of_spots(None if others is None else [rows.spots.texts[p] for p in rows.spots.prompt[others]]),
        "other_position": numbers_of_spots(None if others is None else rows.spots.position[others]),
        "target": _constant(None if target is None else target.label, n),
        "target_layer": _whole(addresses.layers[:, 1]),
        "mapping": _constant(spec.mappings[one.mapping].label if patched else None, n),
        "operation": _constant(one.operation if patched and target is not None else None, n),
        **({"contrast": pa.array([contrast] * n, type=pa.float64())} if spec.contrasts else {}),
        "answer": pa.array(list(answers), type=pa.string()),
        "text": pa.array(scores.texts, type=pa.string()),
        "ended": pa.array(scores.ended, type=pa.string()),
        "ids": list_column(np.array(known), flat),
        "log_probs": list_column(np.array(known), flat_log_probs),
        **{name: number_column(scores.numbers[name]) for name in NUMBERS},
        "answer_rank": _whole(scores.answer_rank),
        "correct": pa.array(scores.correct > 0, mask=scores.correct < 0),
    }
    return pa.table(columns)


def _constant(value: str | None, n: int) -> pa.Array:
    return pa.array([value] * n, type=pa.string())


def _whole(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int32), mask=values < 0)


def _row_ids(rows: SweepRows, one: Configuration, addresses: Addresses, answers: Sequence[str | None]) -> list[str]:
    """Digests of what rows are: configuration, prompt's ids, position, answer, whose vector, layers."""
    if not len(addresses.spots):
        tails = [b"\0" if answer is None else answer.encode() + b"\1" for answer in answers]
        return [hashlib.blake2b(one.digest + tail, digest_size=16).hexdigest() for tail in tails]
    digests = [d.tobytes() for d in rows.spots.digest[addresses.spots]]
    if one.control == "other-source":
        taken = rows.spots.digest[rows.others[addresses.spots]]
        digests = [own + other.tobytes() for own, other in zip(digests, taken, strict=True)]
    layers = np.ascontiguousarray(addresses.layers.astype("<i4"))
    return [
        hashlib.blake2b(one.digest + digests[s] + pair.tobytes(), digest_size=16).hexdigest()
        for s, pair in zip(addresses.spot.tolist(), layers, strict=True)
    ]
