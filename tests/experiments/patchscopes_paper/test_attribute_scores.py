"""Scores of attributes by hand: the paper's, the selected cell's, exchanged states, paired tests."""

import numpy as np
import pytest

from lenscope.experiments.patchscopes_paper.attribute_scores import (
    ALL,
    SCORES,
    SourceScores,
    comparisons,
    hits,
    other_subjects_hits,
    rows_of_relation,
    rows_over_relations,
)
from lenscope.statistics.intervals import Estimate
from lenscope.tasks.relations import Fact


def test_the_papers_score_is_any_target_layer_over_source_layers():
    cells = np.array([[[0, 1], [0, 0]], [[1, 1], [0, 1]], [[0, 0], [1, 0]]], dtype=float)
    scored = SourceScores(cells, ["a", "a", "b"])
    assert scored.of("paper") == {"a": 0.75, "b": 0.5}
    assert scored.of("oracle") == {"a": 1, "b": 1}
    assert scored.of("mean") == {"a": pytest.approx((1 / 4 + 3 / 4) / 2), "b": 0.25}
    assert scored.layers().tolist() == [[1, 0.5], [0, 1]]


def test_the_selected_cell_is_never_one_that_only_the_subject_itself_likes():
    # each subject is right in a cell of its own, which says nothing of the others
    scored = SourceScores(np.eye(6).reshape(6, 2, 3), list("abcdef"))
    assert set(scored.of("oracle").values()) == {1}
    assert sum(scored.of("selected").values()) == 0
    # a cell that is right for all is found
    cells = np.eye(6).reshape(6, 2, 3)
    cells[:, 1, 1] = 1
    assert sum(SourceScores(cells, list("abcdef")).of("selected").values()) == 6


def test_a_score_without_layers_is_the_same_however_it_is_told():
    scored = SourceScores(np.array([1.0, 0, 1, 0]).reshape(4, 1, 1), list("abcd"))
    assert all(list(scored.of(score).values()) == [1, 0, 1, 0] for score in SCORES)


def test_texts_are_searched_for_all_objects():
    facts = [Fact("a", ("Paris",)), Fact("b", ("gray", "grey"))]
    texts = np.array([["in Paris, grey", "Parisian"], ["Gray.", ""]], dtype=object)
    assert hits(texts, facts).tolist() == [[[True, True], [False, False]], [[False, True], [False, False]]]


def test_exchanged_states_are_those_of_every_subject_with_another_object():
    facts = [Fact("a", ("x",)), Fact("b", ("y",)), Fact("c", ("X", "z"))]
    # item i says the object of fact (i + 1) % 3
    own = np.zeros((3, 1, 1, 3), dtype=bool)
    for i in range(3):
        own[i, 0, 0, (i + 1) % 3] = True
    scores, whose = other_subjects_hits(own, [0, 1, 2], facts)
    found = sorted(zip(whose, scores[:, 0, 0].tolist(), strict=True))
    # a and c have an object in common: neither is asked of the other
    assert found == [(0, False), (1, False), (1, True), (2, True)]


def test_tests_pair_subjects_and_correct_over_relations():
    def made(rights):
        return SourceScores(np.array(rights, dtype=float).reshape(-1, 1, 1), [f"s{n}" for n in range(len(rights))])

    sources = {
        "one": {"state": made([1] * 12), "other": made([0] * 12)},
        "two": {"state": made([1, 0] * 6), "other": made([0, 1] * 6)},
    }
    one, two, together = comparisons(sources, [("state", "other", "paper")], 0)
    assert (one["relation"], two["relation"], together["relation"]) == ("one", "two", ALL)
    assert one["difference"] == Estimate(1, 1, 1)
    assert two["difference"].value == 0
    # 2 of 4096 sign patterns are as far from 0, twice for two relations
    assert one["p (Holm)"] == pytest.approx(2 * 2 / 4096, abs=0.001)
    assert two["p (Holm)"] == 1
    # a subject that is in both relations counts once
    assert together["subjects"] == 12
    assert together["difference"].value == pytest.approx(0.5)
    assert [row[SCORES["paper"]].value for row in rows_over_relations(sources)] == [0.75, 0.25]
    assert [row["source"] for row in rows_of_relation("one", sources["one"])] == ["state", "other"]
