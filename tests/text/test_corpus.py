"""Corpora against plain tokenization and a by-hand sampling loop."""

import hashlib
import json
from itertools import pairwise

import pytest
import tiny
import torch
from small_corpora import EOS, TEXTS, joined, lm_with, plain, split_at, write_jsonl
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

import lenscope as ls
from lenscope.text import corpus as corpora
from lenscope.text import packing
from lenscope.text.corpus import Corpus
from lenscope.text.packing import find_marks


@pytest.fixture(autouse=True)
def in_order(monkeypatch):
    """Rows one after the other, so that they can be told to be the text; the last test mixes them."""
    monkeypatch.setattr(corpora, "MIXED", 1)


def with_special(before, behind):
    """The tiny tokenizer, putting tokens before and behind a text by itself."""
    raw = type(tiny.tokenizer().backend_tokenizer).from_str(tiny.tokenizer().backend_tokenizer.to_str())
    single = [*["<s>"] * before, "$A", *["</s>"] * behind]
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_rows_are_full_and_hold_every_document_whole(lm):
    corpus = Corpus.open(lm, TEXTS, length=32)
    batches = list(corpus.batches(rows=3))
    ids, document, begins, counted, numbers = joined(batches)
    assert all(b.ids.shape == (3, 32) and b.ids.dtype == torch.int64 for b in batches[:-1])
    expected = {(EOS, *plain(t)) for t in TEXTS}
    total = sum(map(len, expected))
    assert numbers == list(range(total // 32))
    assert len(ids) == total // 32 * 32
    found = split_at(ids, begins)
    assert begins[0]
    assert {tuple(d) for d in found[:-1]} <= expected
    assert any(tuple(found[-1]) == e[: len(found[-1])] for e in expected)
    # each document once, numbered in turn
    assert len({tuple(d) for d in found}) == len(found)
    assert document == [n for n, d in enumerate(found) for _ in d]
    # the first position of each row and the marks between documents do not count
    assert counted == [n % 32 > 0 and not b for n, b in enumerate(begins)]


def test_skip_leaves_out_the_first_positions_of_every_row(lm):
    batch = next(Corpus.open(lm, ["x" * 300], length=32, skip=5).batches())
    assert not batch.counted[:, :5].any()
    assert batch.counted[1:, 5:].all()


def test_rows_begin_with_the_tokenizers_own_bos_and_documents_do_not_repeat_it(lm):
    other = lm_with(lm, with_special(1, 0))
    ids, _, begins, counted, _ = joined(Corpus.open(other, TEXTS, length=32).batches())
    rows = torch.tensor(ids).view(-1, 32)
    assert (rows[:, 0] == 1).all()
    starts = torch.tensor(begins).view(-1, 32)
    assert not starts[:, 0].all(), "no row begins within a document: the test sees nothing"
    # without the BOS that leads a row, documents are what the tokenizer makes of their texts
    kept = [(i, b) for n, (i, b) in enumerate(zip(ids, begins, strict=True)) if n % 32 or b]
    found = split_at(*map(list, zip(*kept, strict=True)))
    expected = {tuple(other.tokenizer(t)["input_ids"]) for t in TEXTS}
    assert all(e[0] == 1 for e in expected)
    assert {tuple(d) for d in found[:-1]} <= expected
    assert all(i not in (0, 1, 2) for i, c in zip(ids, counted, strict=True) if c)
    everywhere = next(Corpus.open(other, TEXTS, length=32, skip=0).batches())
    assert torch.equal(everywhere.counted, everywhere.ids != 1)


def test_a_tokenizer_that_ends_documents_needs_no_other_mark(lm):
    other = lm_with(lm, with_special(0, 1))
    marks = find_marks(other)
    assert (marks.row, marks.document, marks.end) == ((), (), (EOS,))
    ids, _, begins, *_ = joined(Corpus.open(other, TEXTS, length=32).batches())
    found = split_at(ids, begins)
    assert {tuple(d) for d in found[:-1]} <= {(*plain(t), EOS) for t in TEXTS}
    assert find_marks(lm_with(lm, with_special(1, 1))) == packing.Marks((1,), (1,), (2,))


def test_documents_of_token_ids_are_taken_as_they_are(lm):
    given = [tuple(range(10, 50)), (EOS, *range(60, 90))]
    batches = list(Corpus.open(lm, given, length=8).batches())
    ids, _, begins, *_ = joined(batches)
    assert {tuple(d) for d in split_at(ids, begins)} == {(EOS, *range(10, 49 + 1)), (EOS, *range(60, 90))}
    assert all(b.bytes is None for b in batches)
    with pytest.raises(ls.LenscopeError, match=r"token 320: .*0–319"):
        list(Corpus.open(lm, [[5, 320] * 20], length=8).batches())


def test_bytes_are_those_of_the_text(lm):
    mixed = ["naïve café – 東京タワー 🙂🙂 end", "plain ascii words", "Здравствуй, мир! " * 5, "a\u0301 combining"]
    corpus = Corpus.open(lm, mixed * 4, length=16)
    batches = list(corpus.batches())
    size = torch.cat([b.bytes for b in batches]).flatten().tolist()
    ids, _, begins, *_ = joined(batches)
    at = 0
    by_ids = {tuple(plain(t)): len(t.encode()) for t in mixed}
    for document in split_at(ids, begins)[:-1]:
        assert size[at] == 0
        assert sum(size[at : at + len(document)]) == by_ids[tuple(document[1:])]
        at += len(document)
    # of ASCII, each token its own letters
    batch = next(Corpus.open(lm, ["The cat sat on the mat. Paris!" * 9], length=16).batches())
    letters = [[0 if i == EOS else len(tiny.tokenizer().decode([i])) for i in row] for row in batch.ids.tolist()]
    assert batch.bytes.tolist() == letters


def test_text_that_a_tokenizer_drops_counts_too(lm):
    other = with_special(1, 0)
    other.backend_tokenizer.normalizer = normalizers.Strip()
    text = "  some words – and space behind   "
    assert other(text)["input_ids"] == [1, *plain(text.strip())]
    length = len(plain(text.strip())) + 1
    batch = next(Corpus.open(lm_with(lm, other), [text], length=length).batches())
    assert int(batch.bytes.sum()) == len(text.encode())


def test_bytes_are_unknown_without_offsets(lm):
    class Slow:
        is_fast, eos_token_id, bos_token_id = False, 2, 1

        def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False, **_):
            assert not return_offsets_mapping
            return {"input_ids": plain(text) if isinstance(text, str) else [plain(t) for t in text]}

        def get_vocab(self):
            return {}

        def decode(self, ids, **_):
            return tiny.tokenizer().decode(ids)

        def batch_decode(self, ids, **_):
            return tiny.tokenizer().batch_decode(ids)

    batches = list(Corpus.open(lm_with(lm, Slow()), TEXTS, length=32).batches())
    assert all(b.bytes is None for b in batches)
    assert torch.equal(batches[0].ids, next(Corpus.open(lm, TEXTS, length=32).batches()).ids)


def test_long_documents_are_tokenized_in_parts(lm, monkeypatch):
    text = "".join(f"word{n} " + "\n" * (n % 9 == 0) for n in range(300)) + "x" * 90
    whole = list(Corpus.open(lm, [text], length=16).batches())
    monkeypatch.setattr(packing, "CHARACTERS_TOGETHER", 64)
    parts = packing._document_parts(text)
    assert "".join(parts) == text
    assert len(parts) > 10
    assert max(map(len, parts)) <= 64
    assert all(a.endswith("\n") or b.startswith(" ") for a, b in pairwise(parts[:-1]))
    assert {p[-1] for p in parts} >= {"\n", "x"}
    batches = list(Corpus.open(lm, [text], length=16).batches())
    decoded = tiny.tokenizer().decode([i for b in batches for i in b.ids.flatten().tolist() if i != EOS])
    assert text.startswith(decoded)
    assert len(decoded) > len(text) - 16 * 6
    assert sum(int(b.bytes.sum()) for b in batches) == len(decoded)
    assert all(set(b.document.flatten().tolist()) == {0} for b in whole + batches)


def test_the_seed_fixes_everything_and_another_gives_another_order(lm):
    corpus = Corpus.open(lm, TEXTS, length=32)
    first, again = joined(corpus.batches()), joined(Corpus.open(lm, list(TEXTS), length=32).batches())
    assert first == again
    other = joined(Corpus.open(lm, TEXTS, length=32, seed=1).batches())
    assert other[0] != first[0]
    assert sorted(map(tuple, split_at(other[0], other[2])[:-2])) != []


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_a_reading_resumes_at_any_row(lm, start):
    corpus = Corpus.open(lm, TEXTS, length=32)
    whole = joined(corpus.batches())
    rest = list(corpus.batches(rows=4, start=start))
    assert joined(rest)[0] == whole[0][start * 32 :]
    assert joined(rest)[-1] == whole[-1][start:]
    assert joined(rest)[1] == whole[1][start * 32 :]


def test_a_killed_reading_goes_on_from_next_row(lm):
    corpus = Corpus.open(lm, TEXTS, length=32)
    whole = list(corpus.batches(rows=3))
    rest = list(corpus.batches(rows=3, start=whole[1].next_row))
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert (a.next_row, a.digest) == (b.next_row, b.digest)


@pytest.mark.parametrize("tokens", [None, 32 * 7, 32 * 13 - 5])
def test_ranks_together_see_what_one_sees(lm, tokens):
    corpus = Corpus.open(lm, TEXTS, length=32)
    alone = joined(corpus.batches(tokens, rows=2))
    shares = [list(corpus.batches(tokens, rows=2, rank=r, world=3)) for r in range(3)]
    assert len({len(s) for s in shares}) == 1, "a rank would wait for the others for ever"
    assert tokens is None or any(len(b.ids) == 0 for s in shares for b in s), "no rank is without a last row"
    rows = {int(n): ids.tolist() for s in shares for b in s for n, ids in zip(b.row, b.ids, strict=True)}
    assert sorted(rows) == alone[-1]
    assert [i for n in sorted(rows) for i in rows[n]] == alone[0]
    assert all(n % 3 == r for r, s in enumerate(shares) for b in s for n in b.row.tolist())
    # every rank knows that it reads the same text
    assert len({tuple(b.digest for b in s) for s in shares}) == 1


def test_the_digest_is_of_all_ids_before(lm):
    batches = list(Corpus.open(lm, TEXTS, length=32).batches(rows=2))
    ids = torch.cat([b.ids for b in batches[:2]])
    assert batches[1].digest == hashlib.sha256(ids.numpy().tobytes()).hexdigest()


def test_a_corpus_that_ends_early_says_so_after_its_rows(lm):
    corpus = Corpus.open(lm, TEXTS, length=32)
    whole = joined(corpus.batches())
    n = len(whole[0])
    seen = []
    with pytest.raises(ls.LenscopeError, match=rf"ends after {n} tokens .*{n + 32} were wanted.*in 2 epochs"):
        seen.extend(corpus.batches(n + 1))
    assert joined(seen)[0] == whole[0]
    assert sum(len(b.ids) for b in Corpus.open(lm, TEXTS, length=32, epochs=2).batches(n + 1)) == n // 32 + 1
    assert sum(len(b.ids) for b in corpus.batches(n)) == n // 32


def test_every_epoch_reads_every_document_in_another_order(lm):
    ids, _, begins, *_ = joined(Corpus.open(lm, TEXTS, length=4, epochs=2).batches())
    found = [tuple(d) for d in split_at(ids, begins)]
    one, two = found[:40], found[40:]
    assert sorted(one) == sorted((EOS, *plain(t)) for t in TEXTS)
    assert len(two) == 40
    assert set(two[:-1]) < set(one)
    assert one != two


@pytest.mark.parametrize("texts", [[], ["", "  "[:0]], [""] * 3])
def test_an_empty_corpus_is_an_error(lm, texts):
    with pytest.raises(ls.LenscopeError, match=r"no text|less than one row"):
        list(Corpus.open(lm, texts).batches())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 65}, r"length 65: tiny-llama reads 2–64"),
        ({"length": 1}, "length 1"),
        ({"length": 8, "skip": 8}, "skip 8: rows have 8 positions; give 0–7"),
        ({"skip": -1}, "skip -1"),
        ({"seed": -1}, "seed -1"),
        ({"epochs": 0}, "epochs 0"),
    ],
)
def test_numbers_out_of_range(lm, options, words):
    with pytest.raises(ls.LenscopeError, match=words):
        Corpus.open(lm, TEXTS, **options)


