"""Results: saved equals loaded, files are complete or absent, tables fit, the page holds its data."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

import lenscope as ls
from lenscope.display.numbers import figure
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


def test_provenance_names_what_the_numbers_came_from(trajectory):
    p = trajectory.provenance
    assert p["dtype"] == "float32"
    assert re.fullmatch("sha256:[0-9a-f]{64}", p["model_hash"])
    assert {"lenscope", "torch", "transformers", "attention", "readout", "revision", "created"} <= set(p)


def test_the_model_hash_covers_every_weight_and_notices_changes():
    import tiny
    import torch

    from lenscope.models.provenance import model_hash

    model = tiny.model("gpt2")
    first = model_hash(model)
    assert first == model_hash(tiny.model("gpt2"))
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight[5, 7] += 1e-3
    assert model_hash(model) != first


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


def test_tokens_are_made_visible():
    assert visible(" a") == "·a"
    assert visible("\n\t ") == "↵⇥ "
    assert visible("\x1b[31m") == "<1B>[31m"
    assert visible("extraordinary", 6) == "extra…"
    assert visible("日本語", 4) in ("日…", "日 …")
    assert figure(float("nan"), "kl") == "–"
    assert figure(-1, "rank") == "–"
    assert figure(0.123, "max_probability") == "12%"


def test_the_page_holds_the_data_and_nothing_escapes(lm, tmp_path):
    nasty = "</script><script>alert(1)</script> & \u2028"
    t = ls.Lens(lm).trajectory(nasty)
    t.to_html(tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert "{{" not in page.split('id="data"')[0]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    result = json.loads(data)["results"][0]
    assert result["prompt"]["text"] == nasty
    assert result["measures"]["cross_entropy"][0][-1] is None
    assert not re.search(r'(?:src|href)="?https?:', page), "the page must not load anything"


def test_comparisons_are_data_and_tables(lm):
    c = ls.Lens(lm).compare(PROMPT, "The capital of Italy is")
    json.dumps(c.to_json(), allow_nan=False)
    assert "above: first" in " ".join(render(c.table(width=100), 100).split())
    with pytest.raises(ls.LenscopeError, match="there are js, total_variation"):
        c.table("entropy")


def test_what_holds_tensors_shows_in_one_short_line(lm):
    from lenscope.models.batches import pad

    states = lm.read(["The cat\nsat", "x"])
    edit = ls.Edit(1, -1, states.tensor[0, 1, 0])
    batch = next(iter(ls.Corpus.open(lm, ["The cat sat on the mat. " * 8], length=16).batches(rows=2)))
    for value in (
        states,
        edit,
        batch,
        pad([lm.prompt("x")], "right", lm.device),
        lm.runner.anatomy,
        lm.prompt("x\n" * 20),
    ):
        assert "tensor([" not in repr(value)
        assert len(repr(value)) < 250
        assert repr(value).isprintable()
