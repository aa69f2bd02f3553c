"""One reader of text files: what a line is, which marks are none of the text, tables as other tools write them."""

import csv
import gzip
import io
import json
import sys

import pytest

from lenscope.errors import LenscopeError
from lenscope.files import text_files as textfiles
from lenscope.files.text_files import lines_or_mistakes, read_json_lines, read_lines, read_table

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_whatever_wrote_them(tmp_path, encoding, end, packed):
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    wanted = ["один", "two\u2028still two\u2029\x85", "an\x0cother\x0b\x1c", "", "  🦊 "]
    for last in ("", end):
        raw = (end.join(wanted) + last).encode(encoding)
        path.write_bytes(gzip.compress(raw) if packed else raw)
        assert list(read_lines(path)) == wanted


def test_marks_without_an_own_codec(tmp_path):
    path = tmp_path / "a.txt"
    for mark, codec in ((b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"), (b"\x00\x00\xfe\xff", "utf-32-be")):
        path.write_bytes(mark + "a\nü".encode(codec))
        assert list(read_lines(path)) == ["a", "ü"]
    path.write_bytes("\ufeffa\n\ufeffb".encode())
    assert list(read_lines(path)) == ["a", "b"]
    path.write_bytes(b"a\nb\0\0\0")
    assert list(read_lines(path)) == ["a", "b"]
    path.write_bytes(b"")
    assert list(read_lines(path)) == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a\xe9b", r"is not UTF-8 \(byte 0xe9\); convert it"),
        ("text".encode("utf-16-le"), "NUL bytes"),
        (b"\x00\x00\x01binary\n", "NUL bytes"),
        (b"\xff\xfea", "is not UTF-16"),
    ],
)
def test_what_is_no_text_is_said_in_one_line(tmp_path, raw, message):
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(LenscopeError, match=rf"^{path}, line 1: .*{message}"):
        list(read_lines(path))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_lines_before_one_that_is_no_text_are_read(tmp_path, encoding, packed):
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    wide = encoding in ("utf-16", "utf-32")
    raw = "ü one\r\n\n\ufeffthree\nbad \udce9\nnext\n".encode(encoding, "surrogatepass" if wide else "surrogateescape")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    lines = read_lines(path)
    assert [next(lines) for _ in range(3)] == ["ü one", "", "three"]
    name = encoding.removesuffix("-sig").upper()
    with pytest.raises(LenscopeError, match=rf"^{path}, line 4: is not {name} \(byte 0xe9\); convert it"):
        next(lines)


def test_a_character_that_is_cut_at_the_end_of_a_file_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo ü".encode()[:-1])
    lines = read_lines(path)
    assert next(lines) == "one"
    with pytest.raises(LenscopeError, match=rf"^{path}, line 2: is not UTF-8 \(byte 0xc3\)"):
        next(lines)


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress(b"some text\n" * 100)
    for name, raw in (
        ("cut.gz", whole[:-12]),
        ("damaged.gz", whole[:15] + b"\xff" * 8 + whole[20:]),
        ("none.gz", b"x"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(LenscopeError, match=f"{name}: cannot be read"):
            list(read_lines(tmp_path / name))
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / ("x" * 300)):
        with pytest.raises(LenscopeError, match="cannot be read"):
            list(read_lines(path))


def test_a_line_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "LONGEST_LINE", 1000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 1000 + b"\n" + b"b" * 1000))
    assert [len(line) for line in read_lines(path)] == [1000, 1000]
    path.write_bytes(gzip.compress(b"a" * 1001))
    with pytest.raises(LenscopeError, match=r"a\.txt\.gz, line 1: has more than 1,000 characters"):
        list(read_lines(path))


def test_standard_input_as_bytes_as_text_and_line_by_line(monkeypatch):
    raw = "\ufeffone\r\ntwo\u2028\x0c\rthree".encode()
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(raw)), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(read_lines("-")) == ["one", "two\u2028\x0c", "three"]
    assert not stdin.buffer.closed
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\ntwo\u2028"))
    assert list(read_lines("-")) == ["one", "two\u2028"]
    seen = []

    def typed():
        for n in range(3):
            seen.append(n)
            yield f"{n}\n"

    monkeypatch.setattr(sys, "stdin", typed())
    assert next(read_lines("-")) == "0"
    assert seen == [0]