@pytest.mark.parametrize(
    "options", [{"rows": 0}, {"rank": 2, "world": 2}, {"rank": -1}, {"start": -1}, {"tokens": 0}, {"world": 0}]
)
def test_numbers_of_a_reading_out_of_range(lm, options):
    with pytest.raises(ls.LenscopeError, match="give positive numbers"):
        Corpus.open(lm, TEXTS).batches(**options)


def parts(lm, texts, fraction, seed=0):
    train, held = Corpus.open(lm, texts, length=16, seed=seed).split(fraction)
    return [set(train._documents()), set(held._documents())]


def test_no_document_is_in_both_parts_and_all_are_in_one(lm):
    many = [f"text number {n}" for n in range(400)]
    train, held = parts(lm, many, 0.25)
    assert not train & held
    assert train | held == set(many)
    # 100 ± 4 standard deviations of a binomial
    assert 65 < len(held) < 135
    assert parts(lm, many, 0.25, seed=1)[1] != held
    # equal texts are on one side, and no document changes sides when others come
    train2, held2 = parts(lm, many * 2 + [f"more {n}" for n in range(50)], 0.25)
    assert held <= held2
    assert train <= train2
    assert not train2 & held2


def test_parts_can_be_split_again(lm):
    many = [f"text number {n}" for n in range(300)]
    train, held = Corpus.open(lm, many, length=16).split(0.5)
    a, b = held.split(0.4)
    found = [set(c._documents()) for c in (train, a, b)]
    assert set.union(*found) == set(many)
    assert sum(map(len, found)) == 300
    assert all(found)
    with pytest.raises(ls.LenscopeError, match=r"held_out 1\.0"):
        held.split(1.0)


