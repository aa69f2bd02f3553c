"""`lenscope fit --recipe jacobian` on a tiny model: what it prints, keeps, goes on from and refuses."""

import json

import pytest

import lenscope as ls
from lenscope.cli.jacobian_fit import parse_part
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_lens import fit_jacobian_lens


def command(model, text, folder, *more):
    how = ("--recipe", "jacobian", "--tokens", "256", "--length", "32", "--held-out", "0.3")
    return "fit", "-m", str(model), "-d", str(text), "-o", str(folder), *how, *more


def test_the_table_is_the_report_and_the_lens_is_the_library_s(run, model, text, tmp_path):
    status, out, err = run(*command(model, text, tmp_path / "lens"))
    assert status == 0, err
    assert err == f"lenscope: saved {tmp_path / 'lens'}\n"
    lm = ls.load(model)
    lens = ls.load_lens(tmp_path / "lens", lm)
    direct = fit_jacobian_lens(lm, text, tokens=256, length=32, held_out=0.3)
    for pair, (j, _) in direct.weights.items():
        assert (lens.weights[pair][0] - j).abs().max() < 1e-5
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1]}
    for row in direct.report["layers"]:
        shown = [float(cell) for cell in rows[str(row["layer"])][:3]]
        assert shown == pytest.approx([row["top1"], row["top10"], row["cosine"]], abs=2e-3)
    assert f"--lens {tmp_path / 'lens'}" in out
    # the same command reads nothing again
    again, _, _ = run(*command(model, text, tmp_path / "lens", "--json"))
    assert again == 0
    assert ls.load_lens(tmp_path / "lens", lm).report["prompts"] == lens.report["prompts"]


def test_parts_are_merged_by_their_command(run, model, text, tmp_path):
    for part in ("1/2", "2/2"):
        status, _, err = run(*command(model, text, tmp_path / part[0], "--part", part))
        assert status == 0, err
    both = [str(tmp_path / "1"), str(tmp_path / "2")]
    status, out, err = run("merge", *both, "-o", str(tmp_path / "both"), "-m", str(model), "-d", str(text), "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["prompts"] == 8
    assert report["merged"] == 2
    assert len(report["layers"]) == ls.load(model).n_layers
    status, _, err = run("merge", *both, "-o", str(tmp_path / "both"), "-m", str(model))
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a lens already" in err


def test_a_streamed_fit_is_the_same_lens_and_is_merged_streamed(run, model, text, tmp_path):
    for part in ("1/2", "2/2"):
        status, _, err = run(*command(model, text, tmp_path / part[0], "--part", part, "--stream", "--tokens", "128"))
        assert status == 0, err
        assert "read the weights of" in err
    both = [str(tmp_path / "1"), str(tmp_path / "2")]
    status, _, err = run("merge", *both, "-o", str(tmp_path / "both"), "-m", str(model), "--stream")
    assert status == 0, err
    lens, lm = ls.load_mapping(tmp_path / "both"), ls.load(model)
    direct = fit_jacobian_lens(lm, text, tokens=128, length=32, held_out=0.3, shrink=False)
    assert lens.report["prompts"] == direct.report["prompts"] == 4
    for pair, (j, _) in direct.weights.items():
        assert (lens.weights[pair][0] - j).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stream", "--targets", "same"], "--stream: targets 'same' runs each position by itself"),
        (["--stream", "--rule", "relp"], "--stream: rule 'relp' is made for weights in memory"),
        (["--stream", "--placement", "auto"], "--stream runs in one process"),
        (["--until", "2"], "until 2.0: is a cosine"),
        (["--part", "3/2"], "--part 3/2: give k/n"),
        (["--rule", "lrp"], "rule 'lrp': there are gradient, relp"),
        (["--targets", "all"], "targets 'all': give 'later' or 'same'"),
        (["--target-layer", "99"], "target_layer 99"),
        (["--tokens", "100M"], "tokens 100000000: "),
        (["--length", "17"], "--length 17: the first 16 positions of a prompt and its last one do not count; give at"),
    ],
)
def test_wrong_settings_are_one_line(run, model, text, tmp_path, more, message):
    status, out, err = run(*command(model, text, tmp_path / "lens", *more))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_parts_are_read():
    assert parse_part(None) == (1, 1)
    assert parse_part("2/3") == (2, 3)
    for wrong in ("0/2", "a/b", "1", "1/0", "-1/2"):
        with pytest.raises(LenscopeError, match="give k/n"):
            parse_part(wrong)
