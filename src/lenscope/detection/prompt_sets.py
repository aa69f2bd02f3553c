"""Files of labelled prompts as data sets: prompts that are tried as they are, and texts that are put into hosts first.

Knows: the field "insert_into", the published files that are recognised without it, how many prompts a set gives.
Does not know: how texts are put into hosts (insertions.py), questions, models.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.insertions import insert_texts
from lenscope.detection.labelled_prompts import LabelledPrompt, different_prompts, read_labelled_prompts
from lenscope.errors import LenscopeError
from lenscope.files.text_files import read_json_lines

# hosts that are multiple-choice questions of other files
QUESTIONS = "questions"
# source of texts → source of the prompts that they are put into, where rows have no field "insert_into"
PUBLISHED = {
    "BIPIA text attacks": "BIPIA email task (benign host prompt)",
    "promptinject 0.1.1.1": QUESTIONS,
}
# why → how many rows
Left = Counter[str]


@final
@dataclass(frozen=True, eq=False, repr=False)
class PromptSets(Brief):
    """What files of labelled prompts hold: `plain` prompts, `hosts` by source, `inserted` texts by source of hosts."""

    plain: list[LabelledPrompt]
    hosts: dict[str, list[LabelledPrompt]]
    inserted: dict[str, list[LabelledPrompt]]


def read_prompt_sets(paths: Sequence[str | os.PathLike[str]]) -> PromptSets:
    """Read labelled prompts from files of JSON lines, and sort out those that are put into others.

    A row with a field "insert_into" is a text that is put into prompts whose source has that name ("questions": into
    multiple-choice questions); these are hosts then. Sources of `PUBLISHED` need no such field. Raises LenscopeError as
    `read_labelled_prompts`, and for a field that is no text.
    """
    rows: list[tuple[LabelledPrompt, str]] = []
    for path in paths:
        prompts = read_labelled_prompts(path)
        for prompt, (where, row) in zip(prompts, read_json_lines(path), strict=True):
            # what names its host, or where it stands in it, was put there before
            alone = prompt.attack and not prompt.host and prompt.span is None
            into = row.get("insert_into", PUBLISHED.get(prompt.data_set, "") if alone else "")
            if not isinstance(into, str) or (into and not prompt.attack):
                raise LenscopeError(
                    f"{where}: insert_into {str(into)[:40]!r}; give the source of prompts, of an attack"
                )
            rows.append((prompt, into))
    wanted = {into for _, into in rows if into}
    sets = PromptSets([], {}, {})
    for prompt, into in rows:
        if into:
            sets.inserted.setdefault(into, []).append(prompt)
        elif prompt.data_set in wanted and not prompt.attack:
            sets.hosts.setdefault(prompt.data_set, []).append(prompt)
        else:
            sets.plain.append(prompt)
    return sets


def prompts_of_sets(sets: PromptSets, *, most: int | None = None, seed: int = 0) -> tuple[list[LabelledPrompt], Left]:
    """The prompts of files, texts that are put into others among them, and what is left out, by reason.

    Args:
        sets: what `read_prompt_sets` gave.
        most: attacks, harmless prompts and hosts of a data set at most, drawn at random; None: all.
        seed: fixes what is drawn.

    Questions are no hosts here: texts that are put into them are left out. Raises LenscopeError for a text that is an
    attack in one row and harmless in another.
    """
    left: Left = Counter()
    prompts = _drawn_plain(sets.plain, most, left, seed)
    for into, texts in sets.inserted.items():
        hosts = sets.hosts.get(into, [])
        if len(hosts) < 2:
            left[f"text that is put into {into}, of which there are {len(hosts)}"] += len(texts)
            continue
        taken = draw_some(hosts, most, left, f"of {into}", seed)
        prompts += insert_texts(taken, draw_some(texts, most, left, f"put into {into}", seed), seed=seed)
    return prompts, left


def _drawn_plain(plain: list[LabelledPrompt], most: int | None, left: Left, seed: int) -> list[LabelledPrompt]:
    once = different_prompts(plain)
    if len(once) < len(plain):
        left["text occurs twice"] += len(plain) - len(once)
    sorts: dict[tuple[str, bool], list[LabelledPrompt]] = {}
    for prompt in once:
        sorts.setdefault((prompt.data_set, prompt.attack), []).append(prompt)
    taken = {p.text for (of, _), own in sorts.items() for p in draw_some(own, most, left, f"of {of}", seed)}
    return [p for p in once if p.text in taken]


def draw_some(
    prompts: Sequence[LabelledPrompt], most: int | None, left: Left, what: str, seed: int
) -> list[LabelledPrompt]:
    """At most so many prompts, drawn at random, in their order; what is left out is counted."""
    if most is None or len(prompts) <= most:
        return list(prompts)
    left[f"prompt {what}, more than the {most} that a run takes, drawn at random"] += len(prompts) - most
    chosen = np.sort(np.random.default_rng([seed, 23]).permutation(len(prompts))[:most])
    return [prompts[i] for i in chosen.tolist()]
