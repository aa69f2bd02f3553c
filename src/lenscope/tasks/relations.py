"""Relations between things: facts, two-hop chains and entities, from files or built in; prompts; what a model knows.

Knows: file formats, few-shot prompts, where a subject ends in a text, which facts a model goes on to say.
Does not know: the built-in words (facts.py), what hidden states of subjects are read for.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from lenscope.engine.continuations import Progress, continued
from lenscope.errors import LenscopeError
from lenscope.files import text_files as textfiles
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.tasks import builtin_facts as facts
from lenscope.tasks.text_match import mentions, starts

# tokens that it may write beyond an answer's own, such as an article
MORE = 2


@final
@dataclass(frozen=True)
class Fact:
    """A subject and the names of its object; `texts` mention the subject, and are where its states may be read."""

    subject: str
    answers: tuple[str, ...]
    texts: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Relation:
    """Facts of one kind: `template` asks for the object ("The capital city of {} is"), `target` says it of x.

    `target` is the verbalisation that a Patchscope reads, its placeholder x at the end ("The capital city of x").
    Raises LenscopeError for a template without {}, a target that does not end in x, or no facts.
    """

    name: str
    template: str
    target: str
    facts: tuple[Fact, ...]

    def __post_init__(self) -> None:
        _check_template(self.template)
        if not re.search(r"(?<!\w)x$", self.target):
            raise LenscopeError(f"target {self.target!r}: end it with the placeholder x, as in 'The capital city of x'")
        if not self.facts:
            raise LenscopeError(f"relation {self.name!r}: has no facts; give at least one")


@final
@dataclass(frozen=True)
class Chain:
    """A question of two hops: subject → bridge → answer.

    `first` asks for the bridge ("{} is a city in the country of"), `phrase` names it by the subject ("the country that
    has the city of {}"), `second` asks for the answer ("The capital city of {} is"). `name` says which two relations.
    """

    name: str
    subject: str
    bridge: str
    answer: str
    first: str
    phrase: str
    second: str

    def __post_init__(self) -> None:
        for template in (self.first, self.phrase, self.second):
            _check_template(template)

    @property
    def described(self) -> str:
        """The bridge by its subject: "the country that has the city of Lyon"."""
        return self.phrase.replace("{}", self.subject)

    @property
    def questions(self) -> tuple[str, str, str]:
        """The first hop, the second hop, and both at once, as prompts that the model goes on from."""
        first = self.first.replace("{}", self.subject)
        return first, self.second.replace("{}", self.bridge), self.second.replace("{}", self.described)


@final
@dataclass(frozen=True)
class Entity:
    """A name and what it stands for in one line; `popular` is 0–100, how many are less well known, where known."""

    name: str
    description: str
    popular: float | None = None


# -- built in


def builtin_relations() -> list[Relation]:
    """Fourteen relations of 20–70 plain facts, written for lenscope, each with sentences that mention its subjects."""
    made = []
    for name, template, target, sentences, table in facts.RELATIONS:
        found = [
            Fact(subject, answers, tuple(s.replace("{}", subject) for s in sentences))
            for subject, answers in facts.pairs(table)
        ]
        made.append(Relation(name, template, target, tuple(found)))
    return made


def builtin_chains() -> list[Chain]:
    """Two-hop questions from the built-in relations, without those whose answer is in the subject or the bridge."""
    known = {r.name: r for r in builtin_relations()}
    made = []
    for one, phrase in facts.FIRST_HOPS.items():
        for two in facts.SECOND_HOPS[one]:
            first, second = known[one], known[two]
            answers = {fact.subject: fact.answers for fact in second.facts}
            for fact in first.facts:
                bridge = fact.answers[0]
                if bridge in answers and not mentions(f"{fact.subject} {bridge}", answers[bridge]):
                    parts = fact.subject, bridge, answers[bridge][0], first.template, phrase, second.template
                    made.append(Chain(f"{one} → {two}", *parts))
    return made


def builtin_entities() -> list[Entity]:
    """Sixty entities with one-line descriptions, half of them well known (`popular` 100), half known to few (0)."""
    groups = (facts.WELL_KNOWN, 100.0), (facts.LITTLE_KNOWN, 0.0)
    return [Entity(*line, popular) for table, popular in groups for line in facts.lines(table)]


# -- files


def load_relations(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Relation]:
    """Relations of a TSV or CSV file with a header, or of a JSONL file; .gz too; of several files, read as one.

    Columns or keys: relation, subject, object (JSONL: also a list), and, where a file has them, template, target and
    text (which mentions the subject). The objects of a subject are its answers, its texts are kept. Also taken as they
    are: the Patchscopes authors' files, one a relation (a table without that column is one, named as the file), with
    prompt_source and prompt_target as text and target; and rows without a subject that give a relation's template or
    prompt_templates. A missing target is the template up to its {}, a missing template the target with "is" behind it;
    where there is nothing to go by the relation's name is taken. Raises LenscopeError, with the line, for whatever is
    no fact.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[str, _Relation] = {}
    for path in several:
        name = Path(path).name.removesuffix(".gz")
        for where, row in textfiles.table(path):
            # a table has its columns on every row, an object may lack a key by mistake
            own = {} if name.endswith(".jsonl") else {"relation": Path(name).stem}
            _take(found, {**own, **row}, where)
    made = [one.made(name) for name, one in found.items() if one.answers]
    if not made:
        raise LenscopeError(
            f"{', '.join(map(str, several))}: no facts; give relation, subject and object on every line"
        )
    return made


def load_chains(path: str | os.PathLike[str]) -> list[Chain]:
    """Two-hop questions of a JSONL file (.gz too), a line each.

    Keys: subject, bridge, answer, hop1_prompt (with the subject in it), hop1_phrase ("the country where … is"),
    hop2_template ("The capital city of {} is"), and relation1, relation2 if there are any. Raises LenscopeError, with
    the line, for whatever is no chain.
    """
    made = []
    for where, row in textfiles.table(path):
        try:
            subject, bridge, answer = (_text(row, key) for key in ("subject", "bridge", "answer"))
            first, phrase = (_open(_text(row, key), subject) for key in ("hop1_prompt", "hop1_phrase"))
            name = f"{row.get('relation1', 'first')} → {row.get('relation2', 'second')}"
            made.append(Chain(name, subject, bridge, answer, first, phrase, _text(row, "hop2_template")))
        except (LookupError, TypeError, ValueError, LenscopeError) as error:
            raise LenscopeError(f"{where}: is no two-hop question ({error})") from error
    return made


def load_entities(path: str | os.PathLike[str]) -> list[Entity]:
    """Entities of a TSV, CSV or JSONL file (.gz too): name, description, and popularity_percentile (0–100) if known.

    Rows whose description is empty are left out. Raises LenscopeError, with the line, for whatever has no name.
    """
    made = []
    for where, row in textfiles.table(path):
        try:
            share = row.get("popularity_percentile")
            if row["description"]:
                popular = None if share in (None, "") else float(str(share))
                made.append(Entity(_text(row, "name"), _text(row, "description"), popular))
        except (LookupError, TypeError, ValueError) as error:
            raise LenscopeError(f"{where}: is no entity with name and description ({error})") from error
    if not made:
        raise LenscopeError(f"{path}: no entities with a description; give name and description on every line")
    return made


@dataclass
class _Relation:
    """What is read of a relation, line by line."""

    template: str = ""
    target: str = ""
    answers: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def made(self, name: str) -> Relation:
        template, target = self.template, self.target
        plain = f"The {name.replace('_', ' ')} of "
        before = template.partition("{}")[0] or plain
        template = template or f"{target[:-1] if target else plain}{{}} is"
        target = target or before + "x"
        found = (Fact(s, tuple(a), tuple(self.texts.get(s, ()))) for s, a in self.answers.items())
        return Relation(name, template, target, tuple(found))


def _take(found: dict[str, _Relation], row: dict[str, Any], where: str) -> None:
    try:
        one = found.setdefault(_text(row, "relation"), _Relation())
        given = row.get("prompt_templates")
        one.template = one.template or str(row.get("template") or (given[0] if given else ""))
        one.target = one.target or str(row.get("target") or row.get("prompt_target") or "")
        if "subject" not in row:
            if not one.template:
                raise ValueError("no subject and no template")
            return
        subject, said = _text(row, "subject"), row["object"]
        for answer in said if isinstance(said, list) else [said]:
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"object {answer!r}")
            if answer not in one.answers.setdefault(subject, []):
                one.answers[subject].append(answer)
        text = row.get("text") or row.get("prompt_source")
        if text and text not in one.texts.setdefault(subject, []):
            end_of(str(text), subject)
            one.texts[subject].append(str(text))
        if one.template:
            _check_template(one.template)
    except (LookupError, TypeError, ValueError, LenscopeError) as error:
        raise LenscopeError(f"{where}: is no fact with relation, subject and object ({error})") from error


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} {value!r}")
    return value


