"""The closed form of a streamed model is that of the model in memory, in two readings of its weights."""

import json
import shutil
from collections import namedtuple

import pytest
import tiny
import torch
from small_fits import documents

import lenscope as ls
from lenscope.fitting.streamed_ridge import READ, SOLVED
from lenscope.fitting.tuned_lens import fit
from lenscope.models import load_streamed

HOW = {"tokens": 2000, "length": 32, "recipe": "ridge"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neox")
    tiny.model("gpt_neox").to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(neox, tmp_path_factory):
    """The lens that is fitted with the model in memory."""
    return fit(ls.load(neox), documents(), folder=tmp_path_factory.mktemp("plain") / "lens", **HOW)


def same(a, b):
    """The same numbers to the last bit, and the same report but for times."""
    for pair, weights in a.weights.items():
        for x, y in zip(weights, b.weights[pair], strict=True):
            assert torch.equal(x, y), pair
    timed = {"seconds": 0, "spent": 0, "model": {}}
    assert {**a.report, **timed} == {**b.report, **timed}
    assert (a.source, a.target) == (b.source, b.target)


def test_a_streamed_fit_is_the_fit_in_memory_to_the_last_bit(neox, plain, tmp_path):
    lm = load_streamed(neox, identify=True)
    lens = fit(lm, documents(), folder=tmp_path / "lens", **HOW)
    same(plain, lens)
    assert lm.runner.stream.passes == 2
    assert sorted(p.suffix for p in (tmp_path / "lens").iterdir() if p.name[0] != ".") == [".json", ".safetensors"]
    same(plain, ls.load_lens(tmp_path / "lens", lm))
    assert lm.runner.stream.passes == 2


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "gemma3n_text"])
def test_a_float32_model_of_another_family_is_fitted_as_in_memory(family, tmp_path):
    tiny.model(family).save_pretrained(tmp_path / family)
    tiny.tokenizer().save_pretrained(tmp_path / family)
    lenses = [
        fit(load(tmp_path / family), documents(), folder=tmp_path / name, **HOW)
        for name, load in (("a", ls.load), ("b", load_streamed))
    ]
    for pair, weights in lenses[0].weights.items():
        for x, y in zip(weights, lenses[1].weights[pair], strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-5 * float(x.abs().max()))
    rows = [[(row["layer"], row["kept"]) for row in lens.report["layers"]] for lens in lenses]
    assert rows[0] == rows[1]


class Killed(BaseException):
    """In place of a kill."""


def interrupted(neox, folder, at):
    """A run that ends when so much of its work is done: blocks, then layers; the model, which read as it did."""
    lm = load_streamed(neox)

    def progress(done, _):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        fit(lm, documents(), folder=folder, progress=progress, **HOW)
    return lm


@pytest.mark.parametrize(("at", "readings"), [(2, 1), (6, 0)])
def test_a_killed_run_goes_on(neox, plain, tmp_path, at, readings):
    """In the middle of reading it reads anew; at a layer, it goes on there without running the model."""
    folder = tmp_path / "lens"
    interrupted(neox, folder, at)
    solved = folder / "checkpoint" / SOLVED
    assert solved.exists() == (not readings)
    lm = load_streamed(neox, identify=True)
    before = lm.runner.stream.passes
    same(plain, fit(lm, documents(), folder=folder, **HOW))
    assert lm.runner.stream.passes == before + readings
    assert not (folder / "checkpoint").exists()


@pytest.mark.parametrize(("name", "readings"), [("fitted.states", 1), ("1.A", 0)])
def test_damage_is_seen_and_done_again(neox, plain, tmp_path, name, readings):
    folder = tmp_path / "lens"
    interrupted(neox, folder, 7)
    path = folder / "checkpoint" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    lm = load_streamed(neox, identify=True)
    before = lm.runner.stream.passes
    same(plain, fit(lm, documents(), folder=folder, **HOW))
    assert lm.runner.stream.passes == before + readings


def test_the_folder_of_another_run_is_refused(neox, tmp_path):
    lm = interrupted(neox, tmp_path / "lens", 6)
    assert "settings" in json.loads((tmp_path / "lens" / "checkpoint" / READ).read_text())
    with pytest.raises(ls.LenscopeError, match=r"checkpoint: is of another run; remove it"):
        fit(lm, documents(), folder=tmp_path / "lens", seed=1, **HOW)


def test_too_little_disk_is_told_before_anything_is_read(neox, tmp_path, monkeypatch):
    lm = load_streamed(neox, identify=True)
    before = lm.runner.stream.passes
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(ls.LenscopeError, match=r"states of all layers and the lens take \d.*GB, and 0.0 GB are free"):
        fit(lm, documents(), folder=tmp_path / "lens", **HOW)
    assert lm.runner.stream.passes == before


def test_what_would_read_the_weights_again_and_again_is_refused(neox, tmp_path):
    lm = load_streamed(neox)
    before = lm.runner.stream.passes
    with pytest.raises(ls.LenscopeError, match=r"recipe muon takes steps.*give the recipe ridge"):
        fit(lm, documents(), folder=tmp_path, tokens=2000, length=32)
    with pytest.raises(ls.LenscopeError, match="give a folder"):
        fit(lm, documents(), **HOW)
    with pytest.raises(ls.LenscopeError, match="samples of its own"):
        fit(lm, None, folder=tmp_path, **HOW)
    assert lm.runner.stream.passes == before
