"""Relations between things: facts, two-hop chains and entities, the built-in ones, and where a subject ends in a text.

Knows: templates and what is put into them. Does not know: the built-in words (builtin_facts.py), files of facts
(relation_files.py), what a model knows (model_knowledge.py), what hidden states of subjects are read for.
"""

import re
from dataclasses import dataclass
from typing import final

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.tasks import builtin_facts as facts
from lenscope.tasks.text_match import mentions


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
        check_template(self.template)
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
            check_template(template)

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
    relations = []
    for name, template, target, sentences, table in facts.RELATIONS:
        facts_of = [
            Fact(subject, answers, tuple(s.replace("{}", subject) for s in sentences))
            for subject, answers in facts.subjects_and_objects(table)
        ]
        relations.append(Relation(name, template, target, tuple(facts_of)))
    return relations


def builtin_chains() -> list[Chain]:
    """Two-hop questions from the built-in relations, without those whose answer is in the subject or the bridge."""
    known = {r.name: r for r in builtin_relations()}
    chains = []
    for one, phrase in facts.FIRST_HOPS.items():
        for two in facts.SECOND_HOPS[one]:
            first, second = known[one], known[two]
            answers = {fact.subject: fact.answers for fact in second.facts}
            for fact in first.facts:
                bridge = fact.answers[0]
                if bridge in answers and not mentions(f"{fact.subject} {bridge}", answers[bridge]):
                    parts = fact.subject, bridge, answers[bridge][0], first.template, phrase, second.template
                    chains.append(Chain(f"{one} → {two}", *parts))
    return chains


def builtin_entities() -> list[Entity]:
    """Sixty entities with one-line descriptions, half of them well known (`popular` 100), half known to few (0)."""
    groups = (facts.WELL_KNOWN, 100.0), (facts.LITTLE_KNOWN, 0.0)
    return [Entity(*line, popular) for table, popular in groups for line in facts.entity_lines(table)]


# -- templates


def check_template(template: str) -> None:
    """Raise LenscopeError for a template that has not one {} where the subject stands."""
    if template.count("{}") != 1:
        raise LenscopeError(f"template {template!r}: write {{}} once, where the subject stands")


def demonstration(question: str, answer: str) -> str:
    """A line that shows a question, such as a filled template, with its answer: what stands before what is asked."""
    return f"{question} {answer}.\n"


# -- prompts


def subject_end(text: str, subject: str) -> int:
    """Where the last mention of a subject ends in a text, as a whole word where there is one.

    Raises LenscopeError if the text does not have the subject.
    """
    whole = [m.end() for m in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)]
    at = text.rfind(subject)
    if at < 0 or not subject:
        raise LenscopeError(f"subject {subject!r}: not in the text {text[:60]!r}")
    return whole[-1] if whole else at + len(subject)


def prompt_up_to(lm: LM, text: str, subject: str) -> Prompt:
    """A text as a prompt that ends with the last token of the subject's last mention: where its state is read."""
    end = subject_end(text, subject)
    prompt = lm.prompt(text)
    inside = [n for n, (a, b) in enumerate(prompt.spans) if a < end and b > end - len(subject)]
    if not inside:
        raise LenscopeError(f"subject {subject!r}: the tokenizer drops it from {text[:60]!r}")
    return lm.prompt(prompt.ids[: inside[-1] + 1])
