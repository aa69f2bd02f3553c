"""A fitted Jacobian lens: killed and resumed, in parts and merged, on two processes, it is that of one run."""

import json
import math
import re

import jacobian_processes
import pytest
import torch
from several_processes import started
from small_fits import documents, make

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_lens import fit_jacobian_lens, rows_of_halves
from lenscope.fitting.jacobian_merging import merge_jacobian_lenses
from lenscope.fitting.jacobian_sums import SUMS, JacobianSums
from lenscope.fitting.jacobian_texts import text_name_with_paths
from lenscope.mappings.mapping import load_mapping
from lenscope.text.corpus import Corpus

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
        ({"length": 5}, "length 5: the first 4 positions of a prompt and its last one do not count; give at least 6"),
        ({"part": (1, 1000)}, r"parts 1000: list of texts has \d+ rows of 32 tokens .* at most \d+ parts"),
    ],
)
def test_what_is_out_of_range_is_said_before_the_model_runs(changed, says, monkeypatch):
    lm = make()
    monkeypatch.setattr(lm.runner, "capture", None)
    with pytest.raises(LenscopeError, match=says):
        fitted(lm, **changed)


@pytest.mark.parametrize("part", [(1, 1), (1, 2)])
def test_the_most_tokens_that_are_advised_are_all_there_are(part, monkeypatch):
    lm = make()
    monkeypatch.setattr(lm.runner, "capture", None)
    with pytest.raises(LenscopeError, match=r"^tokens 10000000: .* give more text, at most \d+ tokens, or") as refused:
        fitted(lm, tokens=10**7, part=part)
    most = int(re.search(r"at most (\d+) tokens", str(refused.value))[1])
    text = Corpus.open(lm, documents(), **SHORT).split(0.1)[0]
    shorter = min(sum(len(batch.row) for batch in half.batches()) for half in text.split(0.5))
    assert most == 2 * 32 * (shorter - shorter % part[1])
    assert rows_of_halves(text, most, part[1]) == most // (64 * part[1])
    with pytest.raises(LenscopeError, match=f"tokens {most + 1}: "):
        rows_of_halves(text, most + 1, part[1])


def test_a_resumed_fit_reads_nothing_more_where_the_halves_agree(tmp_path):
    lm = make()
    lens = fitted(lm, tokens=3000, until=0.2, folder=tmp_path)
    for _ in range(2):
        errors = []
        again = fitted(lm, tokens=3000, until=0.2, folder=tmp_path, report_error=errors.append)
        assert again.report["prompts"] == lens.report["prompts"]
        assert len(errors) == 1
    assert fitted(lm, tokens=320, until=0.9999, folder=tmp_path).report["prompts"] > lens.report["prompts"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """One text in two files, and another text."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("t.jsonl", 0), ("copy.jsonl", 0), ("other.jsonl", 3)):
        (tmp_path / name).write_text("".join(json.dumps({"input_ids": d}) + "\n" for d in documents(seed=seed)))
    return tmp_path


def test_a_text_counts_once_whatever_its_file_is_called(files):
    lm = make()
    first = fitted(lm, "t.jsonl", folder=files / "a", tokens=192)
    for name in (str(files / "t.jsonl"), "copy.jsonl"):
        assert fitted(lm, name, folder=files / "a", tokens=192).report["prompts"] == first.report["prompts"] == 6
    assert apart(fitted(lm, "./copy.jsonl", folder=files / "a"), fitted(lm, "t.jsonl")) == 0
    fitted(lm, "copy.jsonl", folder=files / "b", tokens=64)
    with pytest.raises(LenscopeError, match="has read text that another"):
        merge_jacobian_lenses(lm, [files / "a", files / "b"])
    # another text may come into the same folder
    assert fitted(lm, "other.jsonl", folder=files / "b", tokens=64).report["prompts"] == 4


def test_parts_of_one_text_under_two_paths_merge_where_they_are_apart(files):
    lm = make()
    for folder, name, part in (("1", "t.jsonl", (1, 2)), ("2", "copy.jsonl", (2, 2)), ("3", "copy.jsonl", (2, 3))):
        fitted(lm, name, folder=files / folder, part=part, tokens=192)
    before = merge_jacobian_lenses(lm, [files / "1", files / "2"], folder=files / "both").report["prompts"]
    fitted(lm, "copy.jsonl", folder=files / "again", part=(1, 2), tokens=192)
    for folders in (("1", "3"), ("1", "again")):
        with pytest.raises(LenscopeError, match="has read text that another"):
            merge_jacobian_lenses(lm, [files / name for name in folders])
    # what was merged goes on by its parts
    assert fitted(lm, "t.jsonl", folder=files / "both", part=(2, 2)).report["prompts"] > before


def test_a_folder_counts_no_prompt_twice(files):
    lm = make()
    epochs = Corpus.open(lm, "copy.jsonl", epochs=2, **SHORT)
    fitted(lm, "t.jsonl", folder=files / "a", part=(1, 2), tokens=192)
    for data, part, says in (
        ("copy.jsonl", (1, 1), "has read part 1/2 of this text, and part 1/1 would count"),
        ("t.jsonl", (2, 3), "has read part 1/2 of this text, and part 2/3 would count"),
        (epochs, (1, 2), "has read this text in epochs 1, and epochs 2 would count its prompts again; give epochs 1"),
        ([files / "t.jsonl", files / "other.jsonl"], (1, 2), "has read some of these files beside others or alone"),
    ):
        with pytest.raises(LenscopeError, match=says):
            fitted(lm, data, folder=files / "a", part=part, tokens=192)
    assert fitted(lm, "t.jsonl", folder=files / "a", part=(2, 2), tokens=192).report["prompts"] == 8


def test_a_folder_with_names_of_before_goes_on(files):
    lm = make()
    about = Corpus.open(lm, "t.jsonl", **SHORT).split(0.1)[0].split(0.5)[1].provenance()
    for name in ("a", "b"):
        fitted(lm, "t.jsonl", folder=files / name, tokens=192)
        sums = JacobianSums.load(files / name / SUMS)
        sums.rows = {text_name_with_paths(about, (0, 1)): 3}
        sums.save(files / name / SUMS)
    assert apart(fitted(lm, "t.jsonl", folder=files / "a"), fitted(lm, "t.jsonl")) == 0
    # with the name of today beside the old one: comparable with both kinds
    assert list(JacobianSums.load(files / "a" / SUMS).rows.values()) == [6, 6]
    fitted(lm, "copy.jsonl", folder=files / "c", tokens=64)
    for other in ("b", "c"):
        with pytest.raises(LenscopeError, match="has read text that another"):
            merge_jacobian_lenses(lm, [files / "a", files / other])


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
