"""No table lets a name act on a terminal, whichever room draws it."""

import dataclasses

import numpy as np
import pytest
from drawing import ACTING, NASTY, drawn

import lenscope as ls
from lenscope.cli import demo
from lenscope.cli import detect as detecting
from lenscope.cli.detect_attacks import table_of_views
from lenscope.cli.terminal import fitted_table
from lenscope.experiments.report import Report
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.grid_cells import Source, Spot


@pytest.fixture
def trajectory(lm):
    t = ls.Lens(lm, name=NASTY).trajectory("The cat sat")
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    return dataclasses.replace(t, vocabulary=words, text=NASTY, model=NASTY)


def grid(kind="predict", **measures):
    """Layers 0 and 1 of a text, each at its own layer."""
    measures = {"max_probability": np.array([0.5, 0.25], np.float32), **measures}
    sources = tuple(Source(NASTY, NASTY, NASTY, NASTY, 0, layer) for layer in (0, 1))
    spots = (Spot(NASTY, (NASTY,), (0,)), Spot(NASTY + "2", (NASTY,), (0,)))
    number = np.array([0, 1])
    ended = ("length", "length") if kind == "generate" else ()
    ids, chances = np.array([[7], [7]]), np.log(np.array([[0.5], [0.25]], np.float32))
    texts = (NASTY, NASTY)
    return Grid(
        kind, NASTY, 1, sources, spots, number, number, number, ids, chances, texts, ended, measures, {7: NASTY}
    )


def tables_of_names(trajectory, lm):
    comparison = ls.Lens(lm).compare("The cat", "The dog")
    odd = dict.fromkeys({**comparison.first.vocabulary, **comparison.second.vocabulary}, NASTY)
    sides = [dataclasses.replace(t, vocabulary=odd) for t in (comparison.first, comparison.second)]
    yield trajectory.table()
    yield trajectory.table("rank", width=300)
    yield dataclasses.replace(comparison, first=sides[0], second=sides[1]).table()
    yield demo.beside(trajectory, trajectory)
    yield grid().table()
    yield grid("generate").table()
    yield grid(**{f"log_prob:{NASTY}": np.array([-1.0, -9.0], np.float32)}).table()
    yield Report("x", NASTY, "c", "r", {"t": [{NASTY: NASTY, "n": 1}]}).table("t")
    rows = [{"layer": 0, "kl": 1.0, "kl_logit_lens": 2.0}]
    yield fitted_table({"lens": NASTY, "layers": rows, "held_out": {"tokens": [1, 1]}})
    at = {"false_positives": 0.05, "value": 0.5, "interval_95": None}
    row = {"view": NASTY, "layer": 1, "auroc": 0.5, "auroc_95": None, "true_positives": [at], "control": False}
    yield table_of_views([row], NASTY)
    yield detecting._table_of_methods([{"method": NASTY, "view": NASTY, "layers": [1], "auroc": 0.5, "size": NASTY}])


def test_no_table_lets_a_name_act(trajectory, lm):
    """Also on a console of the user's own, which knows markup."""
    for n, table in enumerate(tables_of_names(trajectory, lm)):
        text = drawn(table)
        assert not ACTING.search(text), (n, text)
        assert "<1B>" in text, n
