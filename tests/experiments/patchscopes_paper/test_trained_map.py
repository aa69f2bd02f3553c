"""Rows of a trained map in the paper's Patchscopes: what each says, and by which score, beside the map left out."""

from functools import partial

import pytest
import torch

import lenscope as ls
from lenscope.experiments.patchscopes_paper import trained_map as module
from lenscope.experiments.setting import Setting
from lenscope.mappings.vector_map import VectorMap
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.control_runs import BIAS, UNTRAINED, VECTOR
from lenscope.patchscopes.methods import named_target
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.statistics.intervals import bootstrap
from lenscope.tasks.relations import Fact, Relation
from lenscope.tasks.text_match import mentions

SUBJECTS = ["cat", "mat", "Paris", "France", "test", "capital"]


@pytest.fixture(autouse=True)
def _some_resamples(monkeypatch):
    monkeypatch.setattr("lenscope.statistics.estimates.bootstrap", partial(bootstrap, resamples=10))


@pytest.fixture
def setting(roomy):
    prompt = roomy.prompt("x is x")
    f = VectorMap(scale=torch.tensor(3.0), bias=torch.linspace(-2, 2, roomy.hidden_size))
    own = Verbaliser(f, Target(prompt, at=[0, len(prompt) - 1]), 0, model_identity(roomy), layers=(2,))
    return Setting(roomy, quick=True, verbaliser=own)


def test_the_map_is_put_into_the_papers_prompts(setting):
    lm, f = setting.lm, setting.verbaliser.map
    states = lm.read(SUBJECTS, 2, -1).tensor[:, 0, 0]
    words = {}
    for way, given in ((VECTOR, f(states)), (UNTRAINED, states), (BIAS, f(torch.zeros_like(states)))):
        scope = ls.Patchscope(lm, named_target("identity"), layers=0)
        words[way] = [cell.text for cell in scope.generate(given, max_new_tokens=1)]
    own = [words[VECTOR][n] if n % 2 else "nothing" for n in range(6)]
    ((row,),) = module.trained_next_token_tables(setting, SUBJECTS, own).values()
    assert row["items"] == 6
    assert row["layer"] == "2"
    for way, texts in words.items():
        assert row[way].value == pytest.approx(sum(a == b for a, b in zip(texts, own, strict=True)) / 6)
    assert row[VECTOR].value >= 0.5
    assert "vector - state itself" in row


def test_facts_and_entities_are_scored_as_in_their_experiments(setting):
    relation = Relation("place", "The place of {} is", "The place of x", tuple(
        Fact(s, ("a",), (f"Here is {s}",)) for s in SUBJECTS
    ))  # fmt: skip
    ((row,),) = module.trained_attribute_tables(setting, [relation], 3).values()
    lm = setting.lm
    states = lm.read([f"Here is {s}" for s in SUBJECTS], 2, -1).tensor[:, 0, 0]
    scope = ls.Patchscope(lm, Target("The place of x"), setting.verbaliser.map, layers=0)
    texts = [cell.text for cell in scope.generate(states, max_new_tokens=3, stop="\n")]
    assert row[VECTOR].value == pytest.approx(sum(mentions(t, ["a"]) for t in texts) / 6)
    scores = {"length": lambda text, n: float(len(text)), "number": lambda text, n: float(n)}
    (rows,) = module.trained_entity_tables(setting, SUBJECTS, scores, lambda text: text[:1], 2).values()
    assert [r["what"] for r in rows] == ["length", "number"]
    assert rows[0][VECTOR].value <= 1
    assert rows[1][VECTOR].value == 2.5


def test_there_are_no_rows_without_a_map(roomy):
    setting = Setting(roomy, quick=True)
    assert module.trained_next_token_tables(setting, SUBJECTS, SUBJECTS) == {}
    assert module.trained_entity_tables(setting, SUBJECTS, {}, str, 2) == {}
    assert module.trained_attribute_tables(setting, [], 2) == {}
