"""Whatever takes a lens takes a Jacobian lens as it is published: maps of the layers from 1 on, named as it is."""

import json
from functools import partial

import pytest
import torch
from saved_models import save_model
from view_server import serving

import lenscope as ls
from lenscope.detection import detector as detection
from lenscope.detection.outliers import Forest
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity
from lenscope.web.served import Served, ServedLens, ServedModel

PROMPT, OTHER = "The capital of France is", "The capital of Italy is"
ROW = {
    "top1": 0.5, "top1_95": [0.4, 0.6], "top10": 0.6, "top10_95": [0.5, 0.7], "cosine": 0.8, "cosine_95": [0.7, 0.9],
    "kl": 2.0, "kl_95": [1.9, 2.1], "kl_logit_lens": 3.0, "gain": 1.0, "gain_95": [0.8, 1.2],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def jacobian(model):
    lm, draw = ls.load(model), torch.Generator().manual_seed(0)
    size, last = lm.hidden_size, lm.n_layers
    weights = {(n, last): (torch.eye(size) + torch.randn(size, size, generator=draw) / size,) for n in range(1, last)}
    rows = [{"layer": n, **ROW} for n in range(1, last)]
    return Affine(weights, *[model_identity(lm)] * 2, {"lens": "Jacobian lens", "layers": rows})


@pytest.fixture(scope="module")
def folder(jacobian, tmp_path_factory):
    place = tmp_path_factory.mktemp("lens") / "jlens"
    jacobian.save(place)
    return str(place)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{PROMPT} {n}. {OTHER} {n * n}. " * 8}) for n in range(30)))
    return str(path)


COMMANDS = {
    "lens": ["lens", PROMPT],
    "lens --compare": ["lens", PROMPT, "--compare", OTHER],
    "lens --generate": ["lens", PROMPT, "-g", "2"],
    "eval": ["eval", "-d", "TEXT", "--tokens", "256", "--length", "32"],
    "eval --transfer": ["eval", "-d", "TEXT", "--tokens", "256", "--length", "32", "--transfer"],
    "causal": ["causal", "-d", "TEXT", "--tokens", "128", "-k", "2"],
    "swap": ["swap", PROMPT, "a", "b", "--controls", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_the_layers_that_it_maps(run, model, folder, text, command):
    asked = [text if a == "TEXT" else a for a in COMMANDS[command]]
    status, out, err = run(*asked, "-m", model, "--lens", folder)
    assert status == 0, err
    assert "tuned" not in out
    if not command.startswith("eval"):  # which calls each lens as its folder is called
        assert "Jacobian lens" in out
    status, out, err = run(*asked, "-m", model, "--lens", folder, "--json")
    assert status == 0, err
    assert "tuned" not in out


@pytest.mark.parametrize("command", ["eval --transfer", "causal", "swap"])
def test_a_layer_without_a_map_is_refused_in_one_line(run, model, folder, text, command):
    asked = [text if a == "TEXT" else a for a in COMMANDS[command]]
    status, out, err = run(*asked, "-m", model, "--lens", folder, "--layers", "0,2")
    assert (status, out) == (2, "")
    assert "layer 0" in err
    assert err.count("\n") == 1


def test_detectors_look_at_the_layers_that_it_maps(run, model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "Forest", partial(Forest, 5))
    (tmp_path / "p.txt").write_text("\n".join(f"{PROMPT} {n}" for n in range(40)))
    made = str(tmp_path / "detector")
    status, out, err = run("detect", "fit", "-d", str(tmp_path / "p.txt"), "-o", made, "--lens", folder, "-m", model)
    assert status == 0, err
    assert "tuned" not in out
    status, out, err = run("detect", "score", made, PROMPT, "-m", model)
    assert status == 0, err
    assert json.loads(out)["prompt"] == PROMPT


def test_results_of_the_library_are_of_the_layers_that_it_maps(model, jacobian):
    lm = ls.load(model)
    lens = ls.Lens(lm, jacobian)
    assert lens.name == "Jacobian lens"
    assert lens.trajectory(PROMPT).layers == (1, 2, 3, 4)
    assert lens.compare(PROMPT, PROMPT, lens=ls.Lens(lm)).layers == (1, 2, 3, 4)
    assert ls.evaluate(lm, [PROMPT * 3, OTHER * 3], {"J": jacobian}).layers[0] in (0, 1)
    assert ls.transfer(lm, [PROMPT * 3, OTHER * 3], jacobian).layers == (1, 2, 3)
    assert lens.trajectory(PROMPT).provenance["held_out_kl"]["layers"] == [1, 2, 3]


def test_the_view_serves_it_by_its_name_and_layers(model, jacobian):
    lm = ls.load(model)
    with serving(Served([ServedModel(lm)], [ServedLens(ls.Lens(lm, jacobian), "jlens")])) as view:
        lenses = {one["name"]: one["layers"] for one in view.client.get("/api/info").json()["lenses"]}
        assert lenses["Jacobian lens"] == [1, 2, 3, 4]
        for endpoint, asked in (
            ("trajectory", {"prompt": {"text": PROMPT}, "lens": "Jacobian lens"}),
            ("comparison", {"first": {"text": PROMPT}, "second": {"text": OTHER}, "lens": "Jacobian lens"}),
            ("comparison", {
                "first": {"text": PROMPT}, "second": {"text": PROMPT}, "lens": "logit lens",
                "second_lens": "Jacobian lens",
            }),
        ):  # fmt: skip
            answer = view.post(endpoint, asked)
            assert answer.status_code == 200, answer.text
