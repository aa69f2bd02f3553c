"""Covariances equal numpy's on stored states; parts pool to the whole; similarities are those of what eigh leaves."""

import numpy as np
import pytest
import torch
from covariances_by_hand import cosines, covariance, sentences, stored, zeroed

import lenscope as ls
from lenscope.directions.covariances import (
    Covariances,
    covariance_similarity,
    covariances,
    largest_components,
    pool_covariances,
    trimmed,
)
from lenscope.errors import LenscopeError
from lenscope.experiments.text_groups import by_document, rows_of


@pytest.fixture(scope="module")
def corpus(lm64):
    return ls.Corpus.open(lm64, sentences(12), length=32)


def test_covariances_are_numpys_of_stored_states(lm64, corpus, monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8 * 70)
    batches = rows_of(corpus, 320)
    x = stored(lm64, batches)
    found = covariances(lm64, batches)
    assert found.layers == (0, 1, 2, 3, 4)
    assert found.count == len(x) < 320
    assert found.means.numpy() == pytest.approx(x.mean(0), abs=1e-10)
    assert found.matrices.numpy() == pytest.approx(covariance(x), abs=1e-10)
    some = covariances(lm64, batches, [3, 1])
    assert some.layers == (3, 1)
    assert torch.allclose(some.matrices, found.matrices[[3, 1]], atol=1e-12, rtol=0)


def test_covariances_of_texts(lm64):
    texts = sentences(3, words=12)
    x = np.concatenate([lm64.read(t)[:, 1:-1].transpose(0, 1).numpy() for t in texts])
    assert covariances(lm64, texts).matrices.numpy() == pytest.approx(covariance(x), abs=1e-10)


def test_large_means_cost_no_digits(lm64, corpus, monkeypatch):
    """States far from zero: a sum of squares would lose their variance."""
    batches = rows_of(corpus, 96)
    plain = covariances(lm64, batches, [2])
    with lm64.edit(*[ls.Edit(2, n, torch.full((lm64.hidden_size,), 1e7), op=torch.add) for n in range(32)]):
        moved = covariances(lm64, batches, [2])
    assert (moved.means - plain.means - 1e7).abs().max() < 1e-6
    assert moved.matrices.numpy() == pytest.approx(plain.matrices.numpy(), abs=1e-6)


def test_parts_pool_to_the_whole(lm64, corpus):
    batches = rows_of(corpus, 256)
    parts = [covariances(lm64, some) for some in by_document(batches, 3)]
    whole = covariances(lm64, batches)
    both = pool_covariances(parts)
    assert both.count == whole.count
    assert torch.allclose(both.matrices, whole.matrices, atol=1e-11, rtol=0)
    assert torch.allclose(both.means, whole.means, atol=1e-12, rtol=0)
    # a part twice and another not at all, as a resample takes them
    x = [stored(lm64, some) for some in by_document(batches, 3)]
    again = pool_covariances(parts, [2, 0, 1])
    assert again.matrices.numpy() == pytest.approx(covariance(np.concatenate([x[0], x[0], x[2]])), abs=1e-10)


def test_pooling_refuses_what_does_not_fit(lm64, corpus):
    some = covariances(lm64, rows_of(corpus, 32), [1])
    with pytest.raises(LenscopeError, match="not all 0"):
        pool_covariances([some, some], [0, 0])
    with pytest.raises(LenscopeError, match="give one of each"):
        pool_covariances([some], [1, 2])
    other = Covariances((2,), some.count, some.means, some.matrices)
    with pytest.raises(LenscopeError, match="different layers"):
        pool_covariances([some, other])
    with pytest.raises(LenscopeError, match=r"rows: \[5, 6\] has no position that counts"):
        covariances(lm64, [[5, 6]])
    with pytest.raises(LenscopeError, match="no prediction counts"):
        covariances(lm64, [])


@pytest.mark.parametrize("top", [0, 1, 2, 5])
def test_similarity_is_the_frobenius_cosine_of_what_eigh_leaves(top):
    random = np.random.default_rng(0)
    matrices = []
    for n in range(4):
        x = random.normal(size=(50, 12)) + n
        # dimensions that outweigh all others, in different places
        x[:, [n, 5]] *= [20, 100]
        matrices.append(np.cov(x.T))
    given = torch.tensor(np.stack(matrices))
    left = trimmed(given, top)
    expected = np.stack([zeroed(m, top) for m in matrices])
    assert left.numpy() == pytest.approx(expected, abs=1e-8)
    assert covariance_similarity(left) == pytest.approx(cosines(expected), abs=1e-10)
    values, vectors = largest_components(given, top)
    assert values.numpy() == pytest.approx(np.stack([np.linalg.eigvalsh(m)[::-1][:top] for m in matrices]), rel=1e-10)
    assert vectors.shape == (4, 12, top)


def test_ties_between_cells_stay_ties():
    """Ranks of cells would turn on rounding: a plain product of matrices is not symmetric to the last digit."""
    found = covariance_similarity(
        torch.randn(31, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    assert (found == found.T).all()
    assert (np.diagonal(found) == 1).all()


def test_one_shared_rogue_dimension_hides_all_differences():
    """Two layers that vary in nothing else alike: cosine 1 with the component, 0 without."""
    a, b = np.diag([1e4, 1.0, 1, 0, 0]), np.diag([1e4, 0, 0, 1.0, 1])
    given = torch.tensor(np.stack([a, b]))
    assert covariance_similarity(given)[0, 1] > 0.999
    assert abs(covariance_similarity(trimmed(given, 1))[0, 1]) < 1e-12


def test_more_components_than_there_are_are_refused():
    with pytest.raises(LenscopeError, match="top 4: covariances of size 3 have 0–3 components"):
        trimmed(torch.eye(3)[None].double(), 4)