def test_an_empty_part_says_so(lm):
    _, held = Corpus.open(lm, ["only one document, of some length, over and over"], length=8).split(1e-6)
    with pytest.raises(ls.LenscopeError, match=r"less than one row of 8 tokens in this part \(1e-06"):
        list(held.batches())


def test_provenance_is_json_and_tells_corpora_apart(lm, tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    corpus = Corpus.open(lm, tmp_path / "a.jsonl", length=32, seed=3)
    about = corpus.provenance()
    assert json.loads(json.dumps(about)) == about
    assert about["documents"] == 40
    assert about["document_begins_with"] == [EOS]
    assert (about["seed"], about["length"], about["skip"], about["part"]) == (3, 32, 1, [0.0, 1.0])
    # a call that pads leaves its mark in a tokenizer, but changes no ids
    lm.tokenizer(["a", "bbbbb ccc"], padding=True, truncation=True, max_length=3)
    assert corpus.provenance() == about
    other = Corpus.open(lm_with(lm, with_special(1, 0)), tmp_path / "a.jsonl", length=32)
    assert other.provenance()["tokenizer"]["sha256"] != about["tokenizer"]["sha256"]
    lists = [Corpus.open(lm, t).provenance()["sources"][0] for t in (TEXTS, TEXTS[:-1], TEXTS)]
    assert lists[0] == lists[2] != lists[1]


def test_smollm2_texts_are_joined_as_it_was_trained(smollm2):
    assert find_marks(smollm2) == packing.Marks((), (0,), ())
    batch = next(
        Corpus.open(smollm2, ["The Eiffel Tower – la tour Eiffel – is in Paris. 🗼 " * 40], length=64).batches()
    )
    assert batch.ids[0, 0] == smollm2.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for row, size in zip(batch.ids.tolist(), batch.bytes.tolist(), strict=True):
        text = smollm2.tokenizer.decode([i for i in row if i])
        if "�" not in text:
            assert len(text.encode()) == sum(size)


def test_rows_are_mixed_some_at_a_time(lm, monkeypatch):
    corpus = Corpus.open(lm, TEXTS * 3, length=16, seed=1)
    plain_rows = [row for batch in corpus.batches() for row in batch.ids.tolist()]
    monkeypatch.setattr(corpora, "MIXED", 32)
    whole = list(corpus.batches())
    mixed = [row for batch in whole for row in batch.ids.tolist()]
    assert len(mixed) > 96
    for n in range(0, len(mixed), 32):
        window, before = mixed[n : n + 32], plain_rows[n : n + 32]
        assert sorted(window) == sorted(before)
        assert len(window) < 32 or window != before
    # the same order again, wherever a reading begins and whoever reads
    again = [row for batch in corpus.batches(start=40) for row in batch.ids.tolist()]
    assert again == mixed[40:]
    of_two = [[row for b in corpus.batches(rank=rank, world=2) for row in b.ids.tolist()] for rank in range(2)]
    assert of_two == [mixed[0::2], mixed[1::2]]
    assert [row for b in Corpus.open(lm, TEXTS * 3, length=16, seed=2).batches() for row in b.ids.tolist()] != mixed
