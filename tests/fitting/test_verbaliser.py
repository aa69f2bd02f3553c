"""Verbalisers: labels that only the vector can tell are learned, killed runs go on bit for bit, controls, refusals."""

import re
from dataclasses import replace as changed

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

import lenscope as ls
from lenscope.fitting import verbaliser as fits
from lenscope.fitting.verbaliser import VerbaliserInterrupted, fit_verbaliser
from lenscope.fitting.verbaliser_steps import MapWeights, VerbaliserRecipe
from lenscope.mappings.mapping import mapping_hash
from lenscope.models import edits
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import load_verbaliser

QUICK = VerbaliserRecipe(batch=8, checks=4, learning_rate=0.1, scale=1.0)


@pytest.fixture(scope="module")
def data(lm):
    """A label of one token each, and as its vector the direction that makes the token likely at the last layer."""
    head = lm.model.get_output_embeddings().weight.detach()
    labels = [chr(n) for n in range(33, 127)][:90]
    ids = [one[0] for one in lm.encoder.answer_ids(lm.prompt("it is"), labels)]
    assert len(set(ids)) == 90
    vectors = nn.functional.normalize(head[ids] - head.mean(0), dim=-1)
    # what all have in common hides it, until the bias takes that away
    common = nn.functional.normalize(torch.randn(lm.hidden_size, generator=torch.Generator().manual_seed(0)), dim=0)
    return vectors + 3 * common, labels


def fitted(lm, data, **how):
    vectors, labels = data
    given = {"target_layer": lm.n_layers, "end": "", "steps": 40, "recipe": QUICK, "selecting": 12, "measured": 15}
    return fit_verbaliser(lm, vectors, labels, Target("it is", at=-1), **{**given, **how})


@pytest.fixture(scope="module")
def learned(lm, data):
    return fitted(lm, data)


def test_labels_that_only_the_vector_tells_are_learned(learned):
    found = learned.report["measured"]
    likely = {name: value[0] for name, value in found["log-likelihood per token"].items()}
    assert set(likely) == {
        *("trained", "state itself", "unit vector", "bias alone", "another label's vector", "random vector")
    }
    for name, (value, low, high) in found["trained less"].items():
        assert low <= value <= high
        assert value == pytest.approx(likely["trained"] - likely[name])
    for name in ("unit vector", "bias alone", "another label's vector", "random vector"):
        assert found["trained less"][name][1] > 0.1, name
    losses = [one["loss"] for one in learned.report["held_out_loss"]]
    assert min(losses) < losses[0] - 0.1
    assert found["labels"] == 15
    share = found["bias share"]
    before = max(likely["unit vector"], likely["state itself"])
    assert share[0] == pytest.approx((likely["bias alone"] - before) / (likely["trained"] - before))


def test_the_report_is_what_the_verbaliser_does(lm, data, learned):
    """The likelihood of the report is that of the Patchscope's own next-token distributions."""
    vectors, labels = data
    _, _, measure = fits._label_parts([text.strip() for text in labels], 12, 15, 0)
    grid = learned.scope(lm).predict(vectors[measure], answers=[labels[n].strip() for n in measure[:1]])
    assert len(grid) == len(measure)
    assert learned.map.shape == "affine"
    assert learned.stop == ()


def test_sides_are_whole_labels():
    texts = [f"label {n % 40}" for n in range(200)]
    parts = fits._label_parts(texts, 5, 6, 3)
    sides = [{texts[n] for n in part} for part in parts]
    assert sorted(n for part in parts for n in part) == list(range(200))
    assert [len(side) for side in sides] == [29, 5, 6]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


@pytest.mark.parametrize("shape", ["scale_only", "low_rank", "low_rank_only", "full"])
def test_every_shape_is_trained(lm, data, shape):
    got = fitted(lm, data, shape=shape, rank=4, steps=6)
    assert got.map.shape == shape
    assert got.map.rank == (4 if "rank" in shape else None)
    assert got.report["steps_made"] == 6
    # at first each is the map that the weights start as
    assert all(torch.isfinite(t).all() for t in got.map.tensors().values())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("several", [None, 2])
