"""YAML and JSON documents that people write: plain values alone, each key once, and nothing that grows when read.

Knows: which words are numbers (1:30:5 is a text, as in YAML 1.2), that names for parts (&a, *a) make small files large.
Does not know: what a document means.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped, read_text

# bytes that a document may have
DOCUMENT_LIMIT = 16 << 20


def read_document(path: str | os.PathLike[str]) -> Any:
    """The value of a .yaml, .yml or .json file of at most 16 MB; LenscopeError, in one line, for anything else."""
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise LenscopeError(f"{escaped(path)}: give a .yaml or .json file")
    text = read_text(path, DOCUMENT_LIMIT)
    if path.suffix.lower() == ".json":
        with checked_reading(path, "is no JSON"):
            return json.loads(text, object_pairs_hook=_keys_once)
    with checked_reading(path, "is no YAML"):
        return _parser()(text)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return value


@cache
def _parser() -> Callable[[str], Any]:
    """The loader is a class of PyYAML's, which is imported when the first document is read."""
    import yaml

    class Plain(yaml.SafeLoader):
        """PyYAML's safe loader with the words of YAML 1.2's core schema, without aliases, each key once."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise ValueError(f"line {self.peek_event().start_mark.line + 1}: names for parts (*name) are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value[:40]!r} stands twice")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", "-+0123456789"),
        ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ):
        Plain.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))

    def parse(text: str) -> Any:
        try:
            return yaml.load(text, Loader=Plain)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"line {mark.line + 1}: " if mark is not None else ""
            raise ValueError(f"{where}{error.problem or error.context}") from error

    return parse
