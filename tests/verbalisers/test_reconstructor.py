"""The reconstructor of a natural language autoencoder, by hand on the transformers model; scores by their formulas."""

import asking
import numpy as np
import pytest
import safetensors.torch
import torch
from autoencoders import READS, meta, save_reconstructor, write_meta

import lenscope as ls
from lenscope.verbalisers.reconstructor import (
    Reconstructor,
    load_reconstructor,
    mean_vector,
    score_reconstructions,
)


def test_a_text_becomes_the_published_vector(tmp_path):
    """The state of block K at the last token, before any norm, times the matrix; <s> in front, as in training."""
    folder, model, head = save_reconstructor(tmp_path / "ar")
    loaded = load_reconstructor(folder, dtype=torch.float64)
    assert (loaded.layer, loaded.lm.n_layers) == (3, 3)
    texts = ["a cat", "of Paris, the longer one"]
    found = loaded.reconstruct(texts)
    model.double()
    seen = []
    model.model.layers[2].register_forward_hook(lambda m, a, out: seen.append(out[0, -1]))
    for text, vector in zip(texts, found, strict=True):
        ids = asking.tokenizer()(READS.format(explanation=text))["input_ids"]
        assert ids[0] == 1
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False)
        assert (vector - head.double() @ seen[-1]).abs().max() < 1e-10


def test_more_blocks_than_needed_are_not_run(tmp_path):
    folder, _, head = save_reconstructor(tmp_path / "ar")
    lm = asking.asked(layers=4)
    assert Reconstructor(lm, head, folder).layer == 3
    own = lm.read(READS.format(explanation="x"), 3, -1)[3, -1]
    assert torch.allclose(Reconstructor(lm, head, folder).reconstruct(["x"])[0], head.double() @ own)
    with pytest.raises(ls.LenscopeError, match="there are none"):
        Reconstructor(lm, head, folder).reconstruct([])


def test_what_contradicts_is_refused_in_one_line(tmp_path):
    folder, _, head = save_reconstructor(tmp_path / "ar")
    lm, short = asking.asked(), asking.asked(layers=2)
    with pytest.raises(ls.LenscopeError, match=r"makes vectors of layer 3 .* tiny-llama has 2"):
        Reconstructor(short, head, folder)
    with pytest.raises(ls.LenscopeError, match=r"the matrix of the reconstructor is of shape \(31, 32\)"):
        Reconstructor(lm, head[1:], folder)
    with pytest.raises(ls.LenscopeError, match="holds NaN or infinity"):
        Reconstructor(lm, head * float("nan"), folder)
    with pytest.raises(ls.LenscopeError, match="is of int64"):
        Reconstructor(lm, head.long(), folder)
    write_meta(folder, meta(lm.tokenizer, "ar", tokens__critic_suffix_ids=[7, 8]))
    with pytest.raises(ls.LenscopeError, match=r"ends with the tokens \[7, 8\], and tiny-llama makes"):
        Reconstructor(lm, head, folder).reconstruct(["x"])
    write_meta(folder, meta(lm.tokenizer, "ar", width=33))
    with pytest.raises(ls.LenscopeError, match="is for states of 33 numbers"):
        Reconstructor(lm, head, folder)
    write_meta(folder, meta(lm.tokenizer))
    with pytest.raises(ls.LenscopeError, match="is of a verbaliser; load_autoencoder_verbaliser reads it"):
        load_reconstructor(folder)


def test_a_matrix_that_is_missing_or_another_is_refused(tmp_path):
    folder, _, _ = save_reconstructor(tmp_path / "ar")
    safetensors.torch.save_file({"other": torch.ones(2)}, folder / "value_head.safetensors")
    with pytest.raises(ls.LenscopeError, match="holds other, and must hold one weight"):
        load_reconstructor(folder)
    (folder / "value_head.safetensors").unlink()
    with pytest.raises(ls.LenscopeError, match=r"has no value_head.safetensors"):
        load_reconstructor(folder)


def test_weights_of_blocks_must_be_there(tmp_path):
    folder, _, _ = save_reconstructor(tmp_path / "ar", without=("lm_head.weight", "model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ls.LenscopeError, match=r"lacks 1 weight of .* model.layers.1.mlp.up_proj.weight"):
        load_reconstructor(folder)


def drawn(n, seed=0, shift=0.0):
    v = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v[:, 0] += shift
    return v


def test_scores_are_what_their_formulas_say():
    v, r = drawn(20, shift=2.0), drawn(20, 1, shift=2.0) * 3
    r[::2] = v[::2] * 5
    scores = score_reconstructions(v, r, mean_vector(v) * 2, seed=3)
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (v, r))
    mu = a.mean(0)
    total = ((a - mu) ** 2).sum()
    assert np.isclose(scores.explained.value, float(1 - ((a - b) ** 2).sum() / total))
    # the published loss of one vector: 2 (1 - cosine) where both are brought to the length √d
    assert np.allclose(((a - b) ** 2).sum(-1), 2 * (1 - scores.cosines))
    assert np.isclose(scores.mean_direction.value, float(1 - ((a - mu / mu.norm()) ** 2).sum() / total))
    assert scores.explained.value > scores.shuffled.value
    assert scores.cosine.value > scores.shuffled_cosine.value
    assert np.isclose(scores.mean_vector_cosine, 1.0)
    assert scores.explained.low < scores.explained.value < scores.explained.high


def test_the_vectors_themselves_explain_all_of_it_and_the_mean_direction_none():
    """Saying the mean's direction of everything explains less than nothing: the mean is shorter than a unit vector."""
    v = drawn(30, shift=1.0)
    scores = score_reconstructions(v, v * 7)
    assert np.isclose(scores.explained.value, 1.0)
    assert scores.mean_vector_cosine is None
    constant = score_reconstructions(v, mean_vector(v).expand_as(v))
    assert np.isclose(constant.explained.value, constant.mean_direction.value)
    assert constant.explained.value < 0
    assert np.isclose(constant.shuffled.value, constant.explained.value)


@pytest.mark.parametrize(
    ("v", "r", "said"),
    [
        (drawn(3), drawn(4), "give two of"),
        (drawn(1), drawn(1), "N at least 2"),
        (drawn(3) * 0, drawn(3), "a vector is zero"),
        (drawn(3), drawn(3) * float("inf"), "NaN or infinity"),
        (torch.ones(3, 4), drawn(3)[:, :4], "all have one direction"),
    ],
)
def test_what_has_no_score_is_refused(v, r, said):
    with pytest.raises(ls.LenscopeError, match=said):
        score_reconstructions(v, r)
