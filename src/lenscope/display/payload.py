"""What a page is given of a result: a head of JSON values, and arrays as compressed bytes within it.

Knows: how arrays become bytes that compress well, and come back. Does not know: results, what the arrays mean.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lenscope.errors import LenscopeError

# bits of a float32's mantissa that are left out: 13 of 23 stay, which is 6e-5 of a value
_CUT = 10


def packed(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Give a result's payload: its head, and under "arrays" all its arrays in one compressed block.

    Arrays are floats, integers or booleans of any shape. Floats become float32 with 13 bits of mantissa, NaN being what
    is not known and infinity what is larger; integers become int32, booleans uint8. Raises LenscopeError for integers
    beyond 32 bits.
    """
    index: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, values in arrays.items():
        plain = _plain(name, np.asarray(values))
        index[name] = {"dtype": plain.dtype.name, "shape": list(plain.shape), "offset": offset, "length": plain.size}
        # all first bytes, then all second ones: bytes of one kind compress together
        parts.append(np.frombuffer(plain.tobytes(), np.uint8).reshape(plain.size, plain.itemsize).T.tobytes())
        offset += plain.nbytes
    data = base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii")
    return {**head, "arrays": {"encoding": "deflate", "index": index, "data": data}}


def unpacked_arrays(payload: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Give the arrays of a payload, as the page sees them."""
    arrays = payload["arrays"]
    data = zlib.decompress(base64.b64decode(arrays["data"]))
    results = {}
    for name, entry in arrays["index"].items():
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        block = np.frombuffer(data, np.uint8, entry["length"] * dtype.itemsize, entry["offset"])
        values = np.frombuffer(block.reshape(dtype.itemsize, -1).T.tobytes(), dtype)
        results[name] = values.reshape(entry["shape"]).astype(dtype.newbyteorder("="))
    return results


def vocabulary_payload(texts: Mapping[int, str], ids: Iterable[int] | None = None) -> dict[str, list[Any]]:
    """Give token ids and their texts side by side, as pages have them; `ids` are those that the page needs."""
    wanted = sorted(texts if ids is None else {i for i in ids if i in texts})
    return {"ids": wanted, "texts": [texts[i] for i in wanted]}


def _plain(name: str, values: np.ndarray) -> np.ndarray:
    """An array in one of the three forms that the page reads, little-endian and in one piece."""
    if values.dtype == bool or values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8, order="C")
    if values.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise LenscopeError(f"{name}: holds {values.max()}; a page's integers have 32 bits")
        return np.asarray(values, dtype="<i4", order="C")
    # what is beyond the largest float32 is infinite there
    with np.errstate(over="ignore"):
        bits = np.asarray(values, dtype="<f4", order="C").view("<u4")
    finite = np.isfinite(bits.view("<f4"))
    half = np.uint32(1 << (_CUT - 1))
    mask = np.uint32(0xFFFFFFFF >> _CUT << _CUT)
    return np.where(finite, (bits + half) & mask, bits).astype("<u4").view("<f4")