def test_weights_in_units_are_the_map(normalize, several):
    h = torch.randn(6, 5, dtype=torch.float64)
    for shape in ("affine", "scale_only", "low_rank", "low_rank_only", "full"):
        weights = MapWeights(
            shape, (5, 5), rank=2, normalize=normalize, layers=several, norm=3.0, length=2.0, scale=0.5,
            like=h, seed=1,
        )  # fmt: skip
        moved = {name: t + 0.1 * torch.randn_like(t) for name, t in weights.start.items()}
        which = [0, 1, 0, 1, 1, 0] if several else [0] * 6
        got = weights.written(moved, h, which)
        f = weights.map(moved, (4, 9) if several else None)
        wanted = [f(h[n], (4, 9)[which[n]]) if several else f(h[n]) for n in range(6)]
        assert_close(got, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_gradients_of_weights_are_finite_differences():
    """Of the whole loss, through the model and the map, at two placeholders of a middle layer."""
    lm = ls.LM(tiny.model("gpt2", dtype=torch.float64), tiny.tokenizer(), "tiny-gpt2")
    read = fits.PatchedLabels(lm, Target("the x of the x is", at="x", every=True), 1, edits.add_norm_matched)
    h, labels = torch.randn(3, 2, lm.hidden_size, dtype=torch.float64), [(5, 9), (7,), (4, 4, 8)]
    how = {"rank": 2, "normalize": True, "norm": 2.0, "length": 1.0, "scale": 1.0, "like": h, "seed": 0}
    weights = MapWeights("low_rank", (lm.hidden_size, lm.hidden_size), layers=2, **how)
    draw = torch.Generator().manual_seed(0)
    at = {n: t + 0.1 * torch.randn(t.shape, generator=draw, dtype=t.dtype) for n, t in weights.start.items()}
    which = [0, 1, 1]
    vectors = torch.stack([h[n, layer] for n, layer in enumerate(which)])

    def total(w):
        return float(read.log_probs(weights.written(w, vectors, which), labels).sum())

    asked = {n: t.clone().requires_grad_() for n, t in at.items()}
    written = weights.written(asked, vectors, which)
    _, slopes = read.gradients(written.detach(), labels)
    grads = torch.autograd.grad(written, list(asked.values()), slopes)
    for (name, t), grad in zip(at.items(), grads, strict=True):
        way = torch.randn(t.shape, generator=draw, dtype=t.dtype)
        ends = [total({**at, name: t + sign * 1e-5 * way}) for sign in (1, -1)]
        assert_close(float((grad * way).sum()), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("killed_at", [1, 3, 20])
def test_a_killed_run_goes_on_bit_for_bit(lm, data, learned, tmp_path, killed_at):
    def kill(done, total):
        if done == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(VerbaliserInterrupted) as stopped:
        fitted(lm, data, folder=tmp_path, progress=kill)
    assert stopped.value.verbaliser.report["steps_made"] == killed_at
    assert not stopped.value.verbaliser.report["finished"]
    seen = []
    got = fitted(lm, data, folder=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == killed_at + 1
    assert mapping_hash(got.map) == mapping_hash(learned.map)
    assert got.report["losses"] == learned.report["losses"]
    assert got.report["measured"] == learned.report["measured"]
    assert not (tmp_path / "checkpoint").exists()
    # the finished run is read, and not made again
    again = fitted(lm, data, folder=tmp_path, progress=lambda *_: pytest.fail("ran again"))
    assert mapping_hash(again.map) == mapping_hash(got.map)
    assert again.report == got.report
    with pytest.raises(ls.LenscopeError, match="holds a verbaliser of another run, with another shape"):
        fitted(lm, data, folder=tmp_path, shape="scale_only")


def test_a_checkpoint_of_another_run_is_refused(lm, data, tmp_path):
    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(VerbaliserInterrupted):
        fitted(lm, data, folder=tmp_path, progress=kill)
    with pytest.raises(ls.LenscopeError, match="is of another run, with another steps; remove it to begin anew"):
        fitted(lm, data, folder=tmp_path, steps=41)


def test_layers_share_weights_or_have_their_own(lm, data, tmp_path):
    vectors, labels = data
    both = torch.stack([vectors, -vectors], 1)
    how = {"layers": [1, 3], "pooled": False, "center": torch.ones(2, lm.hidden_size), "steps": 30}
    got = fitted(lm, (both, labels), **how)
    assert got.map.layers == got.layers == (1, 3)
    assert len(got.report["measured"]["by layer"]) == 2
    # at one layer the vectors are turned round, which the scales learn where each layer has its own
    assert float(got.map.scale[0]) > float(got.map.scale[1])
    got.save(tmp_path)
    assert mapping_hash(load_verbaliser(tmp_path, lm).map) == mapping_hash(got.map)
    pooled = fitted(lm, (both, labels), layers=[1, 3], steps=4)
    assert pooled.map.layers is None
    states = lm.read(["the x", "a y is"], (1, 2, 3), -1)
    kept = got.vectors(states)
    assert kept.layers == (1, 3)
    assert_close(kept.tensor, states.tensor[:, [0, 2]] - 1)
    grid = got.scope(lm).generate(kept, max_new_tokens=2)
    assert len(grid) == 4


def test_training_ends_early_and_keeps_the_best(lm, data):
    bad = changed(QUICK, learning_rate=50.0, warmup=0, checks=20, patience=2)
    got = fitted(lm, data, recipe=bad)
    losses = [one["loss"] for one in got.report["held_out_loss"]]
    assert got.report["steps_made"] < 40
    heard = []
    again = fitted(lm, data, recipe=bad, heard=lambda step, loss: heard.append((step, loss)))
    assert heard == [(one["step"], one["loss"]) for one in got.report["held_out_loss"]]
    assert losses[-1] > min(losses)
    assert mapping_hash(again.map) == mapping_hash(got.map)


def test_minutes_set_how_many_steps_there_are(lm, data):
    got = fitted(lm, data, minutes=1e-6)
    assert got.report["steps_made"] == 5
    assert len(got.report["losses"]) == 5


def test_states_of_another_model_take_a_map_to_its_width(lm, data):
    from char_tokenizers import char_model

    source = char_model()
    vectors = torch.randn(len(data[1]), source.hidden_size)
    with pytest.raises(ls.LenscopeError, match="shape 'affine': keeps a vector's width"):
        fitted(lm, (vectors, data[1]), source_lm=source)
    got = fitted(lm, (vectors, data[1]), source_lm=source, shape="full", steps=2)
    assert (got.map.input_width, got.map.width) == (source.hidden_size, lm.hidden_size)
    assert got.report["measured"]["bias share"] is None
    with pytest.raises(ls.LenscopeError, match="trained for vectors of tiny-gpt2"):
        got.scope(lm)
    assert got.scope(lm, source).source_lm is source


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"shape": "round"}, "shape 'round': give one of affine, scale_only"),
        ({"shape": "low_rank", "rank": 99}, "rank 99: give a whole number from 1 to 32"),
        ({"steps": 0}, "steps 0"),
        ({"minutes": -1}, "minutes -1: give a number above 0"),
        ({"layers": [1, 2]}, "layers [1, 2]: vectors of 1 layers"),
        ({"layers": [9]}, "layer 9: tiny-llama has layers 0–4"),
        ({"pooled": False}, "pooled False: each layer has weights of its own"),
        ({"target_layer": 7}, "layer 7: tiny-llama has layers 0–4"),
        ({"end": 3}, "end 3: give a text"),
        ({"center": torch.zeros(3), "layers": [1]}, "center of shape (1, 3): give finite numbers, (32,)"),
        ({"labels": ["a"]}, "labels: 1 for 90 vectors"),
        ({"labels": "abc"}, "labels: is one text"),
        ({"labels": [" "] * 90}, "labels: number 0, ' ', is no text"),
        ({"labels": ["a", "b", "c"] * 30}, "labels: 3 differ, and 8 are held out"),
        ({"vectors": torch.zeros(90, 7)}, "vectors of 7 numbers: states of tiny-llama have 32"),
        ({"vectors": torch.zeros(90)}, "vectors of shape (90,)"),
        ({"vectors": torch.full((90, 32), torch.nan)}, "vectors: number 0 holds NaN"),
        ({"vectors": "none"}, "vectors: str is no vector"),
    ],
)
def test_what_cannot_be_trained_is_refused(lm, data, how, said):
    vectors, labels = how.pop("vectors", data[0]), how.pop("labels", data[1])
    with pytest.raises(ls.LenscopeError, match=re.escape(said)):
        fitted(lm, (vectors, labels), **how)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("clip", 0), ("scale", -1), ("patience", 0.5)])
def test_recipes_have_numbers_in_range(name, value):
    with pytest.raises(ls.LenscopeError, match=name):
        VerbaliserRecipe(**{name: value})
