"""`lenscope fit-verbaliser` on a tiny model: sources of vectors, the use by `patch`, mistakes told in one line."""

import json

import pytest
import safetensors.torch
import torch

import lenscope as ls
from lenscope.cli.main import main
from lenscope.mappings import SelfieAdapter, VectorMap, write_selfie_adapter

TITLES = [f"title {a}{b}" for a in "abcdef" for b in "vwxyz"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "titles.txt").write_text("\n".join([*TITLES, "", TITLES[0]]))
    safetensors.torch.save_file({"v": torch.randn(30, 32)}, folder / "v.safetensors")
    (folder / "labels.txt").write_text("\n".join(TITLES))
    rows = [{"prompt": f"the {t} is", "token": t, "label": t} for t in TITLES]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def trained(roomy, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("says") / "one"
    with pytest.raises(SystemExit) as left:
        main(["fit-verbaliser", "-m", roomy, "--titles", str(files / "titles.txt"), "-o", str(folder), "--steps", "2"])
    assert left.value.code == 0
    return folder


def test_titles_become_a_verbaliser_that_patch_uses(run, roomy, files, trained, tmp_path):
    again = ["fit-verbaliser", "-m", roomy, "--titles", str(files / "titles.txt"), "-o", str(trained), "--steps", "2"]
    status, out, err = run(*again)
    assert status == 0, err
    for part in ("another label's vector", "bias alone", "trained less this", "5 labels that were not trained on"):
        assert part in out
    assert "--verbaliser" in out
    saved = str(tmp_path / "said.json")
    status, out, err = run("patch", "a state", "-m", roomy, "--verbaliser", str(trained), "-n", "3", "-o", saved)
    assert status == 0, err
    grid = ls.load_grid(saved)
    # the layer that it was trained on, into the placeholders' own
    assert [source.layer for source in grid.sources] == [2]
    assert grid.layer.tolist() == [0]


def test_a_run_of_another_precision_in_the_same_folder_is_refused(run, roomy, files, tmp_path):
    """Vectors of a file are the same data in any precision."""
    source = ["--vectors", str(files / "v.safetensors"), "--labels", str(files / "labels.txt")]
    command = ["fit-verbaliser", "-m", roomy, *source, "--steps", "1", "-o", str(tmp_path / "new")]
    assert run(*command)[0] == 0
    status, out, err = run(*command, "--dtype", "bfloat16")
    assert (status, out) == (2, "")
    assert "of another run, with another dtype (float32, not bfloat16); give another folder\n" in err
    assert "saved" not in err


def test_ask_takes_a_verbaliser(run, roomy, trained):
    asked = ["ask", "the cat sat on a mat", "What is it?", "-m", roomy, "--verbaliser", str(trained), "-n", "2"]
    status, out, err = run(*asked, "--json")
    assert status == 0, err
    document = json.loads(out)
    # at the layer that it was trained on, and with what a reader has to know
    assert [a["layer"] for a in document["answers"]] == [2, 2, 2, None, None]
    assert "behind its own question" in document["note"]
    assert err.count("\n") == 1
    status, _, err = run(*asked, "--layers", "1")
    assert (status, err.count("\n")) == (2, 1)
    assert "this verbaliser takes vectors of layers 2" in err


def test_ask_and_patch_take_the_file_of_a_selfie_adapter(run, roomy, tmp_path):
    lm = ls.load(roomy)
    f = VectorMap(scale=torch.tensor(5.0), bias=torch.zeros(lm.hidden_size))
    file = tmp_path / "adapter.safetensors"
    template = '<s>What is "X"? It is "'
    write_selfie_adapter(SelfieAdapter(f, lm.hidden_size, template, "X", None), file)
    for command in (["ask", "the cat sat", "What is it?"], ["patch", "the cat sat"]):
        status, _, err = run(*command, "-m", roomy, "--verbaliser", str(file), "--layers", "1", "-n", "2")
        assert status == 0, err
    file.write_bytes(b"no")
    status, _, err = run("ask", "the cat sat", "What is it?", "-m", roomy, "--verbaliser", str(file))
    assert (status, err.count("\n")) == (2, 1)
    assert "adapter.safetensors" in err


@pytest.mark.parametrize("kind", ["vectors", "prompts"])
def test_other_sources_of_vectors(run, roomy, files, tmp_path, kind):
    source = {
        "vectors": ["--vectors", files / "v.safetensors", "--labels", files / "labels.txt"],
        "prompts": ["--prompts", files / "rows.jsonl", "--layers", "1,3", "--each-layer"],
    }[kind]
    shape = ["--shape", "low_rank", "--rank", "2", "--steps", "1", "--json"]
    status, out, err = run("fit-verbaliser", "-m", roomy, *map(str, source), *shape, "-o", str(tmp_path / "new"))
    assert status == 0, err
    report = json.loads(out)
    assert report["kind"] == "fit-verbaliser"
    assert report["shape"] == ["low_rank", 2, True, kind == "vectors"]
    assert report["layers"] == ([] if kind == "vectors" else [1, 3])
    assert "nats per token of held-out labels" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no vectors: give one of --titles, --vectors, --prompts"),
        (["--titles", "TEXT", "--prompts", "TEXT"], "--titles and --prompts: give one of"),
        (["--vectors", "TEXT"], "--vectors: give --labels too"),
        (["--titles", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--titles", "TEXT", "--shape", "afine"], "did you mean affine?"),
        (["--titles", "TEXT", "--rank", "0"], "--rank 0: give at least 1"),
        (["--titles", "TEXT", "--shape", "low_rank", "--rank", "0"], "--rank 0: give at least 1"),
        (["--titles", "TEXT", "--steps", "0"], "--steps 0: give at least 1"),
        (["--titles", "TEXT", "--minutes", "nan"], "--minutes nan: give a number above 0"),
        (["--titles", "SHORT"], "titles: 1; give two at least"),
        (["--vectors", "TEXT", "--labels", "TEXT"], "give vectors in a .safetensors, .npy, .parquet file"),
        (["--prompts", "TEXT"], "line 1: give an object with texts"),
        (["--titles", "TEXT", "--layers", "99"], "layer 99"),
    ],
)
def test_mistakes_are_told_in_a_line(mistaken, arguments, said):
    assert said in mistaken("fit-verbaliser", "-m", "MODEL", "-o", "NEW", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verbaliser", "NEW"], "no such folder"),
        (["--verbaliser", "CORRUPT"], "is no verbaliser that lenscope saved"),
        (["--verbaliser", "CORRUPT", "--grid"], "--grid: --verbaliser has a target prompt"),
        (["--verbaliser", "CORRUPT", "-t", "identity"], "--target: --verbaliser has a target prompt"),
    ],
)
def test_patch_refuses_what_is_no_verbaliser(mistaken, arguments, said):
    assert said in mistaken("patch", "hi", "-m", "MODEL", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verbaliser", "NEW"], "no such folder"),
        (["--verbaliser", "CORRUPT"], "is no verbaliser that lenscope saved"),
        (["--verbaliser", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--verbaliser", "CORRUPT", "--oracle", "CORRUPT"], "--oracle and --verbaliser are two ways to ask"),
    ],
)
def test_ask_refuses_what_is_no_verbaliser(mistaken, arguments, said):
    assert said in mistaken("ask", "hi", "What?", "-m", "MODEL", *arguments)


def test_another_model_is_refused(run, other, trained):
    status, _, err = run("patch", "hi", "-m", other, "--verbaliser", str(trained))
    assert status == 2
    assert "verbaliser: trained to be said by" in err
    assert err.count("\n") == 1
