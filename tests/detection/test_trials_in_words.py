"""Sentences of a verdict say what the rows say."""

from lenscope.detection.trial_designs import DESIGNS
from lenscope.detection.trials_in_words import trials_verdict
from lenscope.statistics.intervals import Estimate


def row(detector, area, data_set="mean of these"):
    e = Estimate(area, area - 0.1, area + 0.1)
    return {"data set": data_set, "detector": detector, "AUROC": e, "TP at 5%": e, "FP, 5% threshold": e}


def test_the_best_is_named_and_differences_are_told():
    names = ("trajectories", "last state", "TF-IDF")
    tables = {
        DESIGNS[0]: [row(n, 0.9) for n in names],
        DESIGNS[1]: [row(n, a) for n, a in zip(names, (0.7, 0.8, 0.6), strict=True)],
        "differences": [
            {
                "comparison": f"trajectories - {other}", "attacks against": "normal prompts",
                "AUROC difference": Estimate(gap, gap - 0.05, gap + 0.05), "p (Holm)": p,
            }
            for other, gap, p in (("TF-IDF", 0.1, 0.01), ("last state", -0.1, 0.2))
        ],
        "trigger words": [{"data set": "only", "detector": "TF-IDF", "false alarms at 5%": Estimate(0.4, 0.3, 0.5)}],
        "harmless insertions": [
            {"design": DESIGNS[1], "detector": "TF-IDF", "AUROC, attack from insertion": Estimate(a, 0, 1)}
            for a in (0.5, 0.7)
        ],
    }  # fmt: skip
    lines = trials_verdict(tables, DESIGNS[1]).splitlines()
    assert lines[0] == (
        "Leaving one data set out, attacks are told best by last state, AUROC 0.80 [0.70, 0.90]; the trajectories' "
        "detector is better than TF-IDF (by 0.10 [0.05, 0.15], p 0.01) and not told apart from last state (difference "
        "-0.10 [-0.15, -0.05], p 0.2)."
    )
    assert "In distribution the same detectors have AUROC trajectories 0.90" in lines[3]
    assert lines[4] == "Against harmless insertions of the same form and place, mean AUROC: TF-IDF 0.60."
    assert lines[5] == ("False alarms on only, normal prompts alone, at the 5 % threshold: TF-IDF 0.40 [0.30, 0.50].")


def test_one_data_set_is_judged_within():
    lines = trials_verdict({DESIGNS[0]: [row("TF-IDF", 0.7, "one")]}, DESIGNS[0]).splitlines()
    assert lines[0].startswith("Within the one data set (none could be left out), attacks are told best by TF-IDF")
    assert not any("In distribution" in line for line in lines)


def test_the_best_is_the_best_of_all_detectors():
    tables = {DESIGNS[1]: [row("TF-IDF", 0.7), row("mean state", 0.78), row("trajectory tuned", 0.6)]}
    assert "told best by mean state, AUROC 0.78" in trials_verdict(tables, DESIGNS[1])
