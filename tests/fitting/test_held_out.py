"""Held-out text: documents that choose and that measure are apart, and what measures decides nothing."""

from functools import partial

import pytest
import torch
from small_fits import documents, fitted

from lenscope.fitting import held_out as choosing
from lenscope.fitting.optimizers import Muon
from lenscope.fitting.recipes import Recipe
from lenscope.text import corpus
from lenscope.text.corpus import Corpus


def told(lens):
    """The layers' rows of a report, without None."""
    assert all(value is not None for row in lens.report["layers"] for value in row.values())
    return lens.report["layers"]


@pytest.mark.parametrize("length", [32, 64])
def test_documents_that_choose_and_that_measure_are_apart_and_spread(lm, length):
    held = Corpus.open(lm, documents(400), length=length).split(0.3)[1]
    some = [choosing.choose_rows(part) for part in choosing.halves(held)]
    texts = []
    for part, batches in zip(choosing.halves(held), some, strict=True):
        mine = {tuple(d) for d in part.documents.read(0, 0) if part.part[0] <= corpus._place(d, 0) < part.part[1]}
        texts.append(mine)
        tokens = sum(int(batch.counted.sum()) for batch in batches)
        assert 0.8 * choosing.COUNTED < tokens <= choosing.COUNTED
    assert not texts[0] & texts[1]
    lens = fitted(lm, documents(400), length=length, held_out=0.3)
    assert min(lens.report["held_out"]["documents"]) >= choosing.FEWEST_DOCUMENTS
    assert "note" not in lens.report["held_out"]


def test_rows_of_held_out_text_are_many_while_few_tokens_are_read():
    for length in (2, 16, 32, 100, 128, 200, 512, 1024, 2048, 8192):
        rows, every = choosing.spread(length)
        assert rows >= 2
        assert rows * length >= choosing.COUNTED
        assert rows * length <= max(choosing.READ, 2 * length)
        assert rows >= min(choosing.ROWS, max(2, choosing.READ // length))
        assert rows * (length // every) <= 2 * choosing.COUNTED


def test_layers_have_intervals_over_documents(lm):
    lens = fitted(lm, documents(400), held_out=0.3)
    wide = 0
    for row in told(lens):
        for name in ("kl", "kl_logit_lens", "gain"):
            low, high = row[f"{name}_95"]
            assert low < row[name] < high
            wide += high - low
        assert row["gain"] == pytest.approx(row["kl_logit_lens"] - row["kl"])
        # of the same documents: the difference is surer than both
        ends = [row[f"{name}_95"][1] - row[f"{name}_95"][0] for name in ("gain", "kl_logit_lens")]
        assert ends[0] < 2 * ends[1]
    few = fitted(lm, documents(60), tokens=600).report["held_out"]
    assert min(few["documents"]) < choosing.FEWEST_DOCUMENTS
    assert "say too little" in few["note"]


def test_what_measures_decides_nothing(lm, monkeypatch):
    """Held-out text that chooses is made to prefer a lens that is bad: the measuring text says so, and it is kept."""
    own = choosing.HeldOut.sampled_kl

    def misled(self, candidates, constants, objective):
        found = own(self, candidates, constants, objective)
        return found if len(candidates) == 1 else torch.arange(len(candidates), 0, -1)[:, None].expand_as(found) * 1.0

    monkeypatch.setattr(choosing.HeldOut, "sampled_kl", misled)
    wild = Recipe("identity", partial(Muon, lr=9.0, most=9.0), columns=64, tokens_per_step=256)
    lens = fitted(lm, documents(400), held_out=0.3, recipe=wild)
    rows = told(lens)
    assert {row["kept"] for row in rows} == {"steps"}
    assert all(row["kl"] > row["kl_logit_lens"] for row in rows)
    assert lens.report["held_out"]["worse_than_logit_lens"] == [0, 1, 2, 3]
