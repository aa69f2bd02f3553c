"""What is fitted on is chosen and counted as it says; labels that contradict each other are refused in one line."""

from dataclasses import replace

import numpy as np
import pytest
from labelled import labelled_prompts
from sklearn.metrics import roc_auc_score

import lenscope as ls
from lenscope.detection.attack_fit import enough_labelled_prompts, fit_attack_detector
from lenscope.detection.detector_parts import text_fingerprint
from lenscope.detection.labelled_prompts import LabelledPrompt
from lenscope.detection.probe_features import measure_probe_features
from lenscope.detection.probes import choose_probe


@pytest.fixture(scope="module")
def lenses(lm):
    return {"logit": ls.Lens(lm)}


@pytest.fixture(scope="module")
def detector(lenses):
    return fit_attack_detector(lenses, labelled_prompts() + labelled_prompts()[:5], layers=(1, 3, 4))


def test_the_best_view_is_taken_by_cross_validation_of_hosts(lm, lenses, detector):
    prompts = labelled_prompts()
    assert len(prompts) == len(detector.prompts) == 80
    assert detector.prompts[7] == text_fingerprint(lm, prompts[7].text)
    features = measure_probe_features(lenses, [p.text for p in prompts], (1, 3, 4))
    attacks, hosts = [p.attack for p in prompts], [p.host for p in prompts]
    areas = {}
    for row in detector.report["tried"]:
        key, probe, choice = choose_probe(features.views[row["view"]], attacks, hosts)
        areas[row["view"]] = roc_auc_score(attacks, choice.margins)
        assert row["auroc"] == pytest.approx(areas[row["view"]], abs=1e-4)
        low, high = row["auroc_95"]
        assert low <= row["auroc"] <= high
        assert (row["layer"] is None) == (key == -1)
        at_5 = next(a for a in row["true_positives"] if a["false_positives"] == 0.05)
        above = choice.probabilities[np.array(attacks)] > choice.thresholds[0.05]
        assert at_5["value"] == pytest.approx(above.mean(), abs=1e-4)
        assert next(a for a in row["true_positives"] if a["false_positives"] == 0.01)["value"] is None
        assert row["control"] == (row["view"] in ("length", "perplexity"))
        if row["view"] == detector.view:
            np.testing.assert_allclose(probe.weights, detector.probe.weights, atol=1e-6)
    own = {v: a for v, a in areas.items() if v not in ("length", "perplexity")}
    assert areas[detector.view] == max(own.values())
    # one lens's trajectory is not tried twice
    assert "trajectories" not in areas


def test_the_report_counts_what_was_fitted(detector):
    report = detector.report
    assert report["data_sets"] == {
        "requests": {"attacks": 0, "normal": 40, "insertions": 0, "families": {}},
        "attacks": {
            "attacks": 40,
            "normal": 0,
            "insertions": 0,
            "families": {"family 0": 14, "family 1": 13, "family 2": 13},
        },
    }
    assert (report["attacks"], report["harmless"], report["groups"]) == (40, 40, 20)
    assert (report["calibration"], report["abstain"], report["seed"]) == ("platt", 0.1, 0)


def test_texts_that_are_nearly_equal_are_one_group(lenses):
    prompts = [replace(p, host="") for p in labelled_prompts()]
    twins = [replace(p, text=p.text.upper() + " 7", span=None) for p in prompts if p.normal]
    made = fit_attack_detector(lenses, prompts + twins, view="length")
    assert made.report["groups"] == 80
    assert made.report["harmless"] == 80


def test_equal_texts_are_one_group_whatever_their_hosts(lenses):
    own = [replace(p, host=f"host {n}", span=None) for n, p in enumerate(labelled_prompts())]
    twins = [replace(p, text=f" {p.text.upper()}", host=f"twin of {p.host}") for p in own]
    made = fit_attack_detector(lenses, own + twins, view="length")
    assert made.report["groups"] == len({p.text.casefold() for p in own}) == 80
    # one text in two hosts: what shares either of them is one group, though the text counts once
    both = [*own, replace(own[0], host=own[1].host), replace(own[2], text=f"{own[2].text} more", host=own[1].host)]
    made = fit_attack_detector(lenses, both, view="length")
    assert (made.report["attacks"] + made.report["harmless"], made.report["groups"]) == (81, 79)


def test_a_view_that_is_asked_for_is_taken_beside_the_controls(lenses):
    made = fit_attack_detector(lenses, labelled_prompts(), view="perplexity", layers=(1,))
    assert (made.view, made.layer) == ("perplexity", -1)
    assert [row["view"] for row in made.report["tried"]] == ["perplexity", "length"]


def test_mistakes_are_one_line(lenses):
    prompts = labelled_prompts()
    both = LabelledPrompt(prompts[3].text, True)
    for call, told in (
        (lambda: fit_attack_detector(lenses, prompts[:40]), "0 different attacks, 40 harmless prompts"),
        (lambda: fit_attack_detector(lenses, prompts[:40] + prompts[40:50] * 9), "10 different attacks, 40 harmless"),
        (lambda: fit_attack_detector(lenses, prompts[21:]), "40 different attacks, 19 harmless"),
        (lambda: fit_attack_detector(lenses, []), "at least 20 of each"),
        (lambda: fit_attack_detector(lenses, [*prompts, both]), "is an attack and a harmless prompt"),
        (lambda: fit_attack_detector(lenses, prompts, false_positives=0.01), "takes at least 99 harmless prompts"),
        (lambda: fit_attack_detector(lenses, prompts, view="states"), "view 'states'"),
        (lambda: fit_attack_detector(lenses, prompts, calibration="beta"), "calibration 'beta'"),
        (lambda: fit_attack_detector(lenses, prompts, abstain=-1), "abstain -1"),
        (lambda: fit_attack_detector({}, prompts), "lenses: there are none"),
        (
            # before anything is measured
            lambda: fit_attack_detector(lenses, [replace(p, host="one") for p in prompts], progress=pytest.fail),
            "each in at least 2 groups",
        ),
    ):
        with pytest.raises(ls.LenscopeError, match=told) as error:
            call()
        assert "\n" not in str(error.value)


def test_equal_attacks_count_once_and_a_share_takes_its_number_of_harmless_prompts():
    harmless = [LabelledPrompt(f"prompt {n}", False) for n in range(99)]
    attacks = [LabelledPrompt(f"attack {n}", True) for n in range(99)]
    assert len(enough_labelled_prompts([*harmless, *attacks, *attacks], 0.01)) == 198
    with pytest.raises(ls.LenscopeError, match=r"false positives 0\.01: takes at least 99 harmless prompts, not 98"):
        enough_labelled_prompts([*harmless[1:], *attacks], 0.01)
    with pytest.raises(ls.LenscopeError, match=r"19 different attacks, 99 harmless prompts: .* at least 20 of each"):
        enough_labelled_prompts([*harmless, *attacks[:19], *attacks[:19]], 0.05)
