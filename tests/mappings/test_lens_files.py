"""Lenses from elsewhere: other packages' files read as those packages read them, and nothing doubtful read at all."""

import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from foreign_lenses import LAYERS, D, assert_reads, jacobian_file, old_config, old_state, own_logits, put, tuned
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import lenscope as ls
from lenscope.mappings.lens_files import SPACE, load_lens
from lenscope.models import same_model


@pytest.mark.parametrize("name", ["params.pt", "params.safetensors"])
def test_a_folder_of_tuned_lens_gives_its_logits(name, lm64, tmp_path):
    state = old_state()
    lens = load_lens(put(tmp_path / "lens", state, old_config(), name), lm64)
    assert_reads(lens, lm64, tuned(state, lm64))
    assert not torch.allclose(tuned(state, lm64)[2], own_logits(lm64, lambda h, _: h)[2], atol=0.1)
    assert isinstance(lens, ls.Affine)
    assert list(lens.weights) == [(n, LAYERS) for n in range(LAYERS)]
    assert ls.Lens(lm64, lens).name == "tuned lens"
    # once read it is a mapping like any other
    lens.save(tmp_path / "saved")
    again = load_lens(tmp_path / "saved", lm64)
    assert_reads(again, lm64, tuned(state, lm64))
    assert again.report == lens.report


def test_tensors_saved_on_a_gpu_are_read_without_one(lm64, tmp_path):
    state = old_state()
    put(tmp_path, state, old_config())
    moved = tmp_path / "moved.pt"
    with zipfile.ZipFile(tmp_path / "params.pt") as old, zipfile.ZipFile(moved, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(moved, weights_only=True)
    moved.replace(tmp_path / "params.pt")
    assert_reads(load_lens(tmp_path, lm64), lm64, tuned(state, lm64))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_pickle_that_would_run_code_is_refused(lm64, tmp_path):
    ran = tmp_path / "ran"
    for new in (True, False):
        put(tmp_path / "lens", {"0.weight": Evil(ran)}, old_config())
        torch.save({"0.weight": Evil(ran)}, tmp_path / "lens" / "params.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(ls.LenscopeError, match="could run code; it was not loaded") as told:
            load_lens(tmp_path / "lens", lm64)
        assert "\n" not in str(told.value)
        assert not ran.exists()
        torch.save({"J": {0: Evil(ran)}}, tmp_path / "j.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(ls.LenscopeError, match="could run code"):
            load_lens(tmp_path / "j.pt", lm64)
        assert not ran.exists()
    # the file is as dangerous as it looks
    torch.load(tmp_path / "j.pt", weights_only=False)
    assert ran.exists()


def test_damaged_files_are_told(lm64, tmp_path):
    put(tmp_path, old_state(), old_config())
    whole = (tmp_path / "params.pt").read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:10], b"", b"no tensors at all", b"\x80\x02."):
        (tmp_path / "params.pt").write_bytes(content)
        with pytest.raises(ls.LenscopeError, match="is damaged, or no file of tensors") as told:
            load_lens(tmp_path, lm64)
        assert "\n" not in str(told.value)
    put(tmp_path, old_state(), old_config(), "params.safetensors")
    (tmp_path / "params.pt").unlink()
    (tmp_path / "params.safetensors").write_bytes((tmp_path / "params.safetensors").read_bytes()[:-9])
    with pytest.raises(ls.LenscopeError, match="is damaged, or no file of tensors"):
        load_lens(tmp_path, lm64)
    (tmp_path / "params.safetensors").unlink()
    with pytest.raises(ls.LenscopeError, match=r"but no params\.pt or params\.safetensors"):
        load_lens(tmp_path, lm64)
    for content in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ls.LenscopeError, match=r"config\.json"):
            load_lens(tmp_path, lm64)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ls.LenscopeError, match=r"it has no config\.json"):
        load_lens(tmp_path, lm64)


