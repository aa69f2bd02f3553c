"""Parts of a sweep as files: Parquet, written whole or not at all, each with the digest of its bytes within itself.

Knows: how a file says whether it is whole, and which part it is. Does not know: what its columns mean.
"""

import hashlib
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lenscope._version import __version__
from lenscope.files.writing import whole_file
from lenscope.sweeps.parts import Part

PARTS = "parts"
# what stands in a file's metadata in place of its digest while the digest is made
_MARK = b"lenscope-sha256:"
_EMPTY = _MARK + b"0" * 64
_DIGEST = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})")
# bytes that a part may have to be read to see whether it is whole
LARGEST_PART = 4 << 30


def part_content(part: Part, table: pa.Table) -> bytearray:
    """The bytes of a part's file: a Parquet file whose metadata has the digest of all of them."""
    head = {"kind": "sweep part", "part": part.number, "digest": part.digest, "lenscope": __version__}
    metadata = {"sweep": json.dumps(head), "digest": _EMPTY.decode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", write_page_checksum=True)
    content = bytearray(buffer.getvalue())
    at = content.rfind(_EMPTY)
    content[at : at + len(_EMPTY)] = _MARK + hashlib.sha256(content).hexdigest().encode()
    return content


def write_part(folder: Path, part: Part, table: pa.Table) -> None:
    """Write a part into its folder, whole or not at all; LenscopeError where the system says no."""
    content = part_content(part, table)
    with whole_file(folder / PARTS / part.name) as making:
        making.write_bytes(content)


def part_state(folder: Path, part: Part) -> str:
    """Whether a part is there: "missing", "whole", or "damaged", if it is not as it was written, or another one's."""
    path = folder / PARTS / part.name
    try:
        if not path.is_file():
            return "missing" if not path.exists() else "damaged"
        if path.stat().st_size > LARGEST_PART:
            return "damaged"
        content = bytearray(path.read_bytes())
        marks = [*_DIGEST.finditer(content, max(0, len(content) - (1 << 20)))]
        if not marks:
            return "damaged"
        digest = marks[-1][1].decode()
        content[marks[-1].start() : marks[-1].end()] = _EMPTY
        if hashlib.sha256(content).hexdigest() != digest:
            return "damaged"
        head = json.loads((pq.read_schema(pa.BufferReader(content)).metadata or {})[b"sweep"])
        return "whole" if head["digest"] == part.digest else "damaged"
    except Exception:  # whatever a damaged file makes a parser raise
        return "damaged"
