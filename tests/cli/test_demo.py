"""The demo, whole on a tiny model, and without its fit on the real one."""

import re

import torch

import lenscope as ls
from lenscope.cli import demo
from lenscope.fitting import tuned_lens as tuning
from lenscope.models import same_model


def test_the_demo_writes_its_page(run, tmp_path, smollm2, monkeypatch):
    """All but the fit, which takes most of the time; the test below has the demo whole, on a tiny model."""
    me = same_model.model_identity(smollm2)
    layers = [{"layer": n, "kl": 1.0, "kl_logit_lens": 2.0} for n in range(30)]
    report = {"lens": "tuned lens", "layers": layers, "seconds": 1.0, "tokens": 9, "held_out": {"tokens": [9, 9]}}
    fitted = ls.mappings.Scale({None: (torch.tensor(1.0),)}, me, me, report)
    monkeypatch.setattr(tuning, "fit", lambda *given, **how: fitted)
    monkeypatch.setattr(demo, "require_model", None)  # it takes seconds, before the first line
    status, out, _ = run("demo", "-o", str(tmp_path / "demo"))
    assert status == 0
    assert "·Paris" in out
    assert "30: 0 (77%)" in " ".join(out.split())
    assert "mean KL on other text 1.00 nats, the logit lens has 2.00" in out
    assert re.findall(r"^(\d)  A? ?T?h?e? ?\w+ \w*", out, re.MULTILINE) == ["1", "2", "3"]
    assert " Paris" in (tmp_path / "demo" / "index.html").read_text()


def test_the_demo_fits_shows_both_lenses_and_reuses_what_it_fitted(run, roomy, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TOKENS", 5000)
    monkeypatch.setattr(demo, "TARGET", "s")
    arguments = ["demo", "-m", roomy, "-o", str(tmp_path / "demo")]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert "fitting a tuned lens" in out
    lens = tmp_path / "demo" / "lens"
    next_steps = out.partition("Try next:\n")[2].splitlines()
    assert len(next_steps) == 4
    assert next_steps[0].endswith(f"serve --model {roomy} --lens {lens} --open")
    assert next_steps[1].endswith(f"lens 'The Eiffel Tower is in' --model {roomy} --lens {lens}")
    assert next_steps[2].endswith(f"fit --model {roomy} --data YOUR-TEXT.txt -o my-lens")
    assert "docs/start.md" in next_steps[3]
    assert all(path.endswith("index.html") for path in re.findall(r"browser opens: (.*)", out))
    page = (tmp_path / "demo" / "index.html").read_text()
    assert '"lens":"tuned lens"' in page
    assert '"lens":"logit lens"' in page
    lm = ls.load(roomy)
    tuned = ls.Lens(lm, ls.load_lens(tmp_path / "demo" / "lens", lm)).trajectory(demo.PROMPT)
    plain = ls.Lens(lm).trajectory(demo.PROMPT)
    both = out.partition("Both lenses")[2].splitlines()
    row = next(line.split() for line in both if line[:5] == "    2")
    assert [row[3], row[6]] == [f"{t.kl[2, -1]:.2f}" for t in (plain, tuned)]
    assert f"{plain.kl[:-1].mean():.2f} with the logit lens, {tuned.kl[:-1].mean():.2f} with" in " ".join(out.split())
    status, again, _ = run(*arguments)
    assert status == 0
    assert "fitting a tuned lens" not in again
    monkeypatch.setattr(demo, "TOKENS", 6000)
    assert "fitting a tuned lens" in run(*arguments)[1]


def test_a_folder_that_cannot_be_made_is_one_line(mistaken):
    assert "cannot be made a folder" in mistaken("demo", "-o", "/proc/nowhere", "-m", "MODEL")
