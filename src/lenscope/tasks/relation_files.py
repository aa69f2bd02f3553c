"""Files of facts, two-hop questions and entities, read into relations, chains and entities.

Knows: columns and keys, ours and the Patchscopes authors', and which line is at fault. Does not know: how tables are
read (files/text_files.py), prompts, models.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files import text_files as textfiles
from lenscope.tasks.relations import Chain, Entity, Fact, Relation, check_template, subject_end


@dataclass
class _Relation:
    """What is read of a relation, line by line."""

    template: str = ""
    target: str = ""
    answers: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def relation(self, name: str) -> Relation:
        template, target = self.template, self.target
        plain = f"The {name.replace('_', ' ')} of "
        before = template.partition("{}")[0] or plain
        template = template or f"{target[:-1] if target else plain}{{}} is"
        target = target or before + "x"
        facts = (Fact(s, tuple(a), tuple(self.texts.get(s, ()))) for s, a in self.answers.items())
        return Relation(name, template, target, tuple(facts))


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
    by_name: dict[str, _Relation] = {}
    for path in several:
        name = Path(path).name.removesuffix(".gz")
        for where, row in textfiles.read_table(path):
            # a table has its columns on every row, an object may lack a key by mistake
            own = {} if name.endswith(".jsonl") else {"relation": Path(name).stem}
            _take(by_name, {**own, **row}, where)
    relations = [one.relation(name) for name, one in by_name.items() if one.answers]
    if not relations:
        raise LenscopeError(
            f"{', '.join(map(str, several))}: no facts; give relation, subject and object on every line"
        )
    return relations


def load_chains(path: str | os.PathLike[str]) -> list[Chain]:
    """Two-hop questions of a JSONL file (.gz too), a line each.

    Keys: subject, bridge, answer, hop1_prompt (with the subject in it), hop1_phrase ("the country where … is"),
    hop2_template ("The capital city of {} is"), and relation1, relation2 if there are any. Raises LenscopeError, with
    the line, for whatever is no chain.
    """
    chains = []
    for where, row in textfiles.read_table(path):
        try:
            subject, bridge, answer = (_text(row, key) for key in ("subject", "bridge", "answer"))
            first, phrase = (_open(_text(row, key), subject) for key in ("hop1_prompt", "hop1_phrase"))
            name = f"{row.get('relation1', 'first')} → {row.get('relation2', 'second')}"
            chains.append(Chain(name, subject, bridge, answer, first, phrase, _text(row, "hop2_template")))
        except (LookupError, TypeError, ValueError, LenscopeError) as error:
            raise LenscopeError(f"{where}: is no two-hop question ({error})") from error
    return chains


def load_entities(path: str | os.PathLike[str]) -> list[Entity]:
    """Entities of a TSV, CSV or JSONL file (.gz too): name, description, and popularity_percentile (0–100) if known.

    Rows whose description is empty are left out. Raises LenscopeError, with the line, for whatever has no name.
    """
    entities = []
    for where, row in textfiles.read_table(path):
        try:
            share = row.get("popularity_percentile")
            if row["description"]:
                popular = None if share in (None, "") else float(str(share))
                entities.append(Entity(_text(row, "name"), _text(row, "description"), popular))
        except (LookupError, TypeError, ValueError) as error:
            raise LenscopeError(f"{where}: is no entity with name and description ({error})") from error
    if not entities:
        raise LenscopeError(f"{path}: no entities with a description; give name and description on every line")
    return entities


def _take(relations: dict[str, _Relation], row: dict[str, Any], where: str) -> None:
    try:
        one = relations.setdefault(_text(row, "relation"), _Relation())
        given = row.get("prompt_templates")
        one.template = one.template or str(row.get("template") or (given[0] if given else ""))
        one.target = one.target or str(row.get("target") or row.get("prompt_target") or "")
        if "subject" not in row:
            if not one.template:
                raise ValueError("no subject and no template")
            return
        subject, objects = _text(row, "subject"), row["object"]
        for answer in objects if isinstance(objects, list) else [objects]:
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"object {answer!r}")
            if answer not in one.answers.setdefault(subject, []):
                one.answers[subject].append(answer)
        text = row.get("text") or row.get("prompt_source")
        if text and text not in one.texts.setdefault(subject, []):
            subject_end(str(text), subject)
            one.texts[subject].append(str(text))
        if one.template:
            check_template(one.template)
    except (LookupError, TypeError, ValueError, LenscopeError) as error:
        raise LenscopeError(f"{where}: is no fact with relation, subject and object ({error})") from error


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} {value!r}")
    return value


def _open(text: str, subject: str) -> str:
    """A text with {} in its subject's place."""
    at = subject_end(text, subject)
    return f"{text[: at - len(subject)]}{{}}{text[at:]}"
