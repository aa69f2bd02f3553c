"""What a fitted lens's report says of held-out text, and that trajectories and their pages carry it."""

import dataclasses

import numpy as np
import pytest
from affine_lens import affine

import lenscope as ls
from lenscope.display.payload import unpacked_arrays
from lenscope.lenses.lens_reports import HELD_OUT, held_out_kl

ROWS = [{"layer": n, "kl": 3.5 - n, "kl_logit_lens": 9.0 - n, "kl_95": None} for n in range(2)]
EXPECTED = {"layers": [0, 1], "kl": [3.5, 2.5], "logit_lens": [9.0, 8.0]}


def test_a_report_says_how_well_its_lens_reads():
    assert held_out_kl(ROWS) == EXPECTED


@pytest.mark.parametrize("rows", [None, [], "text", [{"layer": 0}], [{"layer": 0, "kl": "much", "kl_logit_lens": 1}],
                                  [{"layer": 0, "kl": float("nan"), "kl_logit_lens": 1.0}], 7])  # fmt: skip
def test_a_report_without_it_says_nothing(rows):
    assert held_out_kl(rows) is None


def test_trajectories_and_pages_carry_it(lm, tmp_path):
    f = dataclasses.replace(affine(lm), report={"lens": "tuned lens", "layers": ROWS})
    t = ls.Lens(lm, f).trajectory("The cat")
    assert t.provenance[HELD_OUT] == EXPECTED
    data = t.page_data()
    assert data["held_out_kl"] == EXPECTED
    assert HELD_OUT not in data["provenance"]
    np.testing.assert_allclose(unpacked_arrays(data)["kl"], t.kl, rtol=1e-4, atol=1e-30)
    t.save(tmp_path / "t.parquet")
    assert ls.load_results(tmp_path / "t.parquet") == t
    assert ls.Lens(lm).trajectory("The cat").page_data()["held_out_kl"] is None
    assert ls.Lens(lm, affine(lm)).trajectory("The cat").page_data()["held_out_kl"] is None
