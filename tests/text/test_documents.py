"""Documents from every kind of file, list and stream, against what was written into them; what goes wrong."""

import gzip
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_corpora import EOS, TEXTS, joined, lm_with, plain, split_at, write_jsonl

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.text import corpus as corpora
from lenscope.text import documents
from lenscope.text.corpus import Corpus


def texts_read(found, seed=0, epoch=0):
    return list(found.read(seed, epoch))


def write_zst(path):
    write_jsonl(path.with_name("raw.part"))
    raw = path.with_name("raw.part").read_bytes()
    with pa.output_stream(str(path), compression="zstd") as out:
        out.write(raw)


FORMATS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": lambda path: write_jsonl(path, gzip.open),
    "a.jsonl.zst": write_zst,
    "a.json": lambda path: path.write_text(json.dumps([{"text": t} for t in TEXTS])),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(TEXTS).encode())),
    "a.parquet": lambda path: pq.write_table(pa.table({"n": list(range(40)), "text": TEXTS}), path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(lm, tmp_path, name):
    FORMATS[name](tmp_path / name)
    expected = joined(Corpus.open(lm, TEXTS, length=32).batches())
    corpus = Corpus.open(lm, tmp_path / name, length=32)
    assert joined(corpus.batches()) == expected
    assert joined(corpus.batches()) == expected
    source = corpus.provenance()["sources"][0]
    raw = (tmp_path / name).read_bytes()
    assert (source["bytes"], source["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_lists_iterators_and_streams_give_the_same_documents(lm):
    found = [
        documents.find_documents(d)
        for d in (TEXTS, tuple(TEXTS), iter(TEXTS), (t for t in TEXTS), lambda: iter(TEXTS), dict.fromkeys(TEXTS))
    ]
    for one in found:
        assert sorted(texts_read(one)) == sorted(TEXTS)
        assert texts_read(one) == texts_read(one)
        assert texts_read(one, seed=1) != texts_read(one)
        assert texts_read(one, epoch=1) != texts_read(one)


def test_folders_patterns_and_paths(tmp_path):
    (tmp_path / "deep").mkdir()
    for n, place in enumerate(["b.txt", "a.txt", "deep/c.txt", ".hidden.txt", "notes.md"]):
        (tmp_path / place).write_text(f"text {n}")
    folder = documents.find_documents(str(tmp_path))
    assert sorted(texts_read(folder)) == ["text 0", "text 1", "text 2"]
    assert [Path(s["path"]).name for s in folder.about()["sources"]] == ["a.txt", "b.txt", "c.txt"]
    assert sorted(texts_read(documents.find_documents(str(tmp_path / "*.txt")))) == ["text 0", "text 1"]
    two = documents.find_documents([tmp_path / "a.txt", tmp_path / "deep"])
    assert sorted(texts_read(two)) == ["text 1", "text 2"]


def test_another_field_and_columns_of_token_ids(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    assert sorted(texts_read(documents.find_documents(tmp_path / "a.jsonl", "body"))) == sorted(TEXTS)
    pq.write_table(pa.table({"ids": [[1, 2, 3], None, [4]]}), tmp_path / "b.parquet")
    assert sorted(texts_read(documents.find_documents(tmp_path / "b.parquet", "ids"))) == [(1, 2, 3), (4,)]


@pytest.mark.parametrize("unit", ["A paragraph of a few words.\n\n", "line\r\n\r\n", "one line\n", "word ", "語", "🙂"])
def test_a_long_text_file_is_cut_where_it_hurts_least(tmp_path, unit):
    text = unit * (40_000 // len(unit.encode())) + "end"
    (tmp_path / "a.txt").write_bytes(text.encode())
    shelf = documents.find_documents(tmp_path / "a.txt")
    found = [shelf._document(n) for n in range(len(shelf))]
    assert "".join(found) == text
    assert len(found) >= 3
    assert all(len(p.encode()) <= 16_384 for p in found)
    assert all(p.endswith(unit) for p in found[:-1])


def test_a_piece_does_not_end_at_an_early_blank_line(tmp_path):
    (tmp_path / "a.txt").write_text("Title\n\n" + "a line of words\n" * 3000)
    shelf = documents.find_documents(tmp_path / "a.txt")
    sizes = [len(shelf._document(n)) for n in range(len(shelf))]
    assert min(sizes[:-1]) >= 8192


def test_a_short_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree", encoding="utf-8-sig")
    assert texts_read(documents.find_documents(tmp_path / "a.txt")) == ["one\n\ntwo\n\nthree"]


def test_files_are_in_a_truly_random_order():
    shelf = documents.find_documents([str(n) for n in range(1000)])
    order = np.array([int(t) for t in texts_read(shelf)])
    assert sorted(order) == list(range(1000))
    # 4 standard deviations of the rank correlation of random orders
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 4 / 1000**0.5
    assert abs(np.corrcoef(order, texts_to_ints(texts_read(shelf, epoch=1)))[0, 1]) < 4 / 1000**0.5


def texts_to_ints(texts):
    return np.array([int(t) for t in texts])


def test_streams_are_shuffled_within_a_buffer_and_not_held(monkeypatch):
    monkeypatch.setattr(documents, "BUFFER", 10)
    given = []

    def start():
        for n in range(200):
            given.append(n)
            yield str(n)

    reading = documents.find_documents(start).read(0, 0)
    first = int(next(reading))
    assert len(given) == 11, "the stream was read ahead of its buffer"
    order = [first, *map(int, reading)]
    assert sorted(order) == list(range(200))
    assert order[:100] != sorted(order[:100])
    assert all(n <= place + 10 for place, n in enumerate(order))


# -- what goes wrong


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}\n',
            r"document 2: has no field 'text'; name one of these as field \(--field\): body",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"document 2: is not a line of JSON"),
        ("a.jsonl", b'{"text": 3}\n', r"document 1: is neither a text nor a list of token ids"),
        ("a.txt", b"caf\xe9 au lait", r"document 1: is not UTF-8 \(byte 0xe9\)"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.zst", b"no zstd", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.json", b'{"text": "x"}', "is not a list"),
        ("a.json", b"[1, 2", "cannot be read"),
        ("a.json", b"[1, 2]", "document 1: is neither"),
        ("a.md", b"text", r"a\.md: lenscope cannot read such files; give one that ends in \.txt"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
    ],
)
def test_broken_files_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ls.LenscopeError, match=words) as caught:
        texts_read(documents.find_documents(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    for name in ("a.txt", "./thing", "/no/where", str(tmp_path / "*.jsonl"), " "):
        with pytest.raises(ls.LenscopeError, match=r"no such file|no files there|empty name"):
            documents.find_documents(name)
    with pytest.raises(ls.LenscopeError, match="cannot be read"):
        documents.find_documents([Path("c")])
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ls.LenscopeError, match=r"no column 'text'; name one of these as field \(--field\): body, n"):
        documents.find_documents(tmp_path / "a.parquet")
    with pytest.raises(ls.LenscopeError, match="data 3: give a path"):
        documents.find_documents(3)


def test_names_of_files_are_not_taken_for_texts(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ls.LenscopeError, match="a list of strings is a list of texts; for files, give Path"):
        documents.find_documents([str(tmp_path / "a.txt")])


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path)
    found = documents.find_documents(path)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ls.LenscopeError, match="was changed"):
        texts_read(found)


