"""Detectors: they score as what they are made of, odd prompts are never fitted on, folders are safe to load."""

import numpy as np
import pytest
import tiny
import torch
from handmade import rewritten

import lenscope as ls
from lenscope.detection import outliers
from lenscope.detection.detector import Detector, enough_normal_prompts, fit_detector, load_detector
from lenscope.detection.detector_parts import fingerprint
from lenscope.detection.prompt_features import (
    measure_prompts,
)
from lenscope.tasks import builtin_questions as quizzes

REQUESTS = quizzes.REQUESTS.splitlines()


@pytest.fixture
def detector(tuned):
    return fit_detector(tuned, REQUESTS, methods=["forest", "neighbours"], false_positives=0.1)


def test_a_detector_scores_as_what_it_is_made_of(tuned, detector):
    assert detector.view == "trajectory"
    assert len(detector.prompts) == len(REQUESTS) == len({*detector.prompts})
    odd = ["!!! 7 7 7 7 7 7", REQUESTS[0]]
    found = detector.score(odd)
    features = measure_prompts(tuned, [*REQUESTS, *odd], detector.layers).trajectory
    np.testing.assert_allclose(detector.reference, features[:60], atol=1e-9)
    np.testing.assert_allclose(found, detector.method(features[:60])(features[60:]), rtol=1e-6)
    assert detector.score(odd[0]) == pytest.approx(found[0])
    assert isinstance(detector.score(odd[0]), float)
    assert detector.saw(REQUESTS[5])
    assert detector.saw(f"{REQUESTS[5].lower()} ")
    assert not detector.saw(odd[0])
    best = max(w["auroc"] for w in detector.report["tried"])
    taken = next(w for w in detector.report["tried"] if w["auroc"] == best)
    assert (taken["method"], taken["view"]) == (outliers.name_of(detector.method), detector.view)
    # the forest, and eight settings of the local outlier factor
    assert len(detector.report["tried"]) == 9


def test_every_kind_of_detector_is_the_same_when_loaded(lm, tuned, detector, tmp_path):
    answers = fit_detector(tuned, REQUESTS, choices=("yes", "no"), methods=["neighbours"], layers=[1, 2])
    assert (answers.view, answers.reference.shape) == ("answers", (60, 2))
    states = fit_detector(ls.Lens(lm), REQUESTS, methods=["mahalanobis"])
    assert (states.view, states.reference.shape, len(states.layers)) == ("states", (60, 32), 1)
    forest = fit_detector(ls.Lens(lm), REQUESTS, methods=["forest"], layers=[1, -1], seed=3)
    for n, one in enumerate((detector, answers, states, forest)):
        one.save(tmp_path / str(n))
        files = sorted(p.name for p in (tmp_path / str(n)).rglob("*") if p.is_file())
        assert all(f.endswith((".json", ".safetensors")) for f in files)
        assert (tmp_path / str(n) / "lens").exists() == (n < 2)
        same = load_detector(tmp_path / str(n), lm)
        assert isinstance(same, Detector)
        np.testing.assert_array_equal(same.score(["The cat", REQUESTS[1]]), one.score(["The cat", REQUESTS[1]]))
        assert (same.threshold, same.prompts, same.method) == (one.threshold, one.prompts, one.method)


def test_folders_that_are_not_right_are_refused(lm, detector, tmp_path):
    def changed(change, tensors=None):
        folder = tmp_path / "made"
        detector.save(folder)
        rewritten(folder, change, tensors or (lambda held: held))
        return folder

    def put(**values):
        return lambda config: config.update(values)

    load_detector(changed(put()), lm)
    bad = [
        (put(format=2), "format"),
        (put(kind="lens"), "no detector"),
        (put(model_hash="sha256:0"), "not these weights"),
        (put(lens="0"), "not the one"),
        (put(method={"name": "pickle"}), "lacks 'pickle'"),
        (put(method={"name": "neighbours", "metric": "evil"}), "metric"),
        (put(method={"name": "forest", "trees": 10**9}), "trees"),
        (put(method={"name": "forest", "jobs": 3}), "jobs"),
        (put(method={"name": "mahalanobis", "ridge": -1.0}), "ridge"),
        (put(view="states"), "but view 'states' of these layers needs"),
        (put(view="x"), "view 'x'; give one of 'trajectory'"),
        (put(layers=[0, 9]), "layer 9"),
        (put(threshold="high"), "high"),
        (put(threshold=None), "NoneType"),
        (put(prompts=None), "NoneType"),
        (lambda config: config.pop("report"), "lacks 'report'"),
    ]
    for change, told in bad:
        with pytest.raises(ls.LenscopeError, match=told):
            load_detector(changed(change), lm)
    for tensors, told in (
        (lambda t: {**t, "reference": t["reference"][:, :3].contiguous()}, "reference"),
        (lambda t: {**t, "reference": t["reference"] * torch.nan}, "finite"),
        (lambda t: {"own": t["own"]}, "lacks 'reference'"),
        (lambda t: {**t, "own": t["own"] + 1}, "come out differently"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            load_detector(changed(put(), tensors), lm)
    folder = changed(put())
    next(folder.glob("detector-*")).write_bytes(b"damaged")
    with pytest.raises(ls.LenscopeError, match="damaged"):
        load_detector(folder, lm)
    with pytest.raises(ls.LenscopeError, match="no detector"):
        load_detector(tmp_path / "none", lm)
    other = ls.LM(tiny.model("llama", dtype=torch.float64, seed=1), tiny.tokenizer(), "other")
    with pytest.raises(ls.LenscopeError, match="not these weights of other"):
        load_detector(changed(put()), other)


def test_mistakes_are_one_line(lm, tuned):
    for call, told in (
        (lambda: fit_detector(tuned, REQUESTS[:10] * 9), "10 different prompts"),
        (lambda: fit_detector(tuned, REQUESTS, methods=["svm"]), "method svm"),
        (lambda: fit_detector(tuned, REQUESTS, methods=[]), "method none"),
        (lambda: fit_detector(tuned, REQUESTS, layers=[7]), "layer 7"),
        (lambda: fit_detector(tuned, REQUESTS, methods=["forest"], false_positives=0.001), "at least 999"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            call()
    made = fit_detector(ls.Lens(lm, lambda h: h * 2), REQUESTS, methods=["forest"], layers=[1])
    with pytest.raises(ls.LenscopeError, match="is a function"):
        made.save("nowhere")


def test_fingerprints_are_of_the_text(lm):
    from hashlib import sha256

    assert fingerprint(lm, "The cat") == sha256(b"The cat").hexdigest()


def test_equal_normal_prompts_count_once_and_a_share_takes_its_number_of_them():
    texts = [f"prompt {n}" for n in range(99)]
    assert enough_normal_prompts(texts * 2, 0.01) == texts
    with pytest.raises(ls.LenscopeError, match="19 different prompts: a detector is fitted on at least 20 normal ones"):
        enough_normal_prompts(texts[:19] * 9, 0.5)
    with pytest.raises(ls.LenscopeError, match="different prompts"):
        enough_normal_prompts("a text is no list, however long", 0.5)
    with pytest.raises(
        ls.LenscopeError, match=r"false positives 0\.01: takes at least 99 normal prompts, not 98; give"
    ):
        enough_normal_prompts(texts[:98], 0.01)
