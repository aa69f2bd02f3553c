"""What edits along tokens' directions did to answers: before, after and under controls of equal size, with intervals.

Knows: which run is which, units, what is resampled, what a table shows, files.
Does not know: models, how edits are made (token_edits.py) or run (token_edit_effects.py).
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope.display.tables import TableColumn, plain_table
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT
from lenscope.files.json_values import (
    check_within,
    float_array,
    layer_numbers,
    object_value,
    text_value,
    text_values,
    vocabulary_value,
    whole_array,
    whole_number,
    whole_numbers,
)
from lenscope.files.parquet_tables import number_column, text_column
from lenscope.files.records import Lists, Record, load_record
from lenscope.models.layers import layers_in_words
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate
from lenscope.visible_text import printable_token

# the runs in front of the controls
BEFORE, AFTER, FIRST_CONTROL = 0, 1, 2


@dataclass(frozen=True)
class EditedPrompt:
    """One prompt: its tokens, the positions that were changed, what was done, and the answers that are followed."""

    text: str
    tokens: tuple[str, ...]
    places: tuple[int, ...]
    edit: str
    answers: tuple[str, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class EditEffects(Record):
    """What edits did to the next token: N prompts, each run R times, with K answers that are followed.

    Run 0 is the model as it is (before), run 1 the edited one (after), the others are controls of equal size.

    Attributes:
        model: the model's name.
        lens: the lens's name.
        n_layers: how many layers the model has.
        layers: the layers that were edited, ascending (L).
        control: the kind of the controls.
        prompts: what each run is of (N).
        log_prob: ln p of each answer as the next token, in nats (N, R, K).
        rank: how many tokens are more probable (N, R, K).
        top_ids: the most probable tokens of each run, falling (N, R, T).
        top_log_probs: their ln p in nats (N, R, T).
        relative_size: mean length of what was added, over that of the state, at each layer (N, L).
        vocabulary: the texts of the tokens by id.
        provenance: where the numbers come from.
    """

    model: str
    lens: str
    n_layers: int
    layers: tuple[int, ...]
    control: str
    prompts: tuple[EditedPrompt, ...]
    log_prob: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray
    relative_size: np.ndarray
    vocabulary: dict[int, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    file_kind = "edit effects"

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        band = layers_in_words(self.layers)
        edits = [*dict.fromkeys(p.edit for p in self.prompts)]
        what = edits[0] if len(edits) == 1 else f"{len(edits)} edits"
        prompts = "1 prompt" if len(self) == 1 else f"{len(self)} prompts"
        return f"EditEffects({what}: {prompts}, {band}, {self.n_controls} controls, {self.model}, {self.lens})"

    @property
    def n_controls(self) -> int:
        """How many controls each prompt has."""
        return self.log_prob.shape[1] - FIRST_CONTROL

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs by name: before, after, control 1, …"""
        return ("before", "after", *(f"control {n + 1}" for n in range(self.n_controls)))

    @property
    def probability(self) -> np.ndarray:
        """The probability of each answer as the next token, 0–1, (N, R, K)."""
        return np.exp(self.log_prob)

    @property
    def flipped(self) -> np.ndarray:
        """Whether the most probable token is another than before, (N, R)."""
        return self.top_ids[:, :, 0] != self.top_ids[:, :1, 0]

    def change(self, answer: int = 0, *, seed: int = 0) -> Estimate:
        """What the edit added to ln p of an answer, in nats, mean over prompts, with its 95 % interval over prompts.

        A single prompt has no interval.
        """
        return mean(self._changes(answer)[:, AFTER], seed=seed)

    def control_change(self, answer: int = 0, *, seed: int = 0) -> Estimate:
        """What controls added to ln p of an answer, in nats, mean over prompts; 95 % interval over controls."""
        return mean(self._changes(answer)[:, self._controls()].mean(0), seed=seed)

    def excess(self, answer: int = 0, *, seed: int = 0) -> Estimate:
        """What the edit added to ln p of an answer more than its controls did, in nats, mean over prompts.

        The 95 % interval is over prompts; of a single prompt over controls.
        """
        changes = self._changes(answer)
        beyond = changes[:, AFTER, None] - changes[:, self._controls()]
        return mean(beyond.mean(1) if len(self) > 1 else beyond[0], seed=seed)

    def flips(self, *, seed: int = 0) -> Estimate:
        """The share of prompts whose most probable token the edit changed, with its 95 % interval over prompts."""
        return mean(self.flipped[:, AFTER].astype(float), seed=seed)

    def control_flips(self, *, seed: int = 0) -> Estimate:
        """The share of prompts whose most probable token controls changed, with its 95 % interval over controls."""
        return mean(self.flipped[:, self._controls()].mean(0), seed=seed)

    def hits(self, answer: int = 0, run: int = AFTER, *, seed: int = 0) -> Estimate:
        """The share of prompts for which an answer is the most probable token, with its 95 % interval over prompts.

        Args:
            answer: the number of the answer.
            run: the number of the run: 0 before, 1 after, from 2 on controls.
            seed: what prompts are resampled with.
        """
        self._changes(answer)
        if not 0 <= run < len(self.runs):
            raise LenscopeError(f"run {run}: there are runs 0–{len(self.runs) - 1} ({self.runs[0]}, {self.runs[1]}, …)")
        ids = np.array([p.answer_ids[answer] for p in self.prompts])
        return mean((self.top_ids[:, run, 0] == ids).astype(float), seed=seed)

    def table(self, prompt: int = 0) -> Table:
        """The runs of one prompt for a terminal: their most probable tokens, each answer's probability and rank."""
        if not -len(self) <= prompt < len(self):
            raise LenscopeError(f"prompt {prompt}: there are prompts 0–{len(self) - 1}")
        one = self.prompts[prompt]
        columns = [TableColumn("run"), TableColumn("most probable", folds="all")]
        columns += [TableColumn(f"p({printable_token(a)})", "right") for a in one.answers]
        columns += [TableColumn(f"rank {printable_token(a)}", "right") for a in one.answers]
        lines = []
        for r, run in enumerate(self.runs):
            tops = [printable_token(self.vocabulary[int(i)]) for i in self.top_ids[prompt, r]]
            shares = np.exp(self.top_log_probs[prompt, r])
            line = [run, "  ".join(f"{t} {p:.0%}" for t, p in zip(tops, shares, strict=True))]
            line += [f"{p:.2%}" for p in self.probability[prompt, r]]
            lines.append([*line, *(f"{n}" for n in self.rank[prompt, r])])
        return plain_table(columns, lines)

    def _changes(self, answer: int) -> np.ndarray:
        """ln p of an answer less what it was before, (N, R)."""
        if not 0 <= answer < self.log_prob.shape[2]:
            raise LenscopeError(f"answer {answer}: there are answers 0–{self.log_prob.shape[2] - 1}")
        log_prob = self.log_prob[..., answer].astype(float)
        return log_prob - log_prob[:, :1]

    def _controls(self) -> slice:
        if not self.n_controls:
            raise LenscopeError("controls: there are none; ask for at least 1")
        return slice(FIRST_CONTROL, None)

    def _document(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": self.file_kind,
            "version": FORMAT,
            "model": self.model,
            "lens": self.lens,
            "n_layers": self.n_layers,
            "layers": list(self.layers),
            "control": self.control,
            "runs": list(self.runs),
            "prompts": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(p).items()} for p in self.prompts
            ],
            "log_prob": lists(self.log_prob),
            "rank": self.rank.tolist(),
            "top_ids": self.top_ids.tolist(),
            "top_log_probs": lists(self.top_log_probs),
            "relative_size": lists(self.relative_size),
            "vocabulary": {str(i): text for i, text in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "EditEffects":
        prompts = tuple(
            EditedPrompt(
                text_value(p["text"], "text"),
                text_values(p["tokens"], "tokens"),
                whole_numbers(p["places"], "places", 0, len(p["tokens"]) - 1),
                text_value(p["edit"], "edit"),
                text_values(p["answers"], "answers"),
                whole_numbers(p["answer_ids"], "answer ids"),
            )
            for p in data["prompts"]
        )
        n_layers = whole_number(data["n_layers"], "n_layers", 1)
        layers = layer_numbers(data["layers"], n_layers)
        runs, answers = text_values(data["runs"], "runs"), {(len(p.answers), len(p.answer_ids)) for p in prompts}
        if not prompts or len(answers) != 1:
            raise ValueError("prompts: must be at least one, all with as many answers")
        ((k, ids),) = answers
        tops = whole_array(data["top_ids"], "top ids")
        if k != ids or tops.ndim != 3 or tops.shape[:2] != (len(prompts), len(runs)) or not tops.shape[2]:
            raise ValueError("top ids: are not those of every prompt's runs")
        shape = len(prompts), len(runs), k
        effects = EditEffects(
            model=text_value(data["model"], "model"),
            lens=text_value(data["lens"], "lens"),
            n_layers=n_layers,
            layers=layers,
            control=text_value(data["control"], "control"),
            prompts=prompts,
            log_prob=float_array(data["log_prob"], "log_prob", shape),
            rank=whole_array(data["rank"], "rank", shape),
            top_ids=tops,
            top_log_probs=float_array(data["top_log_probs"], "top_log_probs", tops.shape),
            relative_size=float_array(data["relative_size"], "relative_size", (len(prompts), len(layers))),
            vocabulary=vocabulary_value(data["vocabulary"]),
            provenance=object_value(data["provenance"], "provenance"),
        )
        if runs != effects.runs:
            raise ValueError("runs: must be before, after and controls")
        check_within(effects.log_prob, "log prob", high=0.0)
        check_within(effects.top_log_probs, "top log probs", high=0.0)
        check_within(effects.relative_size, "relative size", low=0.0)
        check_within(effects.rank, "rank", low=0.0)
        if not {*tops.flat} <= {*effects.vocabulary}:
            raise ValueError("vocabulary: has not all top tokens")
        return effects

    def _rows(self) -> pa.Table:
        """A row for each prompt, run and answer."""
        n, r, k = np.indices(self.log_prob.shape).reshape(3, -1)
        prompts: Sequence[EditedPrompt] = [self.prompts[i] for i in n.tolist()]
        answers = [p.answers[i] for p, i in zip(prompts, k.tolist(), strict=True)]
        tops = [self.vocabulary[i] for i in self.top_ids[n, r, 0].tolist()]
        return pa.table(
            {
                "prompt": text_column(p.text for p in prompts),
                "edit": text_column(p.edit for p in prompts),
                "run": text_column(self.runs[i] for i in r.tolist()),
                "answer": text_column(answers),
                "log_prob": number_column(self.log_prob.reshape(-1)),
                "rank": pa.array(self.rank.reshape(-1)),
                "top_token": text_column(tops),
                "flipped": pa.array(self.flipped[n, r]),
            }
        )


def load_edit_effects(path: str | os.PathLike[str]) -> EditEffects:
    """Load what `EditEffects.save` wrote, equal to what was saved; LenscopeError if it holds none, or damaged ones."""
    effects: EditEffects = load_record(path, (EditEffects,))
    return effects
