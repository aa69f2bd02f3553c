"""Whether a folder in the cache is as it was made: a seal of its files, which is written last.

Knows: names, sizes and sums of files. Does not know: what the files hold, how they came there (loading.py).
"""

import json
import zlib
from pathlib import Path

import torch

SEAL = "complete.json"
# bytes summed at a time
_PIECE = 1 << 22


def seal(folder: Path) -> None:
    """Write down size and sum of every file of a finished folder."""
    (folder / SEAL).write_text(json.dumps(_contents(folder)), encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Whether a folder holds, to the last byte, what it held when it was sealed."""
    try:
        return bool(json.loads((folder / SEAL).read_text(encoding="utf-8")) == _contents(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _contents(folder: Path) -> dict[str, list[int]]:
    files = sorted(p for p in folder.iterdir() if p.name != SEAL and p.is_file())
    return {p.name: [p.stat().st_size, _sum_of_file(p)] for p in files}


def _sum_of_file(path: Path) -> int:
    """A sum over a file that moves with every byte: of its 8-byte words, piece by piece, each with its place."""
    total, place = 0, 0
    if not path.stat().st_size:
        return 0
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    words = len(data) // 8
    for place, piece in enumerate(data[: 8 * words].view(torch.int64).split(_PIECE // 8), 1):
        total += place * int(piece.sum())
    return (total * 257 + zlib.crc32(data[8 * words :].numpy().data)) % (1 << 61)
