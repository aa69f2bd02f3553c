"""Digests of contents: a file says by its SHA-256 whether it is as it was saved.

Knows: what of a document, or of a head and its columns, a digest is of. Does not know: what they mean, how files are
read and written.

A file of version 2 holds the SHA-256 of its contents; one of version 1, which lenscope 0.1.0 wrote, has none.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

# the version of what is written
FORMAT = 2
# whole numbers, numbers or texts by row; lists as (lengths, all their values)
Column = Any


def check_format(version: Any) -> None:
    """ValueError unless this lenscope reads files of a version."""
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise ValueError(f"it has format {str(version)[:40]}; this lenscope reads 1–{FORMAT}")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with the SHA-256 of its contents."""
    return {**document, "sha256": _sha256(document, {})}


def unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document whose contents are those that its SHA-256 is of, without it; ValueError for another."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    version = rest.get("version")
    check_format(version)
    if "sha256" in document or version != 1:
        _check_intact(document.get("sha256") == _sha256(rest, {}))
    return rest


def stamped(head: dict[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    """The head of a table with the SHA-256 of both."""
    return {**head, "sha256": _sha256(head, columns)}


def unstamped(head: dict[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    """The head without its digest; ValueError unless that is the digest of the head and the columns in this order."""
    rest = {name: value for name, value in head.items() if name != "sha256"}
    if "sha256" in head or rest.get("version") != 1:
        _check_intact(head.get("sha256") == _sha256(rest, columns))
    return rest


def _check_intact(intact: bool) -> None:
    if not intact:
        raise ValueError("it is damaged or was changed: its contents are not those that were saved")


def _sha256(head: Mapping[str, Any], columns: Mapping[str, Column]) -> str:
    total = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(columns):
        column = columns[name]
        total.update(f"\n{name}\n".encode())
        for part in column if isinstance(column, tuple) else (column,):
            if isinstance(part, list):
                for one in part:
                    raw = one.encode()
                    total.update(len(raw).to_bytes(8, "little") + raw)
            else:
                # every NaN as the same one, numbers in the order of bytes that most processors have
                clean = np.where(np.isnan(part), np.nan, part) if part.dtype.kind == "f" else part
                total.update(f"{part.dtype.kind}{part.shape}".encode())
                total.update(np.ascontiguousarray(clean, dtype=part.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()
