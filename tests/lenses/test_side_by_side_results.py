"""Results of several lenses: saved equals loaded, lists too; tables fit, name lenses and say which are doubted."""

import io
from dataclasses import replace

import affine_lens
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import lenscope as ls
from lenscope.lenses.lens_reports import doubts_entry
from lenscope.lenses.side_by_side import read_side_by_side
from lenscope.lenses.side_by_side_results import SideBySide, side_by_side_metadata, side_by_side_rows
from lenscope.lenses.trajectory_files import TrajectoryFile


@pytest.fixture(scope="module")
def results(lm):
    lenses = {"logit lens": None, "tuned": affine_lens.affine(lm), "other": affine_lens.affine(lm, seed=1)}
    return read_side_by_side(lm, lenses, ["The cat sat", "a test"], [0, 2, 4])


def rendered(table, width):
    out = io.StringIO()
    Console(width=width, file=out).print(table)
    return out.getvalue()


@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_saved_equals_loaded_alone_and_in_lists(results, tmp_path, ending):
    results[0].save(tmp_path / f"one.{ending}")
    assert ls.load_results(tmp_path / f"one.{ending}") == results[0]

    def metadata(single):
        return side_by_side_metadata(single, 3)

    file = TrajectoryFile.open(tmp_path / f"all.{ending}", False, side_by_side_rows, metadata)
    for result in results:
        file.add(result)
    assert file.end()
    assert ls.load_results(tmp_path / f"all.{ending}") == results


def test_rows_of_a_file_may_be_in_any_order(results, tmp_path):
    results[0].save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order), tmp_path / "b.parquet")
    assert ls.load_results(tmp_path / "b.parquet") == results[0]


def test_what_no_result_has_is_refused(results):
    data = results[0].to_json()
    for change, what in (
        ({"kl": (-results[0].kl - 1).tolist()}, "kl"),
        ({"kl": (results[0].kl + 1).tolist()}, "kl of a lens from itself"),
        ({"same_top": np.zeros((3, 3, 3)).tolist()}, "same top"),
        ({"lenses": ["a", "b", "c"]}, "lenses"),
        ({"trajectories": [data["trajectories"][0]] * 3}, "one lens"),
        ({"trajectories": [*data["trajectories"][:2], results[1].to_json()["trajectories"][2]]}, "no trajectory|shape"),
    ):
        with pytest.raises(ls.LenscopeError, match=what):
            SideBySide.from_json({**data, **change})


def test_rows_say_how_far_a_lens_is_from_each(results):
    frame = results[0].to_dataframe()
    assert len(frame) == results[0].kl[0].size
    own = frame[frame.lens == "other"]
    assert np.allclose(own.kl_to_1, results[0].kl[2, 0].reshape(-1))
    assert (own.kl_to_3 == 0).all()


@pytest.mark.parametrize(("width", "beside"), [(140, True), (60, False), (None, True)])
def test_tables_stand_beside_each_other_where_all_fit(results, width, beside):
    text = rendered(results[0].table("entropy", width=width), width or 200)
    titles = [line for line in text.splitlines() if "logit lens" in line]
    assert ("2 tuned" in titles[0] and "3 other" in titles[0]) is beside
    assert max(map(len, text.splitlines())) <= (width or 200)
    assert text.count("colour: entropy") == 1


def test_lenses_share_one_scale_of_colours(results):
    """The same value has the same colour in every table, also where one lens alone would have another scale."""
    values = np.concatenate([t.kl for t in results[0].trajectories], 1)
    caption = rendered(results[0].table("kl", width=140), 140)
    assert f"0 … {values.max():.2g}"[:5] in caption
    shades = {}
    for table in results[0].table("kl", width=None).make(None).columns:
        for cell in table._cells:
            for row in cell.renderables[1].columns[1:]:
                shades |= {str(text): text.style for text in row._cells}
    assert shades


def test_doubted_layers_are_marked_and_explained_by_lens(results):
    first, second, third = results[0].trajectories
    doubted = replace(second, provenance={**second.provenance, **doubts_entry({2: "its report has no measurement"})})
    result = replace(results[0], trajectories=(first, doubted, third))
    assert result.doubts == {"logit lens": {}, "tuned": {2: "its report has no measurement"}, "other": {}}
    text = rendered(result.table(width=140), 140)
    assert text.count("?2") == 1
    assert "? and grey: 2 tuned is not to be trusted at layer 2" in text
    assert "?2" in rendered(result.agreement_table(), 100)
    assert "?2" not in rendered(results[0].table(width=140), 140)


def test_agreement_of_pairs_that_fit(results):
    whole = rendered(results[0].agreement_table(), 120)
    assert "2 = 3" in whole
    assert f"{results[0].agreement[0, 1, 0]:.0%}" in whole.splitlines()[3]
    part = rendered(results[0].agreement_table(width=40), 40)
    assert "2 = 3" not in part
    assert "2 more pairs do not fit" in " ".join(part.split())
