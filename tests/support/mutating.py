"""Mutations of files: damage as disks and networks do it, and files that nobody's writer wrote.

Knows: bytes, JSON, gzip, Parquet, safetensors, the pickles of torch. Does not know: lenscope.

A mutation takes a file's bytes and gives others, or None where it does not apply. DAMAGE is what no reader of a sealed
format may take for the original; FORGED are files that are well formed and say something else.
"""

import gzip
import io
import json
import math
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

# stands for a nesting too deep for json.dumps
DEEP, NEST = "\ue000deep", 100_000
SIZES = (0, 1, 0x7F, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


# -- damage


def flipped(data: bytes, draw: Random) -> bytes | None:
    """One to eight bits, wherever they lie."""
    if not data:
        return None
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def truncated(data: bytes, draw: Random) -> bytes | None:
    return data[: draw.randrange(len(data))] if data else None


def spliced(data: bytes, draw: Random) -> bytes | None:
    """A piece written over another place."""
    (a, b), (at, _) = _piece(data, draw), _piece(data, draw)
    return data[:at] + data[a:b] + data[at + b - a :]


def doubled(data: bytes, draw: Random) -> bytes | None:
    a, b = _piece(data, draw)
    return data[:b] + data[a:]


def removed(data: bytes, draw: Random) -> bytes | None:
    a, b = _piece(data, draw)
    return data[:a] + data[b:]


def exchanged(data: bytes, draw: Random) -> bytes | None:
    """Two pieces in each other's places."""
    a, b, c, d = sorted(draw.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def blanked(data: bytes, draw: Random) -> bytes | None:
    a, b = _piece(data, draw)
    return data[:a] + draw.choice((b"\0", b"\xff")) * (b - a) + data[b:]


def sized(data: bytes, draw: Random) -> bytes | None:
    """A header, a footer or any number in between says another size."""
    if len(data) < 16:
        return None
    size = draw.choice(("<I", "<Q"))
    number = struct.pack(size, draw.choice(SIZES) % (1 << 8 * struct.calcsize(size)))
    at = draw.choice((0, 4, 8, len(data) - 8, len(data) - 12, draw.randrange(len(data) - 8)))
    return data[:at] + number + data[at + len(number) :]


def empty(data: bytes, draw: Random) -> bytes | None:
    return b""


def lengthened(data: bytes, draw: Random) -> bytes | None:
    return data + draw.choice((b"\0", b"\n", b" ", b"x", data[: 1 << 20]))


DAMAGE = (flipped, truncated, spliced, doubled, removed, exchanged, blanked, sized, empty, lengthened)


def _piece(data: bytes, draw: Random) -> tuple[int, int]:
    a = draw.randrange(len(data) + 1)
    return a, min(len(data), a + draw.choice((1, 8, 64, 1024, len(data) // 4)))


# -- text


def marked(data: bytes, draw: Random) -> bytes | None:
    return _text(data, b"\xef\xbb\xbf" + data)


def windows(data: bytes, draw: Random) -> bytes | None:
    return _text(data, data.replace(b"\r\n", b"\n").replace(b"\n", draw.choice((b"\r\n", b"\r"))))


def strange(data: bytes, draw: Random) -> bytes | None:
    """Characters that some readers take for the end of a line, a field or a text, and bytes that are no UTF-8."""
    signs = ("\u2028", "\x0c", "\x85", "\0", "\x1a", '"', "\t", "\n", "\x1b[31m", "\ufeff")
    piece = draw.choice([*(s.encode() for s in signs), b"\xff", b"\xed\xa0\x80", b"\xc3"])
    at = draw.randrange(len(data) + 1)
    return _text(data, data[:at] + piece + data[at:])


def recoded(data: bytes, draw: Random) -> bytes | None:
    if _text(data, data) is None:
        return None
    return data.decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "cp037")), "replace")


def relined(data: bytes, draw: Random) -> bytes | None:
    """A line twice, gone, empty, cut, or in another's place."""
    lines = data.split(b"\n")
    if _text(data, data) is None or len(lines) < 2:
        return None
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(5):
        case 0:
            lines.insert(b, lines[a])
        case 1:
            del lines[a]
        case 2:
            lines[a] = b""
        case 3:
            lines[a] = lines[a][: draw.randrange(len(lines[a]) + 1)]
        case _:
            lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _text(data: bytes, made: bytes) -> bytes | None:
    """What was made of a text; None where the file is none."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return made


# -- JSON


def rewritten(data: bytes, draw: Random) -> bytes | None:
    """One value of a JSON file, or of one of its lines, is another, of another type, gone, or nested deep."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    for n in [-1, *draw.sample(range(len(lines)), min(3, len(lines)))]:
        try:
            value = json.loads(text if n < 0 else lines[n])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            made = _json(changed(value, draw))
            return (made if n < 0 else "\n".join([*lines[:n], made, *lines[n + 1 :]])).encode("utf-8", "surrogatepass")
    return None


def changed(value, draw: Random):
    """A JSON value with one place of it changed."""
    places = list(_places(value))
    if not places:
        return []
    # as many kinds of places as there are keys, not as many as there are numbers in arrays
    names = sorted({name for *_, name in places})
    name = draw.choice(names)
    holder, key, _ = draw.choice([place for place in places if place[2] == name])
    old = holder[key]
    match draw.randrange(5):
        case 0:
            holder[key] = draw.choice(_other(old))
        case 1:
            holder[key] = draw.choice(
                (None, True, [], {}, "", "x", 0, -1, 1.5, [old], {"x": old}, str(old), DEEP, "\ud800", "../../x")
            )
        case 2:
            if isinstance(holder, dict):
                del holder[key]
            else:
                holder.insert(key, old)
        case 3:
            if isinstance(holder, list) and len(holder) > 1:
                other = draw.randrange(len(holder))
                holder[key], holder[other] = holder[other], holder[key]
            else:
                holder[key] = -old if isinstance(old, int | float) and not isinstance(old, bool) else [old, old]
        case _:
            if isinstance(holder, dict):
                holder[draw.choice(("x", f"{key}2", "__class__"))] = old
            else:
                del holder[key]
    return value


def _other(old) -> tuple:
    if isinstance(old, bool) or old is None:
        return True, False, None, 1
    if isinstance(old, int | float):
        numbers = -1, 0, 1, 1e-30, 2**31, 2**53 + 1, 10**12, 10**30, 10**400, 1e308, math.nan, math.inf, -math.inf
        return (*numbers, old + 1, old - 1, -old, old * 1000)
    if isinstance(old, str):
        return old[:-1], old + "x", old.upper(), old[::-1], old * 1000, old + "\n", "\x1b]0;x\x07" + old, ""
    if isinstance(old, list):
        return old[:-1], old[1:], old[::-1], old * 2, old * 1000, [old]
    return {}, list(old), dict(list(old.items())[:-1]), {**old, "": None}


def _places(value, name=""):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        here = f"{name}.{key}" if isinstance(value, dict) and len(value) < 40 else name
        yield value, key, here
        if isinstance(inner, dict | list):
            yield from _places(inner, here)


def _json(value) -> str:
    made = json.dumps(value, ensure_ascii=False)
    return made.replace(json.dumps(DEEP, ensure_ascii=False), "[" * NEST + "]" * NEST)


# -- gzip


def regzipped(data: bytes, draw: Random) -> bytes | None:
    """The text within is another."""
    if data[:2] != b"\x1f\x8b":
        return None
    whole = gzip.decompress(data)
    made = draw.choice((*DAMAGE, *TEXT))(whole, draw)
    return None if made is None else gzip.compress(made, 1)


def bombed(data: bytes, draw: Random) -> bytes | None:
    """A line that is a thousand times as long as the file."""
    if data[:2] != b"\x1f\x8b":
        return None
    return draw.choice((data, b"")) + bomb(draw.choice((b"\0", b"a", b"[", b'"', b"9")))


@cache
def bomb(letter: bytes) -> bytes:
    """1.5 GB of one letter in 1.5 MB."""
    return gzip.compress(letter * (10 << 20), 9) * 150


# -- Parquet


def retabled(data: bytes, draw: Random) -> bytes | None:
    """The table in another order, with other values, columns, types or metadata."""
    if data[:4] != b"PAR1":
        return None
    table = pq.read_table(io.BytesIO(data))
    meta = dict(table.schema.metadata or {})
    n = table.num_rows
    name = draw.choice(table.column_names)
    at = table.column_names.index(name)
    match draw.randrange(9):
        case 0:
            table = table.take(pa.array(np.random.default_rng(draw.randrange(1 << 30)).permutation(n)))
        case 1:
            table = table.slice(draw.randrange(n + 1), draw.randrange(n + 1))
        case 2:
            table = pa.concat_tables([table, table.slice(0, draw.randrange(n + 1))])
        case 3:
            table = table.drop_columns([name])
        case 4:
            table = table.rename_columns([f"{c}2" if c == name else c for c in table.column_names])
        case 5:
            wanted = draw.choice((pa.string(), pa.float64(), pa.float16(), pa.int64(), pa.bool_(), pa.binary()))
            try:
                table = table.set_column(at, name, table[name].cast(wanted, safe=False))
            except pa.ArrowException:
                table = table.set_column(at, name, pa.nulls(n, wanted))
        case 6:
            values = table[name].to_pylist()
            if values:
                row = draw.randrange(len(values))
                values[row] = _cell(values[row], draw)
            try:
                column = pa.array(values, table[name].type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                column = pa.nulls(n, table[name].type)
            table = table.set_column(at, name, column)
        case 7:
            table = table.append_column("extra", pa.array(range(n)))
        case _:
            for key in [k for k in meta if not k.startswith(b"ARROW")]:
                made = rewritten(meta[key], draw)
                meta[key] = meta[key][:-1] if made is None else made
            meta = meta if draw.randrange(6) else {}
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(meta), out)
    return out.getvalue()


def _cell(old, draw: Random):
    if isinstance(old, list):
        made = list(old)
        match draw.randrange(4):
            case 0:
                return made[:-1]
            case 1:
                return made + made[:1]
            case 2:
                return made[::-1]
            case _:
                return [_cell(made[0], draw), *made[1:]] if made else [None]
    return draw.choice((None, *_other(old)))


# -- safetensors


def retensored(data: bytes, draw: Random) -> bytes | None:
    """Another header of the right size, or other numbers behind the same one."""
    if len(data) < 8:
        return None
    (size,) = struct.unpack("<Q", data[:8])
    head, body = data[8 : 8 + size], data[8 + size :]
    if head[:1] != b"{" or size > len(data):
        return None
    if draw.randrange(3):
        made = rewritten(head, draw)
        return None if made is None else struct.pack("<Q", len(made)) + made + body
    at = 4 * draw.randrange(max(1, len(body) // 4))
    number = struct.pack("<f", draw.choice((math.nan, math.inf, -math.inf, 1e38, -3.0)))
    return data[: 8 + size + at] + number + data[8 + size + at + 4 :]


# -- pickles of torch


class _Calls:
    """Pickled, it is a call of `function`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def repickled(data: bytes, draw: Random) -> bytes | None:
    """Other things than the tensors that were saved: far larger, of another kind, damaged inside a sound archive."""
    if data[:2] != b"PK":
        return None
    if not draw.randrange(4):
        return _rezipped(data, draw)
    state = torch.load(io.BytesIO(data), weights_only=True)
    holder = state["J"] if isinstance(state.get("J"), dict) and draw.randrange(4) else state
    key = draw.choice(list(holder))
    old = holder[key]
    tensor = old if isinstance(old, torch.Tensor) else torch.zeros(4, 4)
    things = (
        lambda: _Calls(bytearray, 10**10),
        lambda: _Calls(print, "ran"),
        lambda: OrderedDict(x=old),
        lambda: torch.zeros(1).expand(10**5, 10**5),
        lambda: torch.zeros(1).expand(10**9),
        lambda: torch.zeros(1).expand(tensor.shape),
        lambda: tensor.to_sparse(),
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6)),
        lambda: tensor.to("meta"),
        lambda: torch.empty(10**6, 10**6, device="meta"),
        lambda: tensor.half(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.int32),
        lambda: tensor * math.nan,
        lambda: tensor * 1e38,
        lambda: tensor.double() * 1e300,
        lambda: tensor[..., :1],
        lambda: tensor[None],
        lambda: tensor.T.contiguous().T,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: torch.zeros(0),
        lambda: None,
        lambda: "text",
        lambda: 10**400,
        lambda: [tensor],
        lambda: -1,
    )
    if draw.randrange(4):
        holder[key] = draw.choice(things)()
    else:
        names = (f"{key}x", -1, 99, "99.weight", "1" * 5000 + ".weight", True, 1.5, None)
        holder[draw.choice(names)] = holder.pop(key) if draw.randrange(2) else old
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=bool(draw.randrange(8)))
    return out.getvalue()


def _rezipped(data: bytes, draw: Random) -> bytes:
    """The archive's members: deflated, damaged with a right checksum, gone, twice, or far larger than they were."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        names = old.namelist()
        chosen, how = draw.choice(names), draw.randrange(20)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if draw.randrange(2) else zipfile.ZIP_STORED) as new:
            for name in names:
                content = old.read(name)
                if name == chosen:
                    if how < 8:
                        content = draw.choice(DAMAGE)(content, draw) or b""
                    elif how < 11:
                        continue
                    elif how < 14:
                        new.writestr(zipfile.ZipInfo(name + "2"), content)
                    elif how == 14:
                        info = zipfile.ZipInfo(name)
                        info.compress_type = zipfile.ZIP_DEFLATED
                        with new.open(info, "w", force_zip64=True) as member:
                            for _ in range(150):
                                member.write(b"\0" * (10 << 20))
                        continue
                new.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


TEXT = (marked, windows, strange, recoded, relined, rewritten)
FORGED = (*TEXT, regzipped, bombed, retabled, retensored, repickled)