def _open(text: str, subject: str) -> str:
    """A text with {} in its subject's place."""
    at = end_of(text, subject)
    return f"{text[: at - len(subject)]}{{}}{text[at:]}"


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise LenscopeError(f"template {template!r}: write {{}} once, where the subject stands")


# -- prompts


def end_of(text: str, subject: str) -> int:
    """Where the last mention of a subject ends in a text, as a whole word where there is one.

    Raises LenscopeError if the text does not have the subject.
    """
    whole = [m.end() for m in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)]
    at = text.rfind(subject)
    if at < 0 or not subject:
        raise LenscopeError(f"subject {subject!r}: not in the text {text[:60]!r}")
    return whole[-1] if whole else at + len(subject)


def up_to(lm: LM, text: str, subject: str) -> Prompt:
    """A text as a prompt that ends with the last token of the subject's last mention: where its state is read."""
    end = end_of(text, subject)
    prompt = lm.prompt(text)
    inside = [n for n, (a, b) in enumerate(prompt.spans) if a < end and b > end - len(subject)]
    if not inside:
        raise LenscopeError(f"subject {subject!r}: the tokenizer drops it from {text[:60]!r}")
    return lm.prompt(prompt.ids[: inside[-1] + 1])


def few_shot(relation: Relation, fact: Fact, shots: int = 5, seed: int = 0) -> str:
    """Lines of `shots` other facts of a relation with their first answers, then its template with this subject.

    All facts have the same demonstrations in the same order, so that they are read once, except that a fact's own
    place in them is taken by the next one. Raises LenscopeError where there are too few others.
    """
    order = np.random.default_rng(seed).permutation(len(relation.facts)).tolist()
    others = [relation.facts[n] for n in order if relation.facts[n].subject != fact.subject][:shots]
    if shots < 0 or len(others) < shots:
        raise LenscopeError(f"shots {shots}: {relation.name} has {len(others)} other facts; give 0–{len(others)}")
    lines = [f"{relation.template.replace('{}', other.subject)} {other.answers[0]}.\n" for other in others]
    return "".join(lines) + relation.template.replace("{}", fact.subject)


