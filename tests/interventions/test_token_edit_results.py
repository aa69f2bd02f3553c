"""Effects of edits: their estimates by hand, saved as loaded, shown in a table."""

import dataclasses
import json

import affine_lens
import numpy as np
import pytest

import lenscope as ls
from lenscope.interventions import load_edit_effects, swap_effects

PROMPTS = ["The capital of France is", "A cat", "This is a test."]


@pytest.fixture(scope="module")
def effects(lm64):
    lens = ls.Lens(lm64, affine_lens.affine(lm64), name="Jacobian lens")
    return swap_effects(lens, PROMPTS, 77, 105, [[77, 105]] * 3, controls=4, top_k=3)


def test_estimates_are_means_with_intervals_over_prompts_or_controls(effects):
    gained = effects.log_prob[..., 1].astype(float) - effects.log_prob[:, :1, 1]
    assert effects.change(1).value == pytest.approx(gained[:, 1].mean())
    assert effects.control_change(1).value == pytest.approx(gained[:, 2:].mean())
    assert effects.excess(1).value == pytest.approx((gained[:, 1] - gained[:, 2:].mean(1)).mean())
    for one in (effects.change(1), effects.control_change(1), effects.excess(1)):
        assert one.low < one.value < one.high
    assert effects.flips().value == pytest.approx(effects.flipped[:, 1].mean())
    assert effects.control_flips().value == pytest.approx(effects.flipped[:, 2:].mean())
    assert effects.hits(0, 0).value == pytest.approx((effects.top_ids[:, 0, 0] == 77).mean())
    assert np.allclose(effects.probability, np.exp(effects.log_prob))
    single = dataclasses.replace(
        effects,
        prompts=effects.prompts[:1],
        **{
            name: getattr(effects, name)[:1]
            for name in ("log_prob", "rank", "top_ids", "top_log_probs", "relative_size")
        },
    )
    assert np.isnan(single.change().low)
    assert ": 1 prompt, layers" in repr(single)
    assert single.excess().low < single.excess().value < single.excess().high


def test_saved_is_loaded(effects, tmp_path):
    effects.save(tmp_path / "e.json")
    for loaded in (load_edit_effects(tmp_path / "e.json"), ls.load_results(tmp_path / "e.json")):
        assert loaded == effects
    assert type(effects).from_json(json.loads(json.dumps(effects.to_json()))) == effects
    frame = effects.to_dataframe()
    assert len(frame) == 3 * 6 * 2
    assert set(frame["run"]) == {"before", "after", *(f"control {n}" for n in range(1, 5))}
    with pytest.raises(ls.LenscopeError, match=r"are saved as \.json"):
        effects.save(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("key", "value"),
    [("log_prob", [[[0.5]]]), ("runs", ["before"]), ("layers", [9]), ("vocabulary", {}), ("prompts", []), ("rank", 1)],
)
def test_damaged_documents_are_refused_in_one_line(effects, key, value):
    with pytest.raises(ls.LenscopeError) as raised:
        type(effects).from_json({k: v for k, v in effects.to_json().items() if k != "sha256"} | {key: value})
    assert "\n" not in str(raised.value)


def test_the_table_has_a_line_for_each_run(effects):
    table = effects.table(1)
    assert table.row_count == len(effects.runs) == 6
    assert [str(c.header) for c in table.columns][:2] == ["run", "most probable"]
    assert "EditEffects(swap" in repr(effects)
    assert "3 prompts, layers 1–3, 4 controls, tiny-llama, Jacobian lens" in repr(effects)
    for layers, words in (((1, 2, 4), "layers 1–2, 4,"), ((2,), "layer 2,")):
        assert f"prompts, {words} 4 controls" in repr(dataclasses.replace(effects, layers=layers))
    for call in (
        lambda: effects.table(9),
        lambda: effects.change(2),
        lambda: effects.hits(0, 9),
        lambda: swapped_without_controls(effects).excess(),
    ):
        with pytest.raises(ls.LenscopeError) as raised:
            call()
        assert "\n" not in str(raised.value)


def swapped_without_controls(effects):
    cut = {name: getattr(effects, name)[:, :2] for name in ("log_prob", "rank", "top_ids", "top_log_probs")}
    return dataclasses.replace(effects, **cut)
