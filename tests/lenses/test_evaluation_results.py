"""Evaluations and transfer matrices as results: loaded equals saved, tables fit a terminal, bold is what differs."""

import io
import json

import numpy as np
import pytest
from evaluated import affine, rows_of
from rich.console import Console

import lenscope as ls
from lenscope.lenses.evaluate import evaluate, transfer
from lenscope.lenses.evaluation_results import MEASURES, Evaluation, load_evaluation
from lenscope.lenses.transfer_results import Transfer


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_saved_equals_loaded(lm64, tmp_path, suffix):
    rows = rows_of(lm64)
    e = evaluate(lm64, rows, {"a lens": affine(lm64, [1, 2]), "logit": None})
    t = transfer(lm64, rows, affine(lm64))
    for result in (e, t):
        path = tmp_path / f"{type(result).__name__}{suffix}"
        result.save(path)
        loaded = load_evaluation(path)
        assert type(loaded) is type(result)
        for name, value in vars(result).items():
            other = getattr(loaded, name)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, other, equal_nan=True)
            elif isinstance(value, dict) and name != "provenance":
                assert list(value) == list(other)
                assert all(np.array_equal(v, other[k], equal_nan=True) for k, v in value.items())
            else:
                assert value == other, name
    with pytest.raises(ls.LenscopeError, match=r"\.parquet or \.json"):
        e.save(tmp_path / "a.csv")
    with pytest.raises(ls.LenscopeError, match="no such file"):
        load_evaluation(tmp_path / f"none{suffix}")
    for content in (b"{", b"[]", b'{"kind": "grid"}', b'{"kind": "evaluation", "lenses": 3}', b""):
        (tmp_path / f"bad{suffix}").write_bytes(content)
        with pytest.raises(ls.LenscopeError, match="is no evaluation"):
            load_evaluation(tmp_path / f"bad{suffix}")
    with pytest.raises(ls.LenscopeError, match="is no evaluation"):
        Evaluation.from_json(t.to_json())
    with pytest.raises(ls.LenscopeError, match="is no transfer"):
        Transfer.from_json(e.to_json())
    assert json.dumps(e.to_json(), allow_nan=False)


def printed(table, width=80):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out.getvalue()
    return lines


def test_tables_fit_a_terminal(lm64):
    rows = rows_of(lm64)
    e = evaluate(lm64, rows, {"logit lens": None, "bias only": affine(lm64), "tuned lens": affine(lm64, [1], 2)})
    lines = printed(e.table(width=80))
    for layer in e.layers:
        line = next(x for x in lines if x.split()[:1] == [str(layer)])
        assert line.split()[1:4] == [f"{e.measure(name)[0, layer]:.3f}" for name in ("kl", "agreement", "bias")]
    own = next(x for x in lines if x.split()[:1] == ["model"])
    assert own.split()[1:4] == ["0.000", "1.000", "0.000"]
    one = printed(e.table("kl", width=80))
    value, low, high = e.values["kl"][0, 1]
    shown = next(x for x in one if x.split()[:1] == ["1"]).split()[1:3]
    assert [float(x) for x in (shown[0], *shown[1].split("–"))] == pytest.approx([value, low, high], rel=1e-3)
    assert "do not fit" in " ".join(" ".join(printed(e.table(list(MEASURES), width=40), 40)).split())
    assert "intervals do not fit" in " ".join(" ".join(printed(e.table("kl", width=60), 60)).split())
    t = transfer(lm64, rows, affine(lm64))
    assert f"{t.penalty()[3, 1]:.3f}" in " ".join(printed(t.table(width=80)))
    assert "only every 2th layer" in " ".join(" ".join(printed(t.table(width=30), 30)).split())


def test_bold_is_what_differs(lm64):
    e = evaluate(lm64, rows_of(lm64), {"logit": None, "same": lambda h: h, "off": lambda h, layer: -h})
    columns = {c.header.plain: list(c.cells) for c in e.table("kl").columns[1:]}
    assert [c.style.bold for c in columns["same\nKL"][:-1]] == [False] * lm64.n_layers
    _, low, high = e.differences["kl"][2, 3]
    assert low > 0 or high < 0
    assert columns["off\nKL"][3].style.bold
