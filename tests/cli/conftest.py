"""What the tests of commands share: tiny models in folders, a text, a lens that was fitted, command lines that fail."""

import json
import random

import pytest
from command_lines import fitting
from saved_models import save_model

from lenscope.cli.main import main
from lenscope.models import loading

TEXT = "the cat sat on a mat in this capital city of France and Paris is it while tests of tokens go on"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models"), "other-llama", seed=1)


@pytest.fixture(scope="session")
def roomy(tmp_path_factory):
    """A tiny model that the demo's prompts fit into."""
    return save_model(tmp_path_factory.mktemp("models"), "roomy-llama", context=512)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(TEXT.split(), k=60))}) for _ in range(200))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="session")
def lens(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lens") / "one"
    with pytest.raises(SystemExit) as left:
        main(fitting(model, text, folder))
    assert left.value.code == 0
    return folder


@pytest.fixture
def mistaken(run, tmp_path, model, text):
    """A command line that is a mistake: its one line on stderr. Capitals stand for a model, texts and folders."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "corrupt").mkdir()
    places = {"MODEL": model, "TEXT": text, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty.txt"}
    places |= {"SHORT": tmp_path / "short.txt", "CORRUPT": tmp_path / "corrupt"}

    def line(*arguments):
        status, out, err = run(*(str(places.get(a, a)) for a in arguments))
        assert (status, out) == (2, "")
        assert err.startswith("lenscope: ")
        assert err.count("\n") == 1
        return err

    return line


@pytest.fixture
def call(run, tmp_path, monkeypatch):
    """A command line with real files in it, where no model may be loaded."""

    def loaded(*_, **__):
        raise AssertionError("a model is loaded for what can be seen without one")

    monkeypatch.setattr(loading, "load", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a b c"}))
    (tmp_path / "plain.txt").write_text("a b c")
    (tmp_path / "many.txt").write_text("\n".join(f"prompt {n}" for n in range(40)))
    for folder in ("lens", "empty", "folder.json"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lens" / "config.json").write_text("{}")
    places = {
        "TEXT": "text.jsonl", "TEXZ": "./texz.jsonl", "PLAIN": "plain.txt", "MANY": "many.txt", "PLAN": "plan.txt",
        "LENS": "lens", "LENZ": "./lenz", "EMPTY": "empty", "OUT": "out",
        "NOWHERE/x.json": "nowhere/x.json", "FOLDER.json": "folder.json", "a=LENZ": "a=./lenz",
    }  # fmt: skip

    def called(arguments):
        return run(*(places.get(a, a) for a in arguments)), places

    return called
