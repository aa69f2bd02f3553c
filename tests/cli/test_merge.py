"""`lenscope merge`: what it refuses before a model is loaded (what it joins is in test_jacobian_fit.py)."""

import pytest


@pytest.mark.parametrize(
    ("lenses", "message"),
    [(["one"], "is one lens; give at least two"), (["nothing-here", "nor-here"], "nothing-here: no such lens")],
)
def test_what_cannot_be_merged_is_one_line(run, tmp_path, lenses, message):
    status, out, err = run("merge", *lenses, "-o", str(tmp_path / "both"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
