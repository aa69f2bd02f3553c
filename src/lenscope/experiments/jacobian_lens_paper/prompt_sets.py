"""Prompts with words that a model should think of and has not said, and two-hop prompts whose bridge is exchanged.

Knows: the form of the published files, what is wrong with a line, at which token a prompt is read, which tokens a word
is. Does not know: lenses, scores.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files.text_files import read_table
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt

# a set whose prompts are read at their last line end, where the first line of a couplet is over
AT_LINE_END = "poetry"
# a set whose words are numbers and operations, of which any spelling counts
ARITHMETIC = "order-ops"
NUMBERS = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
    "8": "eight", "9": "nine", "10": "ten", "11": "eleven", "12": "twelve", "13": "thirteen", "14": "fourteen",
    "15": "fifteen", "16": "sixteen", "17": "seventeen", "18": "eighteen", "19": "nineteen", "20": "twenty",
    "30": "thirty", "40": "forty", "50": "fifty", "60": "sixty", "70": "seventy", "80": "eighty", "90": "ninety",
}  # fmt: skip
OPERATIONS = {
    "addition": ("+", "add", "plus", "sum"),
    "subtraction": ("-", "minus", "subtract"),
    "multiplication": ("*", "times", "multiply", "product"),
    "division": ("/", "divide", "divided", "quotient"),
}


@dataclass(frozen=True)
class ThoughtPrompt:
    """A prompt, and the words that the model should be thinking of where it is read; `at_line_end` says where."""

    id: str
    set: str
    prompt: str
    words: tuple[str, ...]
    at_line_end: bool = False


@dataclass(frozen=True)
class BridgeSwap:
    """A two-hop prompt with its unsaid bridge and answer, and another bridge with the answer that belongs to it."""

    id: str
    category: str
    prompt: str
    bridge: str
    answer: str
    other_bridge: str
    other_answer: str


def load_prompt_sets(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[ThoughtPrompt], list[BridgeSwap]]:
    """The prompts of JSONL files (.gz too) of the published forms, in any order and any number of files.

    A line of the one form has `set`, `prompt`, `intermediates` (a list of words), and may have `id` and `target`. A
    line of the other has `prompt`, `intermediate`, `answer`, `swap_to`, `swap_answer`, and may have `id` and
    `category`. Raises LenscopeError, with line and field, for anything else, and for an id that is given twice.
    """
    prompts: list[ThoughtPrompt] = []
    swaps: list[BridgeSwap] = []
    seen: dict[tuple[type, str], str] = {}
    for path in paths:
        for where, row in read_table(path):
            item = _item(row, where)
            before = seen.setdefault((type(item), item.id), where)
            if before != where:
                raise LenscopeError(f"{where}: id {item.id!r} is that of {before} too; give each line an id of its own")
            if isinstance(item, ThoughtPrompt):
                prompts.append(item)
            else:
                swaps.append(item)
    return prompts, swaps


def _item(row: dict[str, Any], where: str) -> ThoughtPrompt | BridgeSwap:
    if "intermediates" in row:
        name, words = _text_field(row, "set", where), row["intermediates"]
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise LenscopeError(f"{where}: intermediates is {_value_shown(words)}; give a list of words")
        if row.get("target") is not None:
            _text_field(row, "target", where)
        own, prompt = _text_field(row, "id", where, where), _text_field(row, "prompt", where)
        return ThoughtPrompt(own, name, prompt, tuple(w.strip() for w in words), name == AT_LINE_END)
    if "swap_to" in row:
        keys = ("prompt", "intermediate", "answer", "swap_to", "swap_answer")
        fields = [_text_field(row, key, where) for key in keys]
        return BridgeSwap(_text_field(row, "id", where, where), _text_field(row, "category", where, "all"), *fields)
    raise LenscopeError(
        f"{where}: has neither intermediates (words that are thought) nor swap_to (a bridge to exchange); give one"
    )


def _text_field(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    if key not in row and default is not None:
        return default
    if key not in row:
        raise LenscopeError(f"{where}: has no {key}; give a text")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise LenscopeError(f"{where}: {key} is {_value_shown(value)}; give a text")
    return value


def _value_shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def position_read(prompt: Prompt, at_line_end: bool) -> int:
    """Where a prompt is read: at its last token, or at the last one with a line end in it where there is one."""
    last = len(prompt) - 1
    if not at_line_end:
        return last
    return next((n for n in range(last, -1, -1) if "\n" in prompt.tokens[n]), last)


def spellings(word: str, arithmetic: bool) -> tuple[str, ...]:
    """The words that count as a word: itself, and for `arithmetic` the other names of a number or an operation."""
    if not arithmetic:
        return (word,)
    by_word = {name: number for number, name in NUMBERS.items()}
    others = (NUMBERS.get(word), by_word.get(word.lower()), *OPERATIONS.get(word.lower(), ()))
    return tuple(dict.fromkeys((word, *(other for other in others if other))))


def single_token_forms(lm: LM, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of those forms of each word that are one token: as written and capitalised, each with a space and not.

    As the published evaluation counts them; a word none of whose forms is one token has no ids. Raises LenscopeError
    for a model without a tokenizer.
    """
    lm.encoder.ids("a")  # says what is wrong where there is no tokenizer
    forms = [dict.fromkeys((w, f" {w}", w.capitalize(), f" {w.capitalize()}")) for w in words]
    texts = [form for several in forms for form in several]
    ids = iter(lm.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else ())
    tokens = []
    for several in forms:
        single = (form[0] for form in [next(ids) for _ in several] if len(form) == 1)
        tokens.append(tuple(sorted({i for i in single if i < lm.vocab_size})))
    return tokens
