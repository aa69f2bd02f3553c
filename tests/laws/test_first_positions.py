"""Position 0 of a text, an attention sink, counts nowhere: lists of texts give what a corpus of these texts gives."""

import numpy as np
import pytest
import spelled
import tiny
import torch
from affine_lens import affine

import lenscope as ls
from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
from lenscope.directions.covariances import covariances
from lenscope.fitting import model_to_model as regression
from lenscope.fitting import soft_prompt as softprompt
from lenscope.interventions.block_ablation import ablate_blocks, mean_update
from lenscope.models.runner import Runner
from lenscope.text.row_states import row_states


@pytest.fixture(scope="module")
def spelling():
    """A model whose tokenizer begins a text with a mark and makes each of these letters a token."""
    return ls.LM(tiny.model("llama", dtype=torch.float64), spelled.llama2(1), "letters")


@pytest.fixture(scope="module")
def both(spelling):
    """Texts of 10 letters, and the batch of a corpus of them: one text in each row of 12 tokens."""
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("bcde"), 10)) for _ in range(6)]
    (batch,) = ls.Corpus.open(spelling, texts, length=12).batches(72, 6)
    known = {spelling.prompt(text).ids: text for text in texts}
    assert {len(ids) for ids in known} == {12}
    return [known[tuple(ids)] for ids in batch.ids.tolist()], batch


def same(one, other):
    """Whether two evaluations or ablations have the same numbers."""
    assert (one.tokens, one.values.keys()) == (other.tokens, other.values.keys())
    for name, values in one.values.items():
        assert np.array_equal(values, other.values[name], equal_nan=True), name


def test_texts_give_what_a_corpus_of_them_gives(spelling, both):
    texts, batch = both
    lenses = {"logit": None, "tuned": affine(spelling)}
    one, other = ls.evaluate(spelling, texts, lenses), ls.evaluate(spelling, [batch], lenses)
    same(one, other)
    assert one.tokens == 6 * 10
    assert (one.rows, one.units, one.bytes) == (other.rows, other.units, other.bytes)
    assert np.array_equal(one.own["bits_per_byte"], other.own["bits_per_byte"])
    one, other = (ls.transfer(spelling, rows, affine(spelling)) for rows in (texts, [batch]))
    assert np.array_equal(one.kl, other.kl)
    (one,), (other,) = (row_states(spelling, rows, [2]) for rows in (texts, [batch]))
    assert torch.equal(one.counted, other.counted)
    assert not one.counted[:, 0].any()
    assert torch.equal(one.states, other.states)
    assert np.array_equal(one.units, other.units)
    one, other = (causal_basis(spelling, rows, None, [2], k=2) for rows in (texts, [batch]))
    assert torch.equal(one.directions, other.directions)
    assert torch.equal(one.energies, other.energies)
    one, other = (ls.directions.influence(spelling, rows, one) for rows in (texts, [batch]))
    assert np.array_equal(one.by_unit, other.by_unit)
    one, other = (ablate_blocks(spelling, rows) for rows in (texts, [batch]))
    assert one.counts.tolist() == other.counts.tolist() == [10] * 6
    assert all(np.array_equal(values, other.sums[name]) for name, values in one.sums.items())
    one, other = (mean_update(spelling, rows).means for rows in (texts, [batch]))
    assert torch.equal(one, other)
    one, other = (covariances(spelling, rows) for rows in (texts, [batch]))
    assert torch.equal(one.matrices, other.matrices)


def test_rows_of_several_documents_count_where_a_corpus_counts(lm64):
    documents = [tiny.ids(lm64.model, 1, 7, n)[0].tolist() for n in range(12)]
    (batch,) = ls.Corpus.open(lm64, documents, length=24).batches(96, 4)
    rows = batch.ids.tolist()
    one, other = ls.evaluate(lm64, rows), ls.evaluate(lm64, [batch])
    assert one.tokens == other.tokens < 4 * 22
    for name in ("kl", "agreement", "cross_entropy"):
        assert np.allclose(one.measure(name), other.measure(name), rtol=1e-12), name
    one, other = (ablate_blocks(lm64, given) for given in (rows, [batch]))
    assert one.tokens == other.tokens
    assert np.allclose(one.column("kl"), other.column("kl"), rtol=1e-12)
    one, other = (principal_basis(lm64, given, None, [1], k=2) for given in (rows, [batch]))
    assert torch.equal(one.directions, other.directions)


