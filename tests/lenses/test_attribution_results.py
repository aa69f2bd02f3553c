"""Attributions in files, tables, figures and frames: nothing is lost, and what is no attribution is not loaded."""

import json

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.lenses import LogitAttribution, attribute_logit


@pytest.fixture(scope="module")
def attribution():
    lm = ls.LM(tiny.model("gpt2", torch.float64), tiny.tokenizer(), "tiny-gpt2")
    return attribute_logit(lm, "The cat sat on", " the", against=" is", heads=True)


def test_saved_equals_loaded(attribution, tmp_path):
    attribution.save(tmp_path / "a.json")
    loaded = ls.load_results(tmp_path / "a.json")
    assert loaded == attribution
    assert loaded.attention.dtype == np.float64
    assert LogitAttribution.from_json(json.loads(json.dumps(attribution.to_json()))) == attribution
    with pytest.raises(ls.LenscopeError, match=r"saved as \.json"):
        attribution.save(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit": 1e6}, "logit: is not the sum of its parts"),
        ({"position": 99}, "position 99"),
        ({"head_bias": None}, "heads: are there without"),
        ({"attention": [1.0]}, "attention: has not one number"),
        ({"vocabulary": {}}, "vocabulary: has no text"),
    ],
)
def test_values_that_no_attribution_has_are_refused(attribution, change, message):
    with pytest.raises(ls.LenscopeError, match=message):
        LogitAttribution.from_json({**attribution.to_json(), **change})


def test_parts_sum_to_the_logit_with_heads_and_without(attribution):
    for heads in (True, False):
        parts = attribution.parts(heads=heads)
        assert sum(part.logit for part in parts) == pytest.approx(attribution.logit, abs=1e-9)
    assert [p.name for p in attribution.parts(heads=False)[:4]] == ["embedding", "attention 1", "MLP 1", "attention 2"]
    assert attribution.parts()[1].name == "head 1.0"
    assert attribution.so_far[-1] + attribution.bias == pytest.approx(attribution.logit, abs=1e-9)


def test_the_table_has_every_layer_or_the_largest_parts(attribution):
    text = str(attribution.table())
    lines = text.splitlines()
    assert lines[0].split() == ["attention", "MLP", "largest", "head", "so", "far"]
    assert [line.split()[0] for line in lines[1:7]] == ["biases", "4", "3", "2", "1", "embedding"]
    assert lines[1].split()[-1] == f"{attribution.logit:+.3f}"
    assert "logit of ' the' less that of ' is' at position" in text.replace("\n", " ")
    largest = str(attribution.table(3)).splitlines()
    order = sorted(attribution.parts(), key=lambda part: -abs(part.logit))
    assert [line.rsplit(maxsplit=1)[0].strip() for line in largest[1:4]] == [part.name for part in order[:3]]
    assert largest[4].startswith(f"{len(order) - 3} others")
    with pytest.raises(ls.LenscopeError, match="top_k 0"):
        attribution.table(0)


def test_the_figure_has_the_parts(attribution):
    each, so_far, heads = attribution.figure().panels
    assert each.series[0].y == attribution.attention.tolist()
    assert so_far.series[0].y == attribution.so_far.tolist()
    assert np.array_equal(heads.values, attribution.heads)
    assert len(attribution.figure().image()) > 1000


def test_a_frame_has_a_row_for_each_part(attribution):
    pytest.importorskip("pandas")
    frame = attribution.to_dataframe()
    assert frame["part"].value_counts().to_dict() == {
        "head": 16, "attention": 4, "mlp": 4, "head bias": 4, "embedding": 1, "bias": 1,
    }  # fmt: skip


def test_its_repr_is_one_line(attribution):
    assert repr(attribution).startswith("LogitAttribution('The cat sat on' at ")
    assert "\n" not in repr(attribution)
