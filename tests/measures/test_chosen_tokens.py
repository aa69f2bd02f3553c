"""Ranks of chosen tokens: they equal their definitions on whole logits, whatever the pieces."""

import itertools

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.measures import definitions as measures
from lenscope.measures import streamed
from lenscope.measures.chosen_tokens import rank_tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gptj", "gemma3n_text"])
def test_ranks_and_log_probabilities_equal_their_definitions(architecture, monkeypatch):
    lm = ls.LM(tiny.model(architecture, dtype=torch.float64), None, architecture)
    h = lm.read(tiny.ids(lm.model, 1, 9)[0].tolist())[:, :]
    log_q = lm.unembed(h).log_softmax(-1)
    ids = torch.tensor([11, 300, 11, 0])
    for piece, states, whole in itertools.product((1, 1 << 20), (1 << 11, 1 << 26), (1 << 12, 1 << 24)):
        monkeypatch.setattr(streamed, "PIECE_BYTES", piece)
        monkeypatch.setattr(streamed, "STATES_BYTES", states)
        monkeypatch.setattr(streamed, "WHOLE_ROWS_BYTES", whole)
        for last_alone in (False, True):
            ranked = rank_tokens(lm.runner.readout, lm.vocab_size, h, ids, last_alone)
            for n, token in enumerate(ids):
                every = token.expand(log_q.shape[:2])
                assert torch.equal(ranked.rank[n].long(), measures.rank(log_q, every).long())
                torch.testing.assert_close(ranked.log_prob[n], -measures.surprisal(log_q, every))


class OneRow:
    """A readout whose logits are the states themselves."""

    description, splits = "one row", True

    def prepare(self, h):
        return h

    def columns(self, x, start, stop):
        return x[:, start:stop].clone()

    def tokens(self, x, ids):
        return x.gather(1, ids[:, None])[:, 0]


def test_tokens_of_equal_logits_and_such_as_are_ruled_out(monkeypatch):
    h = torch.tensor([[[-torch.inf, 2.0, 1.0, 1.0, -torch.inf, 0.0]]])
    monkeypatch.setattr("lenscope.measures.chosen_tokens.vocabulary_pieces", lambda *_: [(n, n + 1) for n in range(6)])
    ranked = rank_tokens(OneRow(), 6, h, torch.arange(6))
    # equal logits do not outrank each other
    assert ranked.rank[:, 0, 0].tolist() == [4, 0, 1, 1, 4, 3]
    torch.testing.assert_close(ranked.log_prob[:, 0, 0], h[0, 0].log_softmax(-1))


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ls.LenscopeError, match="hold NaN or infinity"):
        rank_tokens(OneRow(), 3, torch.tensor([[[0.0, torch.nan, 1.0]]]), torch.tensor([0]))
