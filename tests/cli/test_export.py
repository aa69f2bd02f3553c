"""The command that hands a fitted lens on."""

import json

import pytest
import torch

import lenscope as ls
from lenscope.models import same_model


def test_export_is_read_again(run, model, lens, tmp_path):
    status, out, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert (status, out, err) == (0, "", f"lenscope: saved {tmp_path / 'old'}\n")
    state = torch.load(tmp_path / "old" / "params.pt", weights_only=True)
    weights = ls.load_mapping(lens).weights[2, 4]
    torch.testing.assert_close(state["2.weight"] + torch.eye(len(weights[1])), weights[0], rtol=0, atol=1e-6)
    status, _, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert status == 2
    assert "has a config.json already" in err


def test_a_jacobian_lens_goes_into_its_field_s_format(run, model, tmp_path):
    lm = ls.load(model)
    here = same_model.model_identity(lm)
    draw = torch.Generator().manual_seed(0)
    d = lm.hidden_size
    weights = {(n, 4): (torch.eye(d) + torch.randn(d, d, generator=draw) / 10,) for n in range(4)}
    lens = ls.Affine(weights, here, here, {"lens": "Jacobian lens", "prompts": 80, "prompts_asked": 615})
    lens.save(tmp_path / "j")
    to = tmp_path / "out"
    status, out, err = run("export", str(tmp_path / "j"), str(to), "--format", "jacobian-lens", "-m", model, "--json")
    file = f"{lm.name}_jacobian_lens.pt"
    assert (status, err) == (0, f"lenscope: saved {to}\n")
    assert json.loads(out) == {"kind": "export", "folder": str(to), "files": [file, "config.yaml"]}
    assert sorted(p.name for p in to.iterdir()) == sorted([file, "config.yaml"])
    again = run("export", str(tmp_path / "j"), str(to), "--format", "jacobian-lens", "-m", model)
    assert again[0] == 2
    assert "has a config.yaml already" in again[2]
    # what it wrote is read by every command, also from its folder
    shown = [run("lens", "the cat", "-m", model, "--lens", str(where), "--json") for where in (to, to / file)]
    assert [s[0] for s in shown] == [0, 0]
    # a fit that has not ended is told of
    text = (to / "config.yaml").read_text().replace("prompts_fitted: 80", "prompts_fitted: 615")
    (to / "config.yaml").write_text(text)
    status, _, err = run("lens", "the cat", "-m", model, "--lens", str(to))
    assert status == 0
    assert err == f"lenscope: {to}: unfinished: the mean of 80 of 615 prompts\n"


def test_a_tuned_lens_is_no_jacobian_lens(run, model, lens, tmp_path):
    status, _, err = run("export", str(lens), str(tmp_path / "new"), "--format", "jacobian-lens", "-m", model)
    assert status == 2
    assert "is no Jacobian lens but tuned lens; fit one" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "CORRUPT", "NEW", "--format", "pt", "-m", "MODEL"],
            "--format 'pt': there are tuned-lens",
        ),
        (["export", "CORRUPT", "NEW", "-m", "MODEL"], "is no lens"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, message):
    assert message in mistaken(*arguments)
