"""Swaps of bridges: which prompts count, what is measured, controls beside; end to end on a tiny model."""

import affine_lens
import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.experiments.jacobian_lens_paper import bridge_swaps
from lenscope.experiments.jacobian_lens_paper.bridge_swaps import (
    ABLATE,
    SWAP,
    ablation_rows,
    bridge_band,
    bridge_tokens,
    left_out_in_words,
    run_bridge_swaps,
    swap_reading,
    swap_rows,
)
from lenscope.experiments.jacobian_lens_paper.prompt_sets import BridgeSwap
from lenscope.experiments.setting import Setting
from lenscope.interventions.token_controls import CONTROLS
from lenscope.interventions.token_edits import swap_tokens
from lenscope.text.packing import after_document_mark


def swap(name, bridge="cat", answer="mat", other_bridge="France", other_answer="Paris", prompt="The cat sat on the "):
    return BridgeSwap(name, "c", prompt, bridge, answer, other_bridge, other_answer)


def test_prompts_whose_bridges_are_single_tokens_count(lm):
    swaps = [
        swap("a"),
        swap("b", bridge="qzxjv"),
        swap("c", other_answer="mat"),
        swap("d", other_bridge="cat"),
    ]
    usable, left_out = bridge_tokens(lm, swaps)
    assert [one.swap.id for one in usable] == ["a"]
    assert left_out == {
        "a bridge is not one token": 1,
        "both bridges are the same token": 1,
        "the answers begin alike": 1,
    }
    (one,) = usable
    assert lm.encoder.tokens([one.bridge, one.other_bridge, one.answer]) == [" cat", " France", " mat"]
    # the space at the end is not read
    assert one.prompt.ids == after_document_mark(lm, ["The cat sat on the"])[0].ids


def test_the_band_is_the_middle_of_the_layers():
    class Model:
        n_layers = 30

    assert bridge_band(Model, range(1, 30)) == tuple(range(5, 26))
    assert bridge_band(Model, (1, 2)) == (1, 2)


def test_what_is_measured_is_the_edited_models_next_token(lm64, monkeypatch):
    monkeypatch.setattr(bridge_swaps, "ABLATED", 3)
    f = affine_lens.affine(lm64)
    lenses = {"logit lens": ls.Lens(lm64), "other": ls.Lens(lm64, f, name="other")}
    setting = Setting(lm64, quick=True)
    swaps = [swap(str(n), prompt=text) for n, text in enumerate(["The cat sat", "The capital of", "This is"])]
    results = run_bridge_swaps(setting, lenses, (1, 2, 3), swaps)
    keys = {f"{name}|{what}|{c}" for name in lenses for what in (SWAP, ABLATE) for c in ("edit", *CONTROLS)}
    assert set(results) == {"unedited", *keys}
    items, _ = bridge_tokens(lm64, swaps)
    for n, one in enumerate(items):
        with torch.no_grad():
            log = lm64.model(torch.tensor([one.prompt.ids])).logits[0, -1].log_softmax(-1)
        wanted = [float(log[one.answer]), float(log[one.other_answer])]
        assert results["unedited"][n, 2:] == pytest.approx(wanted)
        assert results["unedited"][n, 0] == (int(log.argmax()) == one.answer)
        edit = swap_tokens(lenses["other"], one.bridge, one.other_bridge, [1, 2, 3])
        with lm64.edit(*edit):
            log = ls.Lens(lm64).logits(lm64.read(one.prompt)[lm64.n_layers, -1], lm64.n_layers).log_softmax(-1)
        assert results["other|swap|edit"][n, 2:] == pytest.approx(
            [float(log[one.answer]), float(log[one.other_answer])]
        )
    assert (results["other|swap|edit"] != results["other|swap|random"]).any()
    assert (results["other|swap|edit"] != results["logit lens|swap|edit"]).any()
    assert (results["other|ablate|edit"] != results["unedited"]).any()


def results_of(**measured):
    names = {"unedited": "unedited", "edit": "x|swap|edit", "random": "x|swap|random", "token": "x|swap|random token"}
    made = {names[key]: np.array(rows, dtype=float) for key, rows in measured.items()}
    return made | {key.replace("swap", "ablate"): rows for key, rows in made.items()}


