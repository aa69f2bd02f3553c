"""A fitted Jacobian lens: killed and resumed, in parts and merged, on two processes, it is that of one run."""

import math

import jacobian_processes
import pytest
import torch
from several_processes import started
from small_fits import documents, make

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_lens import fit_jacobian_lens
from lenscope.fitting.jacobian_merging import merge_jacobian_lenses
from lenscope.mappings.mapping import load_mapping

SHORT = {"length": 32, "skip": 4}


def fitted(lm, docs=None, **changed):
    return fit_jacobian_lens(lm, docs or documents(), **{"tokens": 384, **SHORT, **changed})


def apart(one, other):
    return max(float((one.weights[p][0] - other.weights[p][0]).abs().max()) for p in one.weights)


def test_a_lens_says_how_well_it_reads(tmp_path):
    lm = make()
    lens = fitted(lm, folder=tmp_path / "lens")
    rows = lens.report["layers"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert lens.report["lens"] == "Jacobian lens"
    assert lens.report["prompts"] == 12
    for row in rows:
        assert 0 <= row["top1"] <= 1
        assert row["cosine_95"][0] <= row["cosine"] <= row["cosine_95"][1]
        assert math.isfinite(row["kl"])
    assert apart(load_mapping(tmp_path / "lens"), lens) == 0
    trajectory = ls.Lens(lm, ls.load_lens(tmp_path / "lens", lm)).trajectory([20, 30, 40])
    assert trajectory.layers == (0, 1, 2, 3, 4)
    assert trajectory.lens == "Jacobian lens"


def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    lm = make()
    whole = fitted(lm)

    def stop(done, _):
        if done >= 192:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(lm, folder=tmp_path, progress=stop)
    read = []
    resumed = fitted(lm, folder=tmp_path, progress=lambda done, _: read.append(done))
    assert min(read) > 192
    assert apart(whole, resumed) == 0
    assert resumed.report["layers"] == whole.report["layers"]


def test_more_tokens_go_on_from_a_finished_lens(tmp_path):
    lm = make()
    fitted(lm, folder=tmp_path)
    assert apart(fitted(lm, folder=tmp_path, tokens=512), fitted(lm, tokens=512)) == 0


def test_a_lens_that_began_without_products_in_16_bits_goes_on_without_them(tmp_path, monkeypatch):
    lm = make()
    monkeypatch.setenv("LENSCOPE_FAST_PRODUCTS", "0")
    whole = fitted(lm)
    fitted(lm, folder=tmp_path, tokens=192)
    monkeypatch.setenv("LENSCOPE_FAST_PRODUCTS", "1")
    resumed = fitted(lm, folder=tmp_path)
    assert resumed.report["products"] == whole.report["products"] == "float32"
    assert resumed.report["prompts"] == 12
    assert apart(whole, resumed) == 0
    low = fitted(lm, folder=tmp_path / "low")
    assert low.report["products"] == "bfloat16"
    assert apart(whole, low) > 0
    monkeypatch.setenv("LENSCOPE_FAST_PRODUCTS", "0")
    with pytest.raises(LenscopeError, match="products 'bfloat16' where this one has products 'float32'"):
        fitted(lm, folder=tmp_path / "low")


def test_parts_merge_to_the_lens_of_one_run(tmp_path):
    lm = make()
    for number in (1, 2):
        fitted(lm, folder=tmp_path / str(number), part=(number, 2))
    folders = [tmp_path / "1", tmp_path / "2"]
    merged = merge_jacobian_lenses(lm, folders, documents(), folder=tmp_path / "both")
    whole = fitted(lm)
    assert merged.report["prompts"] == whole.report["prompts"] == 12
    assert apart(merged, whole) < 1e-6 * max(float(w[0].abs().max()) for w in whole.weights.values())
    for one, other in zip(merged.report["layers"], whole.report["layers"], strict=True):
        assert abs(one["cosine"] - other["cosine"]) < 1e-5
    unmeasured = merge_jacobian_lenses(lm, folders)
    assert "layers" not in unmeasured.report
    with pytest.raises(LenscopeError, match="has read text that another"):
        merge_jacobian_lenses(lm, [tmp_path / "1", tmp_path / "both"])
    with pytest.raises(LenscopeError, match="holds a lens already"):
        merge_jacobian_lenses(lm, folders, folder=tmp_path / "both")


def test_what_cannot_be_merged_is_refused(tmp_path):
    lm = make()
    fitted(lm, folder=tmp_path / "a")
    fitted(lm, documents(seed=5), folder=tmp_path / "b", targets="same")
    with pytest.raises(LenscopeError, match="targets 'same' where this one has targets 'later'"):
        merge_jacobian_lenses(lm, [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(LenscopeError, match="give at least two"):
        merge_jacobian_lenses(lm, [tmp_path / "a"])
    with pytest.raises(LenscopeError, match="no sums of halves"):
        merge_jacobian_lenses(lm, [tmp_path / "a", tmp_path / "nothing"])
    fitted(lm, documents(seed=7), folder=tmp_path / "c")
    with pytest.raises(LenscopeError, match="fitted for another model"):
        merge_jacobian_lenses(make("gpt2"), [tmp_path / "a", tmp_path / "c"])


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    lm = make()
    fitted(lm, folder=tmp_path)
    with pytest.raises(LenscopeError, match=r"of another run, with seed 0 where this one has seed 1"):
        fitted(lm, folder=tmp_path, seed=1)


def test_reading_stops_when_the_halves_agree():
    lm = make()
    told = []
    lens = fitted(lm, tokens=3000, until=0.5, report_error=told.append)
    assert lens.report["prompts"] < 3000 // 32
    assert told[-1] >= 0.5
    assert all(least < 0.5 for least in told[:-1])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"until": 1.5}, "until 1.5: is a cosine"),
        ({"tokens": 0}, "tokens 0"),
        ({"target_layer": 9}, "target_layer 9: llama has layers 1–4"),
        ({"rule": "lrp"}, "rule 'lrp': there are gradient, relp"),
        ({"part": (3, 2)}, "part 3/2"),
        ({"targets": "all"}, "targets 'all'"),
        ({"tokens": 10**7}, "give more text"),
    ],
)
def test_what_is_out_of_range_is_said_before_the_model_runs(changed, says, monkeypatch):
    lm = make()
    monkeypatch.setattr(lm.runner, "capture", None)
    with pytest.raises(LenscopeError, match=says):
        fitted(lm, **changed)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_lens_by_rules_of_relevance_is_another_one(kind):
    lm = make(kind)
    before = lm.model.config._attn_implementation
    lens, plain = fitted(lm, rule="relp"), fitted(lm)
    assert lens.report["lens"] == "R-lens"
    assert lm.model.config._attn_implementation == before
    # norms and patterns that are held make another matrix, and the same where nothing is left to hold
    assert (lens.weights[0, 4][0] - plain.weights[0, 4][0]).norm() > 0.01 * plain.weights[0, 4][0].norm()


def test_a_block_without_a_rule_is_refused():
    with pytest.raises(LenscopeError, match="MambaMixer"):
        fitted(make("mamba"), rule="relp")


# products in 16 bits round otherwise where a process has another number of threads
@pytest.mark.parametrize(("products", "most"), [("0", 1e-5), ("1", 1e-3)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["plain", "split"])
def test_two_processes_fit_the_lens_of_one(how, products, most, tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_FAST_PRODUCTS", products)
    started(tmp_path / "two", 2, [jacobian_processes.__file__, how])
    whole = fitted(make(), tokens=320)
    two = load_mapping(tmp_path / "two")
    assert two.report["processes"] == 2
    assert two.report["products"] == whole.report["products"]
    assert two.report["prompts"] == whole.report["prompts"]
    assert apart(two, whole) < most * max(float(w[0].abs().max()) for w in whole.weights.values())
    for one, other in zip(two.report["layers"], whole.report["layers"], strict=True):
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-5)
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-4)


def test_a_fit_of_a_float64_model_goes_on_from_its_folder(tmp_path):
    lm = make("llama", torch.float64)
    fitted(lm, folder=tmp_path, tokens=128)
    assert apart(fitted(lm, folder=tmp_path), fitted(lm)) == 0