def test_half_characters_of_scraped_json_do_not_stop_a_reading(lm, tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "broken \ud83d emoji, and more words to fill a row"}' + "\n")
    batch = next(Corpus.open(lm, tmp_path / "a.jsonl", length=16).batches())
    assert batch.ids.shape == (1, 16) or len(batch.ids) > 1


def test_text_needs_a_tokenizer(lm):
    with pytest.raises(ls.LenscopeError, match="without a tokenizer: give documents as lists of token ids"):
        list(Corpus.open(lm_with(lm, None), TEXTS).batches())


# -- the hub


def test_without_datasets_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ls.LenscopeError, match=r"owner/name: no such file or folder; .*pip install 'lenscope\[hub\]'"):
        documents.find_documents("owner/name")


class FakeHub(SimpleNamespace):
    __version__ = "5.0"
    asked, shuffles = (), ()

    def load_dataset(self, path, name, split, revision, streaming):
        self.asked = (path, name, split, revision, streaming)
        if self.broken == "load":
            raise ConnectionError("Couldn't reach\nthe hub")
        return self

    def shuffle(self, seed, buffer_size):
        self.shuffles = (*self.shuffles, (seed, buffer_size))
        return self

    def __iter__(self):
        for n, text in enumerate(TEXTS):
            if self.broken == "read" and n == 20:
                raise OSError("connection reset")
            yield {"text": text, "n": n}


def test_a_data_set_of_the_hub_is_streamed(lm, monkeypatch):
    hub = FakeHub(broken="")
    monkeypatch.setattr(corpora, "MIXED", 1)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    corpus = Corpus.open(lm, "owner/name@v2:config:validation", length=32)
    assert hub.asked == ("owner/name", "config", "validation", "v2", True)
    ids, _, begins, *_ = joined(corpus.batches())
    assert {tuple(d) for d in split_at(ids, begins)[:-1]} <= {(EOS, *plain(t)) for t in TEXTS}
    assert corpus.provenance()["hub"]["revision"] == "v2"
    list(Corpus.open(lm, "plain", length=32, epochs=2).batches())
    assert hub.asked == ("plain", None, "train", None, True)
    assert len(set(hub.shuffles[-2:])) == 2
    with pytest.raises(ls.LenscopeError, match=r"has no field 'body'; name one of these as field \(--field\): text, n"):
        list(Corpus.open(lm, "owner/name", field="body").batches())
    with pytest.raises(ls.LenscopeError, match="is named owner/name@revision:config:split"):
        Corpus.open(lm, "a:b:c:d")


