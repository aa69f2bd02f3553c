"""A Jacobian lens of a streamed model is that of the model in memory, also after a kill, in two readings a prompt."""

import shutil
from collections import namedtuple

import pytest
import tiny
import torch
from jacobians_by_hand import InFloat64
from small_fits import documents

import lenscope as ls
from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_lens import fit_jacobian_lens, make_run
from lenscope.fitting.jacobian_merging import merge_jacobian_lenses
from lenscope.fitting.jacobian_sums import SUMS, JacobianSums
from lenscope.fitting.streamed_jacobian import ROWS, room_needed
from lenscope.models import load_streamed
from lenscope.text.corpus import Corpus

HOW = {"tokens": 96, "length": 24, "skip": 4, "shrink": False}
IDS = [20, 41, 7, 99, 130, 55, 20, 250, 31, 77, 12, 180, 33, 34, 35, 36]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path / "cache"))


def saved(folder, kind, dtype=torch.float32):
    tiny.model(kind, dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny llama: two keys for four heads."""
    return saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def folder_of_lens(tmp_path_factory):
    return tmp_path_factory.mktemp("lens")


@pytest.fixture(scope="module")
def streamed(llama, folder_of_lens):
    """The lens of the streamed model."""
    return fit_jacobian_lens(load_streamed(llama), documents(), folder=folder_of_lens, **HOW)


def apart(one, other):
    return max(float((one.weights[p][0] - other.weights[p][0]).abs().max()) for p in one.weights)


def run_of(lm, last=None):
    corpus = Corpus.open(lm, documents(), length=24, skip=4)
    layers = lm.n_layers if last is None else last
    settings = {"target_layer": layers, "rule": "gradient", "targets": "later"}
    sums = JacobianSums(torch.zeros(2, layers, lm.hidden_size, lm.hidden_size), [0, 0], settings)
    return make_run(lm, corpus, sums, (0, 1), Group())


# grouped keys; sliding windows; experts; positions in a table; recurrent; blocks that share weights
@pytest.mark.parametrize("kind", ["llama", "gemma2", "jetmoe", "gpt2", "mamba", "zamba"])
def test_jacobians_are_those_of_the_model_in_memory(kind, tmp_path):
    folder = saved(tmp_path / kind, kind, torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    counted[-3:] = False
    with InFloat64():
        whole = run_of(ls.load(folder)).rows_of(IDS, counted)
        lm = load_streamed(folder)
        run = run_of(lm)
        first = run.rows_of(IDS, counted)
        before = lm.runner.stream.passes
        again = run.rows_of(IDS, counted)
        z = torch.randn(3, lm.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        assert (run.rows_of(IDS, counted, z) - z @ whole).abs().max() < 1e-9
    assert whole.dtype == first.dtype == torch.float64
    assert (first - whole).abs().max() < 1e-9
    assert torch.equal(first, again)
    assert lm.runner.stream.passes - before < 4


def test_the_layer_before_the_last_may_be_aimed_at(tmp_path):
    folder = saved(tmp_path / "llama", "llama", torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    with InFloat64():
        ours, whole = (run_of(load(folder), 3).rows_of(IDS, counted) for load in (load_streamed, ls.load))
    assert len(ours) == 3
    assert (ours - whole).abs().max() < 1e-9


def test_a_row_takes_two_readings_of_the_weights(llama):
    lm = load_streamed(llama)
    run, counted = run_of(lm), torch.arange(len(IDS)) >= 3
    run.rows_of(IDS, counted)
    before = lm.runner.stream.reads
    run.rows_of(IDS, counted)
    # the first block and the last one stay where a direction ends
    assert lm.runner.stream.reads - before == 2 * lm.n_layers - 2


def test_a_streamed_fit_is_the_fit_in_memory(llama, tmp_path):
    lm, told, how = load_streamed(llama, identify=True), [], {**HOW, "shrink": True}
    plain = fit_jacobian_lens(ls.load(llama), documents(), **how)
    lens = fit_jacobian_lens(lm, documents(), folder=tmp_path, progress=lambda *a: told.append(a), **how)
    assert apart(lens, plain) < 1e-6
    assert told[-1] == (16, 16)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert lens.source == plain.source
    assert lens.report["prompts"] == plain.report["prompts"] == 4
    for one, other in zip(lens.report["layers"], plain.report["layers"], strict=True):
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-5)
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-4)
    assert [row["towards"] for row in lens.report["shrinkage"]] == [row["towards"] for row in plain.report["shrinkage"]]
    assert not (tmp_path / ROWS).exists()


def test_the_model_in_memory_goes_on_from_a_streamed_fit(llama, streamed, folder_of_lens, tmp_path):
    folder, longer = tmp_path / "lens", {**HOW, "tokens": 144}
    shutil.copytree(folder_of_lens, folder)
    memory = ls.load(llama)
    lenses = [fit_jacobian_lens(memory, documents(), folder=where, **longer) for where in (folder, None)]
    assert apart(*lenses) < 1e-6


class Killed(BaseException):
    """In place of a kill: nothing is saved on the way out."""


def killed(llama, folder, at):
    def progress(done, _):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        fit_jacobian_lens(load_streamed(llama), documents(), folder=folder, progress=progress, **HOW)


# within the first row; within that of the second half; before the lens is measured
@pytest.mark.parametrize("at", [2, 6, 16])
def test_a_killed_run_goes_on_within_its_row(llama, streamed, tmp_path, at):
    killed(llama, tmp_path, at)
    told = []
    lens = fit_jacobian_lens(
        load_streamed(llama), documents(), folder=tmp_path, progress=lambda done, _: told.append(done), **HOW
    )
    assert min(told, default=at) >= at
    assert apart(lens, streamed) == 0
    assert lens.report["layers"] == streamed.report["layers"]


def test_an_interruption_between_the_halves_counts_no_prompt_twice(llama, streamed, tmp_path):
    def progress(done, _):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_jacobian_lens(load_streamed(llama), documents(), folder=tmp_path, progress=progress, **HOW)
    assert JacobianSums.load(tmp_path / SUMS).prompts == [0, 0]
    assert apart(fit_jacobian_lens(load_streamed(llama), documents(), folder=tmp_path, **HOW), streamed) == 0


def test_the_folder_of_another_run_is_refused(llama, tmp_path):
    killed(llama, tmp_path, 2)
    with pytest.raises(LenscopeError, match="of another run, with seed 0 where this one has seed 1"):
        fit_jacobian_lens(load_streamed(llama), documents(), folder=tmp_path, seed=1, **HOW)


def test_parts_merge_to_the_lens_of_one_run(llama, streamed, tmp_path):
    lm = load_streamed(llama, identify=True)
    for number in (1, 2):
        fit_jacobian_lens(lm, documents(), folder=tmp_path / str(number), part=(number, 2), **HOW)
    merged = merge_jacobian_lenses(lm, [tmp_path / "1", tmp_path / "2"], documents(), shrink=False)
    assert merged.report["prompts"] == 4
    assert apart(merged, streamed) < 1e-6


def test_reading_stops_when_the_halves_agree(llama, tmp_path):
    lens = fit_jacobian_lens(load_streamed(llama), documents(), folder=tmp_path, until=0.1, **{**HOW, "tokens": 480})
    assert lens.report["prompts"] < 20


def test_too_little_disk_is_told_before_a_row_is_run(llama, tmp_path, monkeypatch):
    lm = load_streamed(llama, identify=True)
    # gradients of 19 of 24 tokens, in chunks of 53 of the dimensions, and 32 bytes for each number of a Jacobian
    assert room_needed(lm, 4, 19) == (32 + 53) * 19 * 32 * 4 + 32 * 4 * 32**2
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(LenscopeError, match=r"gradients of a row, sums of Jacobians and the lens take .* GB, and 0.0"):
        fit_jacobian_lens(lm, documents(), folder=tmp_path, **HOW)


def test_what_a_streamed_model_cannot_have_is_refused(llama, tmp_path):
    lm = load_streamed(llama)
    before = lm.runner.stream.passes
    for changed, says in (
        ({"targets": "same"}, "targets 'same' runs each position by itself"),
        ({"rule": "relp"}, "give rule 'gradient'"),
        ({"folder": None}, "give a folder"),
        ({"data": None}, "samples of its own"),
    ):
        with pytest.raises(LenscopeError, match=says) as error:
            fit_jacobian_lens(lm, **{"data": documents(), "folder": tmp_path, **HOW, **changed})
        assert "\n" not in str(error.value)
    assert lm.runner.stream.passes == before
