"""The command that hands a fitted lens on."""

import pytest
import torch

import lenscope as ls


def test_export_is_read_again(run, model, lens, tmp_path):
    status, out, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert (status, out, err) == (0, "", f"lenscope: saved {tmp_path / 'old'}\n")
    state = torch.load(tmp_path / "old" / "params.pt", weights_only=True)
    weights = ls.load_mapping(lens).weights[2, 4]
    torch.testing.assert_close(state["2.weight"] + torch.eye(len(weights[1])), weights[0], rtol=0, atol=1e-6)
    status, _, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert status == 2
    assert "has a config.json already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "CORRUPT", "NEW", "-m", "MODEL"], "is no lens"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, message):
    assert message in mistaken(*arguments)