@pytest.mark.parametrize(("broken", "reason"), [("load", "Couldn't reach the hub"), ("read", "connection reset")])
def test_a_hub_that_cannot_be_reached_is_one_line(lm, monkeypatch, broken, reason):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(broken=broken))
    with pytest.raises(ls.LenscopeError, match=rf"owner/name: cannot be read .*\({reason}\); check the name") as caught:
        list(Corpus.open(lm, "owner/name").batches())
    assert "\n" not in str(caught.value)


ROWS = ["The capital of France is Paris.", "日本語 🦊 text", "one\u2028line"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_files_in_any_encoding_and_with_any_line_ends(tmp_path, encoding, end, packed):
    def write(path, raw):
        if packed == ".zst":
            with pa.output_stream(str(path), compression="zstd") as out:
                out.write(raw)
        else:
            path.write_bytes(gzip.compress(raw) if packed else raw)
        return documents.find_documents(path)

    lines = end.join(json.dumps({"text": t}, ensure_ascii=False) for t in ROWS) + end + end
    assert sorted(texts_read(write(tmp_path / f"a.jsonl{packed}", lines.encode(encoding)))) == sorted(ROWS)
    text = end.join(ROWS)
    assert texts_read(write(tmp_path / f"a.txt{packed}", text.encode(encoding))) == [text]


def test_columns_of_bytes_and_documents_of_other_libraries(tmp_path):
    raw = [text.encode() for text in ROWS]
    for kind in (pa.binary(), pa.large_binary(), pa.string()):
        pq.write_table(pa.table({"text": pa.array(raw, pa.binary()).cast(kind)}), tmp_path / "b.parquet")
        assert sorted(texts_read(documents.find_documents(tmp_path / "b.parquet"))) == sorted(ROWS)
    pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"], pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(LenscopeError, match=r"b\.parquet, document 1: is neither a text.*bytes that are not UTF-8"):
        documents.find_documents(tmp_path / "b.parquet")
    for data in (np.array(ROWS), pa.array(ROWS), pa.chunked_array([ROWS[:1], ROWS[1:]]), {"text": ROWS}, raw):
        assert sorted(texts_read(documents.find_documents(data))) == sorted(ROWS)
    ids = [[5, 6, 7], [8, 9]]
    masked = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    for data in (
        [np.array(i) for i in ids],
        [torch.tensor(i) for i in ids],
        masked,
        pa.array(ids),
        [{"text": i} for i in ids],
    ):
        assert sorted(texts_read(documents.find_documents(data))) == [(5, 6, 7), (8, 9)]
    assert texts_read(documents.find_documents(np.array([5, 6]))) == [(5, 6)]
    assert texts_read(documents.find_documents([{"text": "a", "of": np.array(1)}])) == ["a"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"bytes.txt", "is bytes"),
        ({"a", "b"}, "a set, which has no order"),
        ({"body": ["a"]}, "a dict without input_ids"),
        ([[1.0, 2.0]], "document 1: is neither a text nor a list of token ids"),
        ([[True, False]], "document 1: is neither"),
        ([1.5], "document 1: is neither"),
        (np.array([1.5]), "document 1: is neither"),
        ([{"text": {"a": 1}, "of": b"x"}], "document 1: is neither"),
    ],
)
def test_what_holds_no_documents_is_refused(data, message):
    with pytest.raises(LenscopeError, match=message):
        documents.find_documents(data)


def test_text_with_nuls_and_lines_without_end(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"text\n" + b"\0" * 20_000)
    assert texts_read(documents.find_documents(tmp_path / "a.txt")) == ["text\n"]
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16-le"))
    with pytest.raises(LenscopeError, match="NUL bytes"):
        texts_read(documents.find_documents(tmp_path / "a.txt"))
    monkeypatch.setattr("lenscope.text.document_files.LONGEST_LINE", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'"' + b"a" * 1000 + b'"'))
    with pytest.raises(LenscopeError, match="more than 1,000 bytes"):
        documents.find_documents(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl").write_bytes(b"[" * 900)
    with pytest.raises(LenscopeError, match="document 1: is not a line of JSON"):
        texts_read(documents.find_documents(tmp_path / "a.jsonl"))
