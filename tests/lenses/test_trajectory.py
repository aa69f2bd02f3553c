"""Results: saved equals loaded, files are complete or absent, tables fit, the page holds its data."""

import io

import numpy as np
import pytest
from rich.console import Console

import lenscope as ls
from lenscope.lenses.trajectory import MEASURES
from lenscope.visible_text import printable_token as visible

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def trajectory(lm):
    return ls.Lens(lm).trajectory(PROMPT)


def same(a, b):
    for name in ("text", "ids", "model", "lens", "n_layers", "layers", "positions", "target", "vocabulary"):
        assert getattr(a, name) == getattr(b, name), name
    for name in (*MEASURES, "top_ids", "top_log_probs"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), name
    assert a.provenance == b.provenance


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_saved_equals_loaded(lm, trajectory, tmp_path, ending):
    chosen = ls.Lens(lm).trajectory("x\ny", layers=[0, 3], positions=-1, target="a", top_k=2)
    trajectory.save(tmp_path / f"one.{ending}")
    same(ls.load_results(tmp_path / f"one.{ending}"), trajectory)
    ls.save([trajectory, chosen], tmp_path / f"two.{ending}")
    back = ls.load_results(tmp_path / f"two.{ending}")
    assert isinstance(back, list)
    for a, b in zip(back, [trajectory, chosen], strict=True):
        same(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"one.{ending}", f"two.{ending}"]


def test_parquet_is_a_plain_long_table(trajectory, tmp_path):
    import pyarrow.parquet as pq

    trajectory.save(tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.num_rows == trajectory.entropy.size
    assert {"layer", "position", "token_id", "token", "entropy", "kl", "rank", "top_ids"} <= set(table.column_names)
    row = table.slice(7, 1).to_pylist()[0]
    layer, position = trajectory.layers.index(row["layer"]), trajectory.positions.index(row["position"])
    assert row["kl"] == trajectory.kl[layer, position]
    assert row["top_ids"] == trajectory.top_ids[layer, position].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "no such file"),
        ("bad.parquet", b"PAR1 but not really", "is no result that lenscope saved"),
        ("bad.json", b"{", "is no result that lenscope saved"),
        ("other.json", b'{"kind": "weather"}', "is no result that lenscope saved"),
        ("list.json", b"[1]", "is no result that lenscope saved"),
    ],
)
def test_files_that_are_no_results(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ls.LenscopeError, match=message):
        ls.load_results(tmp_path / name)


def test_saving_where_one_cannot(trajectory, tmp_path):
    for path, message in (
        (tmp_path / "x.csv", "saved as .parquet or .json"),
        (tmp_path / "nowhere" / "x.json", "does not exist"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            trajectory.save(path)
    with pytest.raises(ls.LenscopeError, match="nothing to save"):
        ls.save([], tmp_path / "x.json")


def test_an_interrupted_save_leaves_the_old_file(trajectory, tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    trajectory.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(ls.LenscopeError, match="No space left on device"):
        trajectory.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def render(table, width):
    out = io.StringIO()
    Console(width=width, file=out).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_tables_fit_the_width_and_show_the_prediction(lm, trajectory, width):
    long = ls.Lens(lm).trajectory("word " * 12)
    for t in (trajectory, long):
        for measure in MEASURES:
            lines = render(t.table(measure, width=width), width).splitlines()
            assert max(map(len, lines)) <= width
            assert [line.split()[0] for line in lines[1 : 1 + len(t.layers)]] == [str(n) for n in reversed(t.layers)]
    top = visible(trajectory.vocabulary[int(trajectory.top_ids[-1, -1, 0])])
    assert top[:3] in render(trajectory.table(width=width), width)
    assert "do not fit" in " ".join(render(long.table(width=24), 24).split())


def test_a_table_with_several_tokens_a_cell(trajectory):
    text = render(trajectory.table(top_k=3, width=120), 120)
    for rank in range(3):
        assert visible(trajectory.vocabulary[int(trajectory.top_ids[-1, 0, rank])])[:3] in text
    with pytest.raises(ls.LenscopeError, match="top_k 6"):
        trajectory.table(top_k=6)
    with pytest.raises(ls.LenscopeError, match="measure 'foo': there are max_probability, entropy"):
        trajectory.table("foo")


def test_prediction_depth_names_layers_not_indices(lm64):
    t = ls.Lens(lm64).trajectory(PROMPT, layers=[1, 3, 4])
    assert set(t.prediction_depth.tolist()) <= {1, 3, 4}


def test_prediction_depth_is_that_of_the_models_own_token_whatever_layers_are_read(lm64, tmp_path):
    lens = ls.Lens(lm64)
    whole = lens.trajectory("The capital of France is")
    final = whole.top_ids[-1, :, 0]
    for layers in ([0, 1, 2], [1, 3], [2, lm64.n_layers]):
        some = lens.trajectory("The capital of France is", layers=layers)
        for p, depth in enumerate(some.prediction_depth.tolist()):
            agree = [n for n in layers if all(whole.top_ids[m, p, 0] == final[p] for m in layers if m >= n)]
            assert depth == (agree[0] if agree else lm64.n_layers)
        some.save(tmp_path / "some.parquet")
        assert ls.load_results(tmp_path / "some.parquet").prediction_depth.tolist() == some.prediction_depth.tolist()


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_a_trajectory_within_blocks_says_where(lm, ending, tmp_path):
    t = ls.Lens(lm).trajectory("The cat sat", points="attention")
    t.save(tmp_path / f"t{ending}")
    back = ls.load_results(tmp_path / f"t{ending}")
    assert back == t
    assert back.points == "attention"
    assert repr(back).endswith("logit lens after attention)")
    assert "after attention of each block" in str(t.table(width=200).caption)
    assert t.figure().panels[0].title.startswith("logit lens after attention")
    assert t.page_data()["lens"] == "logit lens after attention"
    # what files before this one had
    old = {name: value for name, value in t.to_json().items() if name not in ("points", "sha256")}
    assert ls.Trajectory.from_json(old).points == "block"


def test_what_is_bold_within_blocks_is_what_the_model_predicts(lm):
    t = ls.Lens(lm).trajectory("The cat sat on the mat.", points="attention")
    bold = t._stays()
    assert (t.top_ids[..., 0][bold] == np.broadcast_to(t.final, bold.shape)[bold]).all()
    assert np.array_equal(bold[-1], t.top_ids[-1, :, 0] == np.array(t.final))