def test_lines_go_on_behind_one_that_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "LONGEST_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ncaf\xe9\n" + b"x" * 100 + b"\na\0b\nlast\0\0")
    lines = [line if isinstance(line, str) else str(line) for line in lines_or_mistakes(path)]
    assert lines == [
        "one",
        f"{path}, line 2: is not UTF-8 (byte 0xe9); convert it",
        f"{path}, line 3: has more than 8 characters; break it up",
        f"{path}, line 4: is no text (it has NUL bytes); give UTF-8, or UTF-16 with its mark",
        "last",
    ]


def test_json_by_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": "ü"}) + "\r\n\r\n[1]\r", encoding="utf-8-sig")
    assert list(read_json_lines(path)) == [(f"{path}, line 1", {"a": "ü"}), (f"{path}, line 3", [1])]
    for bad, why in (
        ("{", "Expecting property name enclosed in double quotes, column 2"),
        ('{"text": "a" "b"}', "Expecting ',' delimiter, column 14"),
        ('{"text": "a', "Unterminated string starting, column 10"),
        ("[" * 100_000, "it is nested too deeply"),
        ("1" * 10_000, "Exceeds the limit"),
    ):
        path.write_text("1\n" + bad)
        with pytest.raises(LenscopeError, match=rf"line 2: is not JSON \({why}"):
            list(read_json_lines(path))


ROWS = [
    ["relation", "subject", "object"],
    ["author", "Dune", 'Frank "the" Herbert'],
    ["song", '"Weird Al" Yankovic', "Eat It, or not"],
    ["lines", "one\ntwo\nthree", "tabs\there"],
    ["", "", "only the last"],
    ["album", '"Heroes"', 'x"'],
]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_tables_as_data_frames_write_them(tmp_path, encoding, end, quoting, name):
    path = tmp_path / name
    with path.open("w", encoding=encoding, newline="") as file:
        made = csv.writer(file, delimiter="\t" if name == "a.tsv" else ",", quoting=quoting, lineterminator=end)
        made.writerows(ROWS)
    found = list(read_table(path))
    assert [list(row.values()) for _, row in found] == ROWS[1:]
    assert [where for where, _ in found] == [f"{path}, line {n}" for n in (2, 3, 4, 7, 8)]
    assert list(found[0][1]) == ROWS[0]


def test_tables_without_quoting(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('subject\tobject\n"Weird Al" Yankovic\t5" disk\nopen\t"never closed\n"Heroes\tlow\nend\tof it\n')
    assert [tuple(row.values()) for _, row in read_table(path)] == [
        ('"Weird Al" Yankovic', '5" disk'),
        ("open", '"never closed'),
        ('"Heroes', "low"),
        ("end", "of it"),
    ]
    path.write_text('a\tb\nx\t"one\ny"\tz\n')
    with pytest.raises(LenscopeError, match="line 2: a field begins with a quote that is closed 1 lines below"):
        list(read_table(path))


def test_an_index_and_short_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",subject,object,text\n0,a,b\n\n , \n1,c,d,e,\n")
    assert list(read_table(path)) == [
        (f"{path}, line 2", {"subject": "a", "object": "b", "text": ""}),
        (f"{path}, line 5", {"subject": "c", "object": "d", "text": "e"}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "subject;object\na;b\n", "no commas between columns: 'subject;object'; write it with commas"),
        ("a.tsv", "subject,object\na,b\n", "no tabs between columns"),
        ("a.tsv", "subject    object|x\n", "no tabs between columns"),
        ("a.csv", "a,b\n1,2,3\n", "line 2: has 3 columns, and the header 2"),
        ("a.csv", "a,a\n1,2\n", "two columns named 'a'"),
        ("a.csv", 'a,b\n"x" y,2\n', "line 2: cannot be cut into columns"),
        ("a.csv", 'a,b\n"x,2\n', "line 2: cannot be cut into columns"),
        ("a.jsonl", "[1]\n", "line 1: give an object"),
        ("a.xlsx", "", "give a .tsv, .csv, .jsonl file"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(LenscopeError, match=message):
        list(read_table(tmp_path / name))
