"""What texts are called in the sums of a Jacobian lens, so that no prompt counts twice whatever a file is called.

Knows: which text is which by its content, how it was read, which parts of texts have rows in common, names of sums that
were saved before. Does not know: how rows are read (text.corpus), what is summed.

A name is three words: digests of the sources' contents, in how many epochs and by which rules they become rows, and
which part of the rows was read ("8c1f…+03ab… 1:5d20… 1/2"). Names were two words before, a digest of all of it and of
paths as they were typed, and the part: such a name is comparable with others of its kind alone.
"""

import hashlib
import json
from typing import Any, NamedTuple

from lenscope.errors import LenscopeError

# what decides the rows of a text beside its content, as `Corpus.provenance` has it
_RULES = ("length", "seed", "part", "row_begins_with", "document_begins_with", "document_ends_with")


def text_name(provenance: dict[str, Any], part: tuple[int, int]) -> str:
    """The name of a part (k, n), k from 0 on, of the text that a Corpus has such a provenance of."""
    digests = _digests_of_sources(provenance)
    tokenizer = provenance.get("tokenizer") or {}
    rules = [digests, *(provenance.get(name) for name in _RULES), tokenizer.get("sha256")]
    reading = f"{provenance['epochs']}:{_short_digest(rules)[:8]}"
    return f"{'+'.join(sorted(digests))} {reading} {_part_as_text(part)}"


def text_name_with_paths(provenance: dict[str, Any], part: tuple[int, int]) -> str:
    """What `text_name` gave before: the name that sums may have which were saved then."""
    return f"{_short_digest({k: v for k, v in provenance.items() if k != 'part'})} {_part_as_text(part)}"


def rows_in_common(one: str, other: str) -> bool:
    """Whether two parts of texts, by their names in the sums, have rows in common."""
    a, b = _words_of(one), _words_of(other)
    if not set(a.sources.split("+")) & set(b.sources.split("+")):
        return False
    return (a.sources, a.reading) != (b.sources, b.reading) or a.part == b.part or a.of != b.of


def adopt_old_names(rows: dict[str, int], provenance: dict[str, Any]) -> None:
    """Let the parts of a text that sums have by an old name have their name of today beside it."""
    for name, count in list(rows.items()):
        words = _words_of(name)
        number, _, of = words.part.partition("/")
        if words.reading or not (number.isdecimal() and of.isdecimal()):
            continue
        part = int(number) - 1, int(of)
        if name == text_name_with_paths(provenance, part):
            now = text_name(provenance, part)
            rows[now] = max(count, rows.get(now, 0))


def require_unread_rows(rows: dict[str, int], name: str, where: object) -> None:
    """Raise LenscopeError, about `where`, if sums of such `rows` have read some of `name`'s under another name."""
    here = _words_of(name)
    for other in rows:
        if other == name or not rows_in_common(other, name):
            continue
        there = _words_of(other)
        if there.sources != here.sources:
            raise LenscopeError(
                f"{where}: has read some of these files beside others or alone, and their prompts would count twice; "
                "give the same files again, or others alone, or another folder"
            )
        if there.epochs != here.epochs:
            raise LenscopeError(
                f"{where}: has read this text in epochs {there.epochs}, and epochs {here.epochs} would count its "
                f"prompts again; give epochs {there.epochs}, or another folder"
            )
        if there.reading != here.reading:
            raise LenscopeError(
                f"{where}: has read this text in other rows (another tokenizer, order of files or share of the "
                "documents), and its prompts would count twice; give what it was read with, or another folder"
            )
        raise LenscopeError(
            f"{where}: has read part {there.part} of this text, and part {here.part} would count prompts of it again; "
            f"give part {there.part}, another of the {there.of}, or another folder"
        )


class _Words(NamedTuple):
    """A name in its words; `reading` is empty in an old one."""

    sources: str
    reading: str
    part: str

    @property
    def of(self) -> str:
        return self.part.partition("/")[2]

    @property
    def epochs(self) -> str:
        return self.reading.partition(":")[0]


def _words_of(name: str) -> _Words:
    text, _, part = name.rpartition(" ")
    sources, _, reading = text.partition(" ")
    return _Words(sources, reading, part)


def _part_as_text(part: tuple[int, int]) -> str:
    return f"{part[0] + 1}/{part[1]}"


def _digests_of_sources(provenance: dict[str, Any]) -> list[str]:
    """A digest of each source's content, without where it lies; of what has none, of what it is."""
    field = provenance.get("field")
    if sources := provenance.get("sources"):
        contents = [source.get("sha256") or source.get("sha256_of_json_lines") for source in sources]
        return [_short_digest([content, field]) for content in contents]
    # a data set of the hub, a model's own samples, and what else only comes one after the other
    known = provenance.get("hub") or provenance.get("model_hash") or provenance.get("data")
    return [_short_digest([known, field])]


def _short_digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
