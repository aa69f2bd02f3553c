"""What trials of detectors show: tables of measures with intervals, differences with tests, a verdict in words.

Knows: which prompts of which trials a measure is of, what is averaged. Does not know: how detectors are trained, files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.calibration import SHARES
from lenscope.detection.labelled_prompts import LabelledPrompt
from lenscope.detection.probe_features import BOTH, LAST, TRAJECTORIES
from lenscope.detection.trial_designs import DESIGNS, data_set_kinds
from lenscope.detection.trial_detectors import NORMAL_ONLY, WORDS
from lenscope.detection.trial_measures import (
    Scored,
    averaged_errors,
    false_alarms,
    mean_estimate,
    measures_of,
    paired_scores,
    scored_auroc,
    scored_error,
)
from lenscope.detection.trials_in_words import trials_verdict
from lenscope.files.parquet_tables import columns_frame
from lenscope.statistics.classifier_scores import auroc_difference, swap_test
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.significance import holm

# pairs of detectors whose AUROC is compared on the same prompts, where both are there
COMPARED = (
    (TRAJECTORIES, WORDS), (TRAJECTORIES, LAST), (BOTH, LAST), (BOTH, WORDS), (LAST, WORDS),
    ("trajectory tuned", "trajectory logit"), (TRAJECTORIES, NORMAL_ONLY), (TRAJECTORIES, "length"),
    (TRAJECTORIES, "perplexity"),
)  # fmt: skip
MEAN = "mean of these"
TableRows = list[dict[str, Any]]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trial(Brief):
    """One trial: the numbers of the prompts trained on and tested, and by detector what was chosen and what came out.

    `scores` (len(test),) are NaN for what a saved detector has seen; `thresholds` by share of false positives, chosen
    on what was trained on; `choices` in words.
    """

    design: str
    name: str
    train: np.ndarray
    test: np.ndarray
    scores: dict[str, np.ndarray]
    thresholds: dict[str, dict[float, float]]
    choices: dict[str, str]


@final
@dataclass(frozen=True, eq=False, repr=False)
class DetectorTrials(Brief):
    """The trials of detectors on N prompts, as `try_detectors` makes them; its tables have 95 % intervals over hosts.

    `calibrated` says for each detector whether its scores are probabilities; `not_tested` why data sets could not be
    tested, and trials not be trained; `groups` (N,) number what prompts share, a host or a text, which is resampled
    whole.
    """

    prompts: tuple[LabelledPrompt, ...]
    trials: tuple[Trial, ...]
    calibrated: dict[str, bool]
    not_tested: dict[str, str]
    groups: np.ndarray
    seed: int = 0

    @property
    def detectors(self) -> tuple[str, ...]:
        """The names of all detectors."""
        return tuple(self.calibrated)

    @cached_property
    def tables(self) -> dict[str, TableRows]:
        """All tables by name, without those that have no rows; a value is a text, a number or an `Estimate`."""
        tables = {design: self._measured(design) for design in DESIGNS}
        tables["harmless insertions"] = self._harmless()
        tables["trigger words"] = self._alarms()
        tables["differences"] = self._differences()
        tables["chosen in training"] = [
            {"design": t.design, "left out": t.name, "trained on": len(t.train), **t.choices} for t in self.trials
        ]
        tables["not tested"] = [{"what": name, "why": why} for name, why in self.not_tested.items()]
        return {name: rows for name, rows in tables.items() if rows}

    def to_dataframe(self) -> Any:
        """A row for each prompt that a trial tests and each detector: its score, and whether thresholds lie below it.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        columns: dict[str, list[Any]] = {}
        for trial in self.trials:
            for detector, scores in trial.scores.items():
                for number, score in zip(trial.test.tolist(), scores.tolist(), strict=True):
                    prompt = self.prompts[number]
                    row = {"design": trial.design, "left out": trial.name, "prompt": number, "attack": prompt.attack}
                    row |= {"data set": prompt.data_set, "family": prompt.family, "normal": prompt.normal}
                    row |= {"detector": detector, "score": score}
                    row |= {f"above {s:.0%}": bool(score > trial.thresholds[detector].get(s, np.nan)) for s in SHARES}
                    for name, value in row.items():
                        columns.setdefault(name, []).append(value)
        return columns_frame({name: np.array(values) for name, values in columns.items()})

    def tested(self, design: str) -> list[str]:
        """The data sets that a design tests, in the order of the prompts."""
        rows = {n for t in self.trials if t.design == design for n in t.test.tolist()}
        present = dict.fromkeys(p.data_set for n, p in enumerate(self.prompts) if n in rows)
        return [name for name in present if any(p.attack for p in self.prompts if p.data_set == name)]

    def verdict(self) -> str:
        """What the tables say, in plain sentences; the first is the verdict."""
        return trials_verdict(self.tables, self.unseen)

    def scored(self, design: str, data_set: str, detector: str) -> Scored:
        """What a detector says of a data set's prompts, each by a trial of the design that was not trained on it."""
        return self._scored({data_set}, [t for t in self.trials if t.design == design], detector)

    @property
    def only_normal(self) -> list[str]:
        """The data sets without attacks, which are tried in every trial."""
        return data_set_kinds(self.prompts)[1]

    @property
    def unseen(self) -> str:
        """The design of the headline: data sets left out, or folds where there is but one data set."""
        return DESIGNS[1] if any(t.design == DESIGNS[1] for t in self.trials) else DESIGNS[0]

    # -- tables

    def _scored(self, data_sets: set[str], trials: Sequence[Trial], detector: str) -> Scored:
        """The first score of each prompt of these data sets in these trials."""
        at: dict[int, tuple[float, list[bool | None]]] = {}
        for trial in trials:
            limits = [trial.thresholds[detector].get(s, float("nan")) for s in SHARES]
            for number, score in zip(trial.test.tolist(), trial.scores[detector].tolist(), strict=True):
                if number not in at and self.prompts[number].data_set in data_sets and not np.isnan(score):
                    at[number] = score, [None if np.isnan(limit) else score > limit for limit in limits]
        numbers = sorted(at)
        above = np.array([at[n][1] for n in numbers], dtype=float).reshape(-1, len(SHARES))
        return Scored(
            np.array([at[n][0] for n in numbers]),
            dict(zip(SHARES, above.T, strict=True)),
            np.array([self.prompts[n].attack for n in numbers], dtype=bool),
            np.array([self.prompts[n].normal for n in numbers], dtype=bool),
            self.groups[numbers] if numbers else np.empty(0, dtype=np.int64),
            self.calibrated[detector],
        )

    def _measured(self, design: str) -> TableRows:
        """A row for each data set and detector, and their means."""
        rows: TableRows = []
        drawn: dict[str, list[dict[str, np.ndarray]]] = {}
        errors: dict[str, list[tuple[Estimate, float]]] = {}
        tested = self.tested(design)
        for name in tested:
            for detector in self.detectors:
                one = self.scored(design, name, detector)
                if not (one.attack.any() and one.normal.any()):
                    continue
                values, error = measures_of(one, self.seed), scored_error(one, self.seed)
                drawn.setdefault(detector, []).append(values)
                errors.setdefault(detector, []).append(error)
                row = {"data set": name, "detector": detector, "attacks": int(one.attack.sum())}
                row["normal"] = int(one.normal.sum())
                row |= {measure: mean_estimate([v], one.units) for measure, v in values.items()}
                row |= {"calibration error": error[0], "of a calibrated one": error[1]}
                rows.append({**row, **self._worst(design, name, detector)})
        for detector, several in drawn.items():
            if len(several) == len(tested) > 1:
                every = [r for r in rows if r["detector"] == detector]
                row = {"data set": MEAN, "detector": detector}
                row |= {side: sum(r[side] for r in every) for side in ("attacks", "normal")}
                units = min(self.scored(design, name, detector).units for name in tested)
                row |= {measure: mean_estimate([v[measure] for v in several], units) for measure in several[0]}
                row |= averaged_errors(errors[detector])
                rows.append({**row, **({"lowest group": ""} if "lowest group" in rows[0] else {})})
        return rows

    def _worst(self, design: str, data_set: str, detector: str) -> dict[str, str]:
        """Of families left out, the group whose attacks are told worst."""
        if design != DESIGNS[2]:
            return {}
        areas = []
        for trial in self.trials:
            one = self._scored({data_set}, [trial], detector) if trial.design == design else None
            if one is not None and one.attack.any() and one.normal.any():
                areas.append((float(scored_auroc(one, self.seed)[0]), self._families(trial, data_set)))
        lowest = min(areas, default=None)
        return {"lowest group": "" if lowest is None else f"{lowest[0]:.2f}: {lowest[1]}"}

    def _families(self, trial: Trial, data_set: str) -> str:
        own = [self.prompts[n] for n in trial.test.tolist()]
        return ", ".join(sorted({p.family for p in own if p.attack and p.data_set == data_set}))

    def _harmless(self) -> TableRows:
        """Attacks against harmless insertions of the same form, where a data set has both."""
        rows: TableRows = []
        for design in DESIGNS[:2]:
            for name in self.tested(design):
                for detector in self.detectors:
                    one = self.scored(design, name, detector)
                    harmless = ~one.attack & ~one.normal
                    if not (harmless.any() and one.attack.any()):
                        continue
                    row = {"design": design, "data set": name, "detector": detector, "attacks": int(one.attack.sum())}
                    row["harmless insertions"] = int(harmless.sum())
                    row["AUROC, attack from insertion"] = mean_estimate([scored_auroc(one, self.seed, True)], one.units)
                    of_insertions = Scored(one.scores, one.above, harmless, one.normal, one.groups, False)
                    row["AUROC, insertion from normal"] = (
                        mean_estimate([scored_auroc(of_insertions, self.seed)], one.units)
                        if one.normal.any()
                        else Estimate(np.nan, np.nan, np.nan)
                    )
                    for share in SHARES:
                        drawn = false_alarms(one.above[share][harmless], one.groups[harmless], self.seed)
                        row[f"alarms at {share:.0%}"] = mean_estimate([drawn], one.units)
                    rows.append(row)
        return rows

    def _alarms(self) -> TableRows:
        """Data sets of normal prompts alone: false alarms, and the attacks of sets left out against them."""
        trials = [t for t in self.trials if t.design == self.unseen]
        rows: TableRows = []
        for name in self.only_normal:
            for detector in self.detectors:
                each = [self._scored({name}, [t], detector) for t in trials]
                each = [one for one in each if len(one.scores)]
                if not each:
                    continue
                row: dict[str, Any] = {"data set": name, "detector": detector, "normal": len(each[0].scores)}
                units = each[0].units
                for share in SHARES:
                    flags = np.mean([one.above[share] for one in each], 0)
                    drawn = false_alarms(flags, each[0].groups, self.seed)
                    row[f"false alarms at {share:.0%}"] = mean_estimate([drawn], units)
                flags = np.mean([one.scores > 0.5 for one in each], 0)
                judged = 1 - false_alarms(flags, each[0].groups, self.seed)
                unknown = Estimate(np.nan, np.nan, np.nan)
                row["judged harmless (p < .5)"] = (
                    mean_estimate([judged], units) if self.calibrated[detector] else unknown
                )
                areas = [scored_auroc(one, self.seed) for one in self._against(name, trials, detector)]
                row["AUROC of unseen attacks"] = mean_estimate(areas, units) if areas else unknown
                rows.append(row)
        return rows

    def _against(self, name: str, trials: Sequence[Trial], detector: str) -> list[Scored]:
        """For each trial its own attacks beside the prompts of a data set of normal ones."""
        every = {p.data_set for p in self.prompts}
        several = []
        for trial in trials:
            one = self._scored(every, [trial], detector)
            numbers = trial.test[~np.isnan(trial.scores[detector])]
            own = np.array([self.prompts[n].data_set == name for n in sorted(numbers.tolist())], dtype=bool)
            take = one.attack | own
            if one.attack.any() and own.any():
                several.append(one.part(take))
        return several

    def _differences(self) -> TableRows:
        """AUROC of one detector less another's on the same prompts, mean over the data sets, with p after Holm."""
        rows: TableRows = []
        for against, harmless in (("normal prompts", False), ("harmless insertions", True)):
            for first, second in COMPARED:
                if first not in self.calibrated or second not in self.calibrated:
                    continue
                pairs = []
                for name in self.tested(self.unseen):
                    both = [self.scored(self.unseen, name, d) for d in (first, second)]
                    pairs += paired_scores(*both, harmless=harmless)
                if pairs:
                    row = {"comparison": f"{first} - {second}", "attacks against": against, "data sets": len(pairs)}
                    row["AUROC difference"] = auroc_difference(pairs, seed=self.seed)
                    rows.append({**row, "p": swap_test(pairs, seed=self.seed)})
        corrected = holm([row["p"] for row in rows]) if rows else []
        return [{**row, "p (Holm)": p} for row, p in zip(rows, corrected, strict=True)]
