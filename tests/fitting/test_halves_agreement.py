"""Agreement of two lenses: 1 of equal ones, and what logits by hand say of others."""

import torch
from small_fits import documents, make

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.fitting.halves_agreement import agreement_rows, halves_agreement
from lenscope.fitting.held_out import HeldOut, choose_rows
from lenscope.text.corpus import Corpus


def held_out(lm):
    rows = choose_rows(Corpus.open(lm, documents(40), length=32, skip=4), 64)
    with torch.no_grad():
        return HeldOut.read(lm, rows, LayerOwners(lm.n_layers, Group(), Group()), None)


def test_agreement_is_that_of_logits_by_hand():
    lm = make()
    held = held_out(lm)
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.eye(32) + 0.3 * torch.randn(4, 32, 32, generator=draw) for _ in range(2))
    with torch.no_grad():
        agreement = halves_agreement(held, a, b)
        for layer in range(4):
            h = held.block.states[layer].float()
            z = [lm.unembed(h @ j[layer].T) for j in (a, b)]
            top = [x.topk(10).indices for x in z]
            shared = [len(set(p.tolist()) & set(q.tolist())) / 10 for p, q in zip(*top, strict=True)]
            same = (z[0].argmax(-1) == z[1].argmax(-1)).float().mean()
            centred = [x - x.mean(-1, keepdim=True) for x in z]
            cosine = (centred[0] * centred[1]).sum(-1) / centred[0].norm(dim=-1) / centred[1].norm(dim=-1)
            assert abs(agreement["top1"][layer].value - float(same)) < 1e-6
            assert abs(agreement["top10"][layer].value - sum(shared) / len(shared)) < 1e-6
            assert abs(agreement["cosine"][layer].value - float(cosine.mean())) < 1e-5


def test_equal_lenses_agree_wholly():
    lm = make("gemma2")
    held = held_out(lm)
    one = torch.eye(32).expand(4, -1, -1)
    with torch.no_grad():
        rows = agreement_rows(halves_agreement(held, one, one, positions=16))
    for row in rows:
        assert row["top1"] == row["top10"] == 1
        assert abs(row["cosine"] - 1) < 1e-5
        assert row["cosine_95"][0] <= 1.0001