# -- what a model knows


def answered(
    lm: LM, prompts: Sequence[str], answers: Sequence[str | Sequence[str]], progress: Progress | None = None
) -> np.ndarray:
    """Whether the greedy continuation of each prompt begins with one of its answers: (N,) of bool."""
    if len(prompts) != len(answers):
        raise LenscopeError(f"{len(prompts)} prompts, {len(answers)} answers: give answers for each prompt")
    names = [[a] if isinstance(a, str) else [*a] for a in answers]
    if not names:
        return np.zeros(0, dtype=bool)
    new = MORE + max(len(lm.encoder.ids_behind(" " + name)) for some in names for name in some)
    said = continued(lm, prompts, new, progress)
    return np.array([starts(one.text, some) for one, some in zip(said, names, strict=True)])


def known(lm: LM, relation: Relation, shots: int = 5, seed: int = 0, progress: Progress | None = None) -> np.ndarray:
    """Which facts a model goes on to say after `shots` others: (N,) of bool, greedy, one of the answers first."""
    prompts = [few_shot(relation, fact, shots, seed) for fact in relation.facts]
    return answered(lm, prompts, [fact.answers for fact in relation.facts], progress)


def known_chains(
    lm: LM, chains: Sequence[Chain], shots: int = 3, seed: int = 0, progress: Progress | None = None
) -> np.ndarray:
    """Which hops a model answers, (N, 3) of bool: the first, the second, and both in one question.

    Each after `shots` questions of chains of the same name, none with the same bridge; greedy.
    """
    prompts: list[str] = []
    answers: list[str] = []
    order = np.random.default_rng(seed).permutation(len(chains)).tolist()
    for hop in range(3):
        for chain in chains:
            peers = (chains[n] for n in order if chains[n].name == chain.name and chains[n].bridge != chain.bridge)
            shown = {peer.questions[hop]: peer.bridge if hop == 0 else peer.answer for peer in peers}
            if len(shown) < shots:
                raise LenscopeError(f"shots {shots}: {chain.name} has {len(shown)} others to show; give fewer shots")
            lines = [f"{question} {answer}.\n" for question, answer in list(shown.items())[:shots]]
            prompts.append("".join(lines) + chain.questions[hop])
            answers.append(chain.bridge if hop == 0 else chain.answer)
    return answered(lm, prompts, answers, progress).reshape(3, len(chains)).T
