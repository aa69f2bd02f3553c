"""Small corpora: their documents, models with other tokenizers, and rows taken apart into documents."""

import json
from itertools import pairwise
from types import SimpleNamespace

import tiny
import torch

from lenscope.models.prompts import Encoder

EOS = 2


TEXTS = [f"Document {n}: " + "the cat sat on the mat. " * (n % 7) + f"END {n}" for n in range(40)]


def lm_with(lm, tokenizer):
    """What a corpus needs of a model, with another tokenizer."""
    return SimpleNamespace(
        tokenizer=tokenizer, encoder=Encoder(tokenizer, tiny.VOCAB, 64, "other"), context=64, name="other",
        model=lm.model, vocab_size=lm.vocab_size, runner=lm.runner,
    )  # fmt: skip


def plain(text):
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def joined(batches):
    """All rows of a reading, as (ids, document, begins, counted, bytes, row) of one long text."""
    batches = list(batches)
    names = ("ids", "document", "begins", "counted")
    parts = [torch.cat([getattr(b, n) for b in batches]).flatten().tolist() for n in names]
    return *parts, torch.cat([b.row for b in batches]).tolist()


def split_at(ids, begins):
    """The documents (token lists) of a long text, the last one perhaps incomplete."""
    places = [n for n, one in enumerate(begins) if one] + [len(ids)]
    return [ids[a:b] for a, b in pairwise(places)]


def write_jsonl(path, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for n, text in enumerate(TEXTS):
            file.write(json.dumps({"id": n, "text": text, "body": text}) + ("\n\n" if n % 5 == 0 else "\n"))
