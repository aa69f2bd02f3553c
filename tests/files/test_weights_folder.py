"""Folders of config and weights: bit rot is seen, writers do not disturb each other, other folders are named."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from affine_lens import affine
from handmade import rewritten

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.files import kinds
from lenscope.files import weights_folder as artifacts
from lenscope.files.writing import folder_lock

PROMPT = "The capital of France is"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def saved(folder: Path, lm: ls.LM, seed: int = 0) -> dict:
    affine(lm, seed).save(folder)
    return json.loads((folder / "config.json").read_text())


def leaving(config: dict) -> list[str]:
    """Names of weights that lie elsewhere."""
    name = config["weights"]
    return [f"../a/{name}", f"mapping-x/../../a/{name}", f"mapping-x/{name}", "/etc/mapping.safetensors", "..", ""]


def disk_full(monkeypatch, *names: str) -> None:
    """No file of these names, or none at all, can get its name."""
    replace = os.replace

    def full(source, target, **kwargs):
        if not names or Path(target).name in names:
            raise OSError(28, "No space left on device")
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)


CONFIG = {"name": "é", "numbers": [1, 2.5, None], "more": {"a": True}}


def write(folder, value=0.0, config=CONFIG):
    artifacts.write_folder(folder, "mapping", config, {"w": torch.full((3, 2), value)})
    return folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_is_read_and_equal_artifacts_are_equal_files(tmp_path):
    config, tensors = artifacts.read_folder(write(tmp_path / "a"), "mapping")
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert tensors["w"].equal(torch.zeros(3, 2))
    write(tmp_path / "b")
    assert [(p.name, p.read_bytes()) for p in sorted((tmp_path / "a").iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted((tmp_path / "b").iterdir())
    ]


def in_two_files(folder, value=0.0):
    """An artifact whose tensors two writers wrote."""
    folder.mkdir(exist_ok=True)
    tensors = {"v": torch.full((2, 2), value), "w": torch.full((3, 2), value + 1)}
    parts = [artifacts.write_weights_file(folder, "mapping", CONFIG, {name: t}) for name, t in tensors.items()]
    artifacts.join_weights_files(folder, "mapping", CONFIG, parts)
    return [folder / part.name for part in parts]


def test_weights_in_several_files_are_read_as_one_and_replaced_as_one(tmp_path):
    files = in_two_files(tmp_path)
    config, tensors = artifacts.read_folder(tmp_path, "mapping")
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert artifacts.names_of_weights(config) == [path.name for path in files]
    assert sorted(tensors) == ["v", "w"]
    assert kinds.kind_of_path(tmp_path) == "mapping"
    for path in files:
        content = path.read_bytes()
        for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), files[files[0] == path].read_bytes()):
            path.write_bytes(damaged)
            with pytest.raises(LenscopeError, match="damaged"):
                artifacts.read_folder(tmp_path, "mapping")
        path.write_bytes(content)
    again = in_two_files(tmp_path, 5.0)
    assert sorted(tmp_path.glob("*.safetensors")) == sorted(again)
    write(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_several_files_outside_of_the_folder_are_not_read(tmp_path):
    in_two_files(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for names in ([f"../a/{n}" for n in config["weights"]], config["weights"][:1], [], [3, None]):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "weights": names}))
        with pytest.raises(LenscopeError, match="does not name a weights file of a"):
            artifacts.read_folder(tmp_path / "b", "mapping")


def test_every_flipped_bit_of_config_and_weights_is_seen(tmp_path):
    write(tmp_path)
    before = artifacts.read_folder(tmp_path, "mapping")[0]
    for path in list(tmp_path.iterdir()):
        content = path.read_bytes()
        for n in range(len(content)):
            path.write_bytes(content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :])
            try:
                config = artifacts.read_folder(tmp_path, "mapping")[0]
            except LenscopeError:
                pass
            else:
                # between values, JSON has spaces and line ends
                assert config == before
                assert content[n : n + 1].isspace()
        path.write_bytes(content)


def test_a_changed_config_is_seen(tmp_path):
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "numbers": [1, 2.5, 3]}))
    with pytest.raises(LenscopeError, match=r"config\.json is damaged or was changed"):
        artifacts.read_folder(tmp_path, "mapping")


def test_weights_of_another_folder_are_not_read(tmp_path):
    write(tmp_path / "other", 1.0)
    (weights,) = (tmp_path / "other").glob("*.safetensors")
    for name in (f"../other/{weights.name}", str(weights), "mapping/../../other/" + weights.name):
        (tmp_path / "mapping").mkdir(exist_ok=True)
        folder = rewritten(write(tmp_path / "mine"), lambda about, name=name: about.update(weights=name))
        digest = json.loads((tmp_path / "other" / "config.json").read_text())["sha256"]
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**about, "sha256": digest}))
        with pytest.raises(LenscopeError, match="does not name a weights file of a"):
            artifacts.read_folder(folder, "mapping")
        # nor removed when the folder is written again
        write(folder)
        assert weights.exists()


def test_equal_weights_stay_where_the_config_cannot_be_written(tmp_path, monkeypatch):
    write(tmp_path)
    before = names(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "write_text", full)
    with pytest.raises(LenscopeError, match="No space left"):
        write(tmp_path)
    # other weights, which are of no config, do not stay
    with pytest.raises(LenscopeError, match="No space left"):
        write(tmp_path, 1.0)
    assert names(tmp_path) == before
    artifacts.read_folder(tmp_path, "mapping")


def test_a_killed_writer_of_weights_leaves_nothing_for_long(tmp_path):
    """safetensors writes into a file of its own first, which nobody would clear away where it lay beside the others."""
    tensors = {"a": torch.zeros(10_000_000)}
    child = os.fork()
    if not child:

        def watch():
            while not any(name.startswith(".tmp") for _, _, names in os.walk(tmp_path) for name in names):
                pass
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch).start()
        artifacts.write_folder(tmp_path, "thing", {}, tensors)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(tmp_path.rglob(".tmp*"))
    artifacts.write_folder(tmp_path, "thing", {"n": 1}, {"a": torch.zeros(3)})
    (weights,) = tmp_path.glob("thing-*.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", weights.name]
    # whoever may read the one may read the other
    assert weights.stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_what_killed_writers_left_goes_with_the_next_writing(tmp_path):
    write(tmp_path)
    for name in ("mapping-0123456789abcdef.safetensors", ".lenscope-0123.part"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "mapping-mine.safetensors").write_bytes(b"somebody's")
    write(tmp_path, 1.0)
    assert [n for n in names(tmp_path) if "0123" in n] == []
    assert "mapping-mine.safetensors" in names(tmp_path)


def test_threads_that_write_one_folder_leave_one_whole_artifact(tmp_path):
    errors = []

    def writes(value):
        try:
            for _ in range(5):
                write(tmp_path, value, {"value": value})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writes, args=(float(n),)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    config, tensors = artifacts.read_folder(tmp_path, "mapping")
    assert float(tensors["w"][0, 0]) == config["value"]
    assert len(names(tmp_path)) == 2


def test_a_folder_that_a_run_writes_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_WAIT", 0.1)
    told = []

    def tries():
        try:
            write(tmp_path)
        except LenscopeError as error:
            told.append(str(error))

    with folder_lock(tmp_path):
        thread = threading.Thread(target=tries)
        thread.start()
        thread.join()
        write(tmp_path, 1.0)
    assert len(told) == 1
    assert "another run is writing to it" in told[0]


def test_other_folders_are_named(tmp_path):
    for stem, loader in (("basis", "load_basis"), ("detector", "load_detector"), ("softprompt", "load_soft_prompt")):
        artifacts.write_folder(tmp_path / stem, stem, {}, {"w": torch.zeros(1)})
        with pytest.raises(LenscopeError, match=f"is no mapping but a .*; {loader}.* reads it"):
            artifacts.read_folder(tmp_path / stem, "mapping")
    with pytest.raises(LenscopeError, match="is no basis that lenscope saved"):
        artifacts.read_folder(tmp_path / "nowhere", "basis")


def test_weights_outside_of_a_folder_are_not_read(lm, tmp_path):
    """Their name is that of a file in the folder: a path that begins like one may lead out of it."""
    first = saved(tmp_path / "a", lm)
    inner = tmp_path / "b" / "mapping-x"
    inner.mkdir(parents=True)
    (inner / first["weights"]).write_bytes((tmp_path / "a" / first["weights"]).read_bytes())
    for name in leaving(first):
        (tmp_path / "b" / "config.json").write_text(json.dumps({**first, "weights": name}))
        with pytest.raises(ls.LenscopeError):
            ls.load_mapping(tmp_path / "b")


def test_weights_outside_of_a_folder_are_not_removed(lm, tmp_path):
    """What a new artifact replaces is looked up in the old config, which anybody may have written."""
    first = saved(tmp_path / "a", lm)
    (tmp_path / "b" / "mapping-x").mkdir(parents=True)
    before = files(tmp_path / "a")
    for name in leaving(first):
        (tmp_path / "b" / "config.json").write_text(json.dumps({**first, "weights": name}))
        try:
            saved(tmp_path / "b", lm, seed=1)
        except ls.LenscopeError:
            continue
        assert ls.load_mapping(tmp_path / "b").weights.keys() == affine(lm).weights.keys()
    assert files(tmp_path / "a") == before


def test_equal_weights_stay_when_the_config_cannot_be_written(lm, tmp_path, monkeypatch):
    """Their name is that of the old ones: removing what was just written would remove the old artifact's."""
    saved(tmp_path / "a", lm)
    before = files(tmp_path / "a")
    with monkeypatch.context() as patch:
        disk_full(patch, "config.json")
        with pytest.raises(ls.LenscopeError, match="No space left"):
            saved(tmp_path / "a", lm)
    assert files(tmp_path / "a") == before
    ls.load_mapping(tmp_path / "a")
    # and other weights, whose config was not written, are gone
    with monkeypatch.context() as patch:
        disk_full(patch, "config.json")
        with pytest.raises(ls.LenscopeError, match="No space left"):
            saved(tmp_path / "a", lm, seed=1)
    assert files(tmp_path / "a") == before


def test_nothing_is_left_of_what_could_not_be_written(lm, tmp_path, monkeypatch):
    """Temporary files go whatever happened."""
    lens = ls.Lens(lm)
    grid = ls.Patchscope(lm, "a x").predict(lm.read(PROMPT, positions=-1), [1])
    writers = [
        lambda: affine(lm).save(tmp_path / "m"),
        lambda: lens.trajectory(PROMPT).save(tmp_path / "t.json"),
        lambda: lens.trajectory(PROMPT).save(tmp_path / "t.parquet"),
        lambda: lens.trajectory(PROMPT).to_html(tmp_path / "t.html"),
        lambda: grid.save(tmp_path / "g.parquet"),
        lambda: artifacts.write_folder(tmp_path / "m", "x", {}, {"w": torch.zeros(3)}),
    ]
    for write in writers:
        with monkeypatch.context() as patch:
            disk_full(patch)
            with pytest.raises(ls.LenscopeError, match="No space left"):
                write()
        assert files(tmp_path) == {}
    for write in writers:
        write()
    assert all(not Path(name).name.startswith(".") for name in files(tmp_path))
