"""Files of unknown origin: whatever a parser raises is one line, and limits hold before anything is allocated."""

import lzma
import zlib

import pyarrow as pa
import pytest
from safetensors import SafetensorError

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, read_json, read_safetensors, read_text


class PanicException(BaseException):
    """As a parser written in Rust raises it."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        EOFError("ended\nhere"),
        zlib.error("-3"),
        lzma.LZMAError("x"),
        RecursionError("x"),
        MemoryError(),
        KeyError("layers"),
        IndexError("x"),
        AttributeError("x"),
        OverflowError("x"),
        AssertionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
        SafetensorError("x"),
        pa.ArrowInvalid("x"),
        RuntimeError("\x1b[31m"),
        PanicException("x"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_parser_raises_is_one_line(error):
    with pytest.raises(LenscopeError) as told, checked_reading("here", "is damaged"):
        raise error
    assert str(told.value).startswith("here: is damaged (")
    assert str(told.value).isprintable()
    assert told.value.__cause__ is error


def test_what_is_no_fault_of_a_file_passes():
    for error in (KeyboardInterrupt(), SystemExit(3), LenscopeError("mine")):
        with pytest.raises(type(error)) as told, checked_reading("here"):
            raise error
        assert told.value is error


def test_text_has_a_limit_and_may_start_with_a_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]
    assert read_text(path, 6) == "[1]"
    with pytest.raises(LenscopeError, match="larger than 5 bytes"):
        read_text(path, 5)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    for path, told in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        ("/dev/zero", "no regular file"),
    ):
        with pytest.raises(LenscopeError, match=told):
            read_text(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 1_000_000, '{"a": ', "\x00", '{"a": "\xff"}'])
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LenscopeError) as told:
        read_json(path)
    assert str(told.value).isprintable()


def test_safetensors_that_are_none(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for content in (b"", b"\xff" * 8, len(header).to_bytes(8, "little") + header):
        path.write_bytes(content)
        with pytest.raises(LenscopeError, match="no file of tensors"):
            read_safetensors(path)
