"""What a Parquet file says of itself, read without pyarrow, which allocates what a page says, or ends the process.

Knows: the footer and the page headers (Apache Parquet's parquet.thrift, in Thrift's compact protocol), and how many
values they say there are. Does not know: what the columns mean.
"""

import os
from pathlib import Path
from typing import Any

_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
# fields of parquet.thrift
_ROW_GROUPS, _COLUMNS, _CHUNK = 4, 1, 3
_VALUES, _DATA, _DICTIONARY, _CHUNK_SIZE = 5, 9, 11, 7
_UNPACKED, _PACKED, _PAGE_KINDS = 2, 3, (5, 7, 8)
# structures within structures
_DEEPEST = 16


def declared_sizes(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How many values, and how many bytes of unpacked pages, a Parquet file says that it holds.

    Raises ValueError for a file whose footer or pages are not where they should be, EOFError where it ends too early.
    """
    path = Path(path)
    total = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, total - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != b"PAR1" or length > total - 12:
            raise ValueError("it has no footer of Parquet")
        file.seek(total - 8 - length)
        footer = _Reader(file.read(length)).struct()
        values = unpacked = 0
        for group in footer[_ROW_GROUPS]:
            for column in group[_COLUMNS]:
                chunk = column[_CHUNK]
                at = min(chunk[name] for name in (_DATA, _DICTIONARY) if chunk.get(name))
                stop = at + chunk[_CHUNK_SIZE]
                if not 4 <= at <= stop <= total - 8 - length:
                    raise ValueError("its columns are not within it")
                # a column says it of itself and of each page: what is more counts
                declared, values = values + max(0, chunk[_VALUES]), values
                while at < stop:
                    file.seek(at)
                    reader = _Reader(file.read(min(1 << 16, stop - at)))
                    page = reader.struct()
                    if page[_PACKED] < 0 or page[_UNPACKED] < 0:
                        raise ValueError("a page of it has a size below 0")
                    at += reader.at + page[_PACKED]
                    unpacked += page[_UNPACKED]
                    values += sum(max(0, page[kind][1]) for kind in _PAGE_KINDS if kind in page)
                values = max(declared, values)
    return values, unpacked


class _Reader:
    """Thrift's compact protocol: structures as dictionaries by field number, lists as lists."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The structure that begins here."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            fields[number] = kind == 1 if kind in _BOOLEANS else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _BYTE or kind in _BOOLEANS:
            return self._byte()
        if kind in _INTEGERS:
            return self._integer()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in _LISTS:
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            if count > len(self.content):
                raise ValueError("a list of its footer is longer than the footer")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("its footer has a type that Parquet does not use")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        if self.at + count > len(self.content):
            raise EOFError("its footer or a page ends too early")
        self.at += count
        return self.content[self.at - count : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of its footer is too large")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