def test_a_huge_state_at_position_0_moves_nothing(lm64):
    rows = [tiny.ids(lm64.model, 1, 9, n)[0].tolist() for n in range(5)]
    huge = torch.full((lm64.hidden_size,), 1e4, dtype=torch.float64) * torch.arange(lm64.hidden_size)
    basis = random_basis(lm64, rows, None, [2], k=2)

    def measured(layer):
        some = ls.evaluate(lm64, rows, layers=[layer]).values
        states = lm64.read(rows, [layer])
        return {
            **{name: values for name, values in some.items() if layer == lm64.n_layers},
            "causal basis": causal_basis(lm64, rows, None, [layer], k=2).energies,
            "basis of states": principal_basis(lm64, states, None, [layer], k=2).directions,
            "covariances": covariances(lm64, rows, [layer]).matrices,
            "update": mean_update(lm64, rows).means[layer - 1],
        }

    for layer in (2, lm64.n_layers):
        plain = measured(layer)
        with lm64.edit(ls.Edit(layer, 0, huge)):
            changed = measured(layer)
        assert plain.keys() == changed.keys()
        for name, values in plain.items():
            assert np.array_equal(values, changed[name], equal_nan=True), (name, layer)
    assert float(basis.mean.abs().max()) < 1e4


def test_states_that_were_read_count_where_their_text_does(lm64):
    rows = [tiny.ids(lm64.model, 1, 9, n)[0].tolist() for n in range(5)]
    behind = lm64.read(rows, [2], positions=slice(1, None))
    one, other = (principal_basis(lm64, states, k=2) for states in (lm64.read(rows, [2]), behind))
    assert torch.equal(one.directions, other.directions)
    assert one.provenance["tokens"] == 5 * 8
    with pytest.raises(ls.LenscopeError, match="rows: no position counts"):
        causal_basis(lm64, lm64.read(rows, [2], positions=0), k=1)


def test_rows_that_cannot_be_are_refused_before_the_model_runs(lm64, monkeypatch):
    monkeypatch.setattr(ls.LM, "read", pytest.fail)
    monkeypatch.setattr(Runner, "capture", pytest.fail)
    rows = [tiny.ids(lm64.model, 1, 9, n)[0].tolist() for n in range(5)]
    for call in (
        lambda: ls.evaluate(lm64, [*rows, [7, 8]]),
        lambda: covariances(lm64, [*rows, [7]]),
        lambda: ablate_blocks(lm64, [*rows, [7, 8]]),
        lambda: causal_basis(lm64, [*rows, [7]], k=1),
    ):
        with pytest.raises(ls.LenscopeError, match=r"^rows: \[7.*\] has no position that counts") as error:
            call()
        assert "\n" not in str(error.value)


def test_marks_are_no_sources_and_no_targets_of_fits(lm64):
    texts = ["The cat sat</s> on the mat", "Paris is</s></s> the capital"]
    special = lm64.encoder.spelling.special
    for ahead in (0, 1, 2):
        for text in regression._read_together(lm64, lm64, texts, 64, ahead):
            assert text.positions
            for source, target in text.positions:
                assert min(source, target) > 0
                assert special.isdisjoint((text.source.ids[source], text.target.ids[target]))
    for ids in softprompt._beginnings(lm64, texts, 64, 1):
        found = softprompt._places(lm64, ids, 1)
        assert found == [n for n in range(1, len(ids) - 1) if ids[n] not in special]
        assert len(found) < len(ids) - 2
