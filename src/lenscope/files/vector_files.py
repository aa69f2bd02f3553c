"""Files of vectors and of what they are called: safetensors, .npy, Parquet; lines of text, JSON by lines.

Knows: which shapes vectors have, how much a file may hold, that nothing in it is run. Does not know: what vectors mean.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.files.text_files import read_json_lines, read_lines
from lenscope.files.untrusted import checked_reading, read_safetensors

if TYPE_CHECKING:
    from torch import Tensor

VECTOR_FILES = (".safetensors", ".npy", ".parquet")
# the tensor or the column that holds vectors, where there are several
VECTORS = "vectors"
# bytes that a file of vectors may have
LARGEST = 8 << 30


def read_vectors(path: str | os.PathLike[str]) -> "Tensor":
    """The vectors (N, D), or (N, L, D) at L layers, of a .safetensors, .npy or .parquet file, in float32 or float64.

    A file of several tensors or columns has them as "vectors"; a Parquet column has a list of numbers in each row.
    Raises LenscopeError for other files, for what is no array of numbers or not finite, and above 8 GiB.
    """
    import torch

    place = Path(path)
    if place.suffix not in VECTOR_FILES:
        raise LenscopeError(f"{place}: give vectors in a {', '.join(VECTOR_FILES)} file")
    with checked_reading(place, "is no file of vectors"):
        if place.stat().st_size > LARGEST:
            raise LenscopeError(f"{place}: is larger than {LARGEST:,} bytes; give fewer vectors")
        if place.suffix == ".safetensors":
            vectors = _only(place, read_safetensors(place))
        elif place.suffix == ".npy":
            # mapped, so that a header that promises more than there is allocates nothing; objects would be code
            mapped = np.load(place, mmap_mode="r", allow_pickle=False)
            if mapped.dtype.kind not in "fiu":
                raise LenscopeError(f"{place}: holds {mapped.dtype}, no numbers")
            vectors = torch.from_numpy(np.array(mapped, dtype=np.float64 if mapped.dtype.itemsize > 4 else np.float32))
        else:
            vectors = _column_of_vectors(place)
        if not isinstance(vectors, torch.Tensor) or vectors.is_complex() or vectors.dtype == torch.bool:
            raise LenscopeError(f"{place}: holds no numbers")
        if vectors.ndim not in (2, 3) or not vectors.numel():
            raise LenscopeError(f"{place}: holds an array of shape {tuple(vectors.shape)}; give (N, D) or (N, L, D)")
        vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
        if not torch.isfinite(vectors).all():
            raise LenscopeError(f"{place}: its vectors hold NaN or infinity")
        return vectors


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """What rows are called: the lines of a text file, or of a .jsonl file its texts or its objects' "label"; .gz too.

    Raises LenscopeError for an empty line, which would be a row without a label, and for what is no text.
    """
    if Path(os.fspath(path).removesuffix(".gz")).suffix != ".jsonl":
        labels = list(read_lines(path))
        empty = next((n for n, label in enumerate(labels, 1) if not label.strip()), None)
        if empty is not None:
            raise LenscopeError(f"{os.fspath(path)}, line {empty}: is empty; give a label in each line")
        return labels
    values = [(where, row.get("label") if isinstance(row, dict) else row) for where, row in read_json_lines(path)]
    for where, value in values:
        if not isinstance(value, str) or not value.strip():
            raise LenscopeError(f'{where}: give a text, or an object with a text as "label"')
    return [str(value) for _, value in values]


def read_token_rows(path: str | os.PathLike[str]) -> list[tuple[str, int | str, str]]:
    """(prompt, token, label) of each line of a .jsonl file, objects with these keys; a token is a text or an index.

    A row without a token has its last one, -1. Raises LenscopeError, with the line, for anything else.
    """
    rows: list[tuple[str, Any, str]] = []
    for where, row in read_json_lines(path):
        token = row.get("token", -1) if isinstance(row, dict) else None
        texts = [row.get(key) if isinstance(row, dict) else None for key in ("prompt", "label")]
        known = isinstance(token, int | str) and not isinstance(token, bool)
        if not known or any(not isinstance(t, str) or not t.strip() for t in texts):
            raise LenscopeError(f'{where}: give an object with texts as "prompt" and "label", and a "token"')
        rows.append((str(texts[0]), token, str(texts[1])))
    if not rows:
        raise LenscopeError(f"{os.fspath(path)}: has no rows")
    return rows


def _only(place: Path, arrays: dict[str, Any]) -> Any:
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if VECTORS not in arrays:
        names = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise LenscopeError(f"{place}: holds {names}; name the vectors {VECTORS!r}")
    return arrays[VECTORS]


def _column_of_vectors(place: Path) -> "Tensor":
    import torch

    from lenscope.files.parquet_tables import read_columns

    lists = {name: column for name, column in read_columns(place).items() if isinstance(column, tuple)}
    lengths, values = _only(place, lists)
    if not len(lengths) or (lengths != lengths[0]).any():
        raise LenscopeError(f"{place}: its vectors are of several lengths")
    return torch.from_numpy(np.asarray(values, dtype=np.float64).reshape(len(lengths), -1))