def test_a_folder_of_lenscope_is_checked_against_the_model(lm64, lm, tmp_path):
    model = same_model.model_identity(lm64)
    weights = {(n, LAYERS): (torch.eye(D) * n,) for n in range(LAYERS)}
    ls.Affine(weights, model, model).save(tmp_path)
    assert load_lens(tmp_path, lm64).weights[2, LAYERS][0].equal(torch.eye(D) * 2)
    load_lens(str(tmp_path), lm)  # the same weights in float32
    stranger = ls.LM(tiny.model("llama", seed=5), None, "tiny-llama")
    with pytest.raises(ls.LenscopeError, match="fitted from tiny-llama"):
        load_lens(tmp_path, stranger)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of folders: tmp_path/hub/KIND/OWNER/REPOSITORY; what is asked for is recorded."""
    asked = []

    def download(repo_id, file, repo_type, revision=None):
        asked.append((repo_type, repo_id, file))
        path = tmp_path / "hub" / repo_type / repo_id / file
        if not path.is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(path)

    def names(repo_id):
        folder = tmp_path / "hub" / "model" / repo_id
        return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", names)
    return tmp_path / "hub", asked


def test_lenses_are_found_on_the_hub(hub, lm64):
    root, asked = hub
    state = old_state()
    # lenscope's own
    model = same_model.model_identity(lm64)
    ls.Affine({(n, LAYERS): (torch.eye(D) * n,) for n in range(LAYERS)}, model, model).save(root / "model/me/lens")
    assert load_lens("me/lens", lm64).weights[3, LAYERS][0].equal(torch.eye(D) * 3)
    assert [a[:2] for a in asked] == [("model", "me/lens")] * 2
    # a model's repository is no lens: the space has it
    (root / "model/someone/tiny-llama").mkdir(parents=True)
    (root / "model/someone/tiny-llama/config.json").write_text('{"model_type": "t5", "d_model": 32, "num_layers": 4}')
    for name in ("someone/tiny-llama", "tiny-llama"):
        put(root / "space" / SPACE / "lens" / name, state, old_config())
        assert_reads(load_lens(name, lm64), lm64, tuned(state, lm64))
    # a repository in tuned-lens' format
    put(root / "model/me/old", state, old_config())
    assert_reads(load_lens("me/old", lm64), lm64, tuned(state, lm64))
    # Jacobian lenses, by path and by the model's name
    folder = root / "model/np/jacobian/tiny/jlens/wiki"
    folder.mkdir(parents=True)
    jacobian_file(folder / "tiny-llama_jacobian_lens.pt")
    jacobian_file(folder / "gpt2_jacobian_lens.pt")
    for where in ("np/jacobian", "np/jacobian/tiny/jlens/wiki/tiny-llama_jacobian_lens.pt"):
        assert load_lens(where, lm64).layers(LAYERS) == (1, 2, 3, 4)
    with pytest.raises(ls.LenscopeError, match="was fitted for 'gpt2'"):
        load_lens("np/jacobian/tiny/jlens/wiki/gpt2_jacobian_lens.pt", lm64)
    jacobian_file(folder / "tiny-llama_jacobian_lens_n9.pt")
    with pytest.raises(ls.LenscopeError, match="has 2 lenses for tiny-llama; give one, as np/jacobian/tiny"):
        load_lens("np/jacobian", lm64)


def test_what_is_nowhere_is_told(hub, lm64, tmp_path, monkeypatch):
    for where in ("nobody/nothing", "nothing", "a/b/c", "a/b/c.pt"):
        with pytest.raises(ls.LenscopeError, match=f"{where}: no such folder, and no lens for tiny-llama") as told:
            load_lens(where, lm64)
        assert "\n" not in str(told.value)
    _, asked = hub
    asked.clear()
    for where in (tmp_path / "none", "./none", "none.pt", "~/none"):
        with pytest.raises(ls.LenscopeError, match="no such file or folder"):
            load_lens(where, lm64)
    assert not asked

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection\nat all")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    for where in ("me/lens", "gpt2", "me/lens/a.pt"):
        with pytest.raises(
            ls.LenscopeError, match=r"hub cannot be reached .*no connection at all.* while online"
        ) as told:
            load_lens(where, lm64)
        assert "\n" not in str(told.value)
    monkeypatch.undo()
    with pytest.raises(ls.LenscopeError, match="hub cannot be reached"):
        load_lens("me/lens-that-is-nowhere", lm64)  # the tests run with HF_HUB_OFFLINE