def test_rows_and_sentences_by_hand():
    results = results_of(
        unedited=[[1, 0, -1, -3], [1, 0, -1, -3], [0, 0, -4, -4]],
        edit=[[0, 1, -3, -1], [1, 0, -2, -3], [0, 1, -5, -2]],
        random=[[1, 0, -1, -3]] * 2 + [[0, 0, -4, -4]],
        token=[[0.5, 0, -2, -3]] * 2 + [[0, 0, -5, -4]],
    )
    rows = swap_rows(results, ["x"], 0)
    assert [row["swap"] for row in rows] == ["bridge → other bridge", "control: random", "control: random token"]
    edit, random, token = rows
    # of the two that are right unedited one is flipped; the third's flip does not count
    assert edit["flipped of right"].value == 0.5
    assert edit["Δ ln p answer"].value == pytest.approx((-2 - 1 - 1) / 3)
    assert edit["Δ ln p other answer"].value == pytest.approx((2 + 0 + 2) / 3)
    assert edit["Δ ln odds"].value == pytest.approx((4 + 1 + 3) / 3)
    assert random["Δ ln odds"].value == 0
    assert random["Δ ln odds, edit minus control"].value == pytest.approx(8 / 3)
    assert token["Δ ln odds, edit minus control"].value == pytest.approx(8 / 3 - 1)
    ablated = ablation_rows(results, ["x"], 0)
    assert [row["still right of right"].value for row in ablated] == [0.5, 1, 0.5]
    assert ablated[1]["Δ ln p answer, edit minus control"].value == pytest.approx(-4 / 3)
    said = swap_reading(
        results, rows, ablated, {"a bridge is not one token": 4, "the answers begin alike": 0}, range(5, 10)
    )
    assert "layers 5–9, fixed beforehand; 3 two-hop prompts, of which the model answers 2 right unedited" in said[0]
    assert "left out: of 4 a bridge is not one token" in said[0]
    assert "x flips 0.50" in said[0]
    assert "Taking out the" in said[1]
    # the first two prompts alone are ablated
    fewer = {key: rows[:2] if "ablate" in key else rows for key, rows in results.items()}
    ablated = ablation_rows(fewer, ["x"], 0)
    assert [row["prompts"] for row in ablated] == [2, 2, 2]
    assert ablated[0]["Δ ln p answer"].value == pytest.approx(-1.5)
    assert "in 2 prompts" in swap_reading(fewer, rows, ablated, {}, range(5, 10))[1]
    # a band with a gap
    assert "(layers 5–6, 9, fixed beforehand; 3 two-hop" in swap_reading(results, rows, ablated, {}, (5, 6, 9))[0]


def test_where_no_prompt_is_answered_right_the_sentence_says_so_and_gives_no_share():
    results = results_of(
        unedited=[[0, 0, -1, -3]] * 2, edit=[[0, 1, -3, -1], [0, 0, -3, -3]], random=[[0, 0, -1, -3]] * 2,
        token=[[0, 0, -2, -3]] * 2,
    )  # fmt: skip
    rows = swap_rows(results, ["x"], 0)
    sentences = swap_reading(results, rows, ablation_rows(results, ["x"], 0), {}, (5, 6))
    assert "; 2 two-hop prompts, of which the model answers none right unedited, so that no right " in sentences[0]
    assert "): x moves the other answer's odds by 3.00 [" in sentences[0]
    assert "nats, more than every control (0.00 [0.00, 0.00], 1.00 [1.00, 1.00])." in sentences[0]
    # a single prompt has values and no intervals
    one = {key: values[:1] for key, values in results.items()}
    sentences += swap_reading(one, swap_rows(one, ["x"], 0), ablation_rows(one, ["x"], 0), {}, (5,))
    assert "(layer 5, fixed beforehand; 1 two-hop" in sentences[2]
    assert "odds by 4.00 nats" in sentences[2]
    assert "nan" not in " ".join(sentences)


def test_left_out_prompts_are_counted_by_reason():
    assert left_out_in_words({"a": 2, "b": 0, "c": 1}) == "of 2 a; of 1 c"
    assert left_out_in_words({"a": 0}) == ""
