"""Prompts: text ↔ token ids, positions by index, slice or substring, and the only padding code.

Knows: tokenizers, and how a person names a place in a text.
Does not know: models, except for the two numbers a prompt must respect: vocabulary size and context length.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lenscope.errors import LenscopeError

# the letters by which byte-level tokenizers name bytes
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}

# one position of a prompt as a person names it
Position = int | str
Positions = Position | slice | Sequence[Position]


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt: what the model reads, and where each token lies in the text.

    `tokens` are the ids as text, `spans` their character ranges (empty for special tokens that are not in the text).
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, at: Position) -> int:
        """The index 0…T-1 of one position: counted from the start, from the end (negative), or a substring's last.

        Raises LenscopeError if it is out of range, or the substring is missing or not unique.
        """
        if isinstance(at, bool) or not isinstance(at, int | str):
            raise LenscopeError(f"position {at!r}: give an integer or a substring of the prompt")
        if isinstance(at, int):
            if not -len(self) <= at < len(self):
                valid = f"0–{len(self) - 1} or -{len(self)}–-1" if len(self) > 1 else "0 or -1"
                raise LenscopeError(f"position {at}: the prompt's positions are {valid}")
            return at % len(self)
        return self._after(at)

    def positions(self, at: Positions | None = None) -> tuple[int, ...]:
        """Several positions as indices: an int, a substring, a slice, or a list of ints and substrings; None: all."""
        if at is None:
            return tuple(range(len(self)))
        if isinstance(at, slice):
            found = tuple(range(len(self)))[at]
            if not found:
                raise LenscopeError(f"positions {at.start}:{at.stop}: none of the prompt's {len(self)} tokens")
            return found
        if isinstance(at, int | str):
            return (self.position(at),)
        found = tuple(self.position(one) for one in at)
        if not found:
            raise LenscopeError("positions: the list is empty; name at least one")
        return found

    def every(self, part: str) -> tuple[int, ...]:
        """The last token of each occurrence of a substring; LenscopeError if there is none."""
        starts = [i for i in range(len(self.text)) if part and self.text.startswith(part, i)]
        if not starts:
            raise LenscopeError(f"position {part!r}: not in the prompt {_short(self.text)!r}")
        return tuple(sorted({self._last_token(start, start + len(part)) for start in starts}))

    def _after(self, part: str) -> int:
        """The last token of a substring that occurs exactly once."""
        ends = self.every(part)
        if len(ends) > 1:
            places = " or ".join(str(e) for e in ends)
            raise LenscopeError(
                f"position {part!r}: occurs {len(ends)} times in the prompt; say which by its position: {places}"
            )
        return ends[0]

    def _last_token(self, start: int, stop: int) -> int:
        """The last token with a character in text[start:stop]."""
        inside = [i for i, (a, b) in enumerate(self.spans) if a < stop and b > start]
        if not inside:
            raise LenscopeError(f"position {self.text[start:stop]!r}: the tokenizer drops it; give an index instead")
        return inside[-1]


class Encoder:
    """A tokenizer as lenscope uses it: text, ids or chat turns → `Prompt`, ids → text.

    `vocab_size` and `context` are the model's; `tokenizer` may be None, then prompts are given as ids.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, context: int | None, name: str) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context = context
        self.name = name
        self._anchor = self._find_anchor()

    def prompt(self, source: "str | Sequence[int] | Prompt") -> Prompt:
        """Tokenize text as the tokenizer does by default (with its BOS token if it adds one), or wrap ids."""
        if isinstance(source, Prompt):
            return source
        if isinstance(source, str):
            return self._encode(source, special=True)
        ids = tuple(int(i) for i in source)
        tokens = tuple(self.tokens(ids))
        spans, at = [], 0
        for token in tokens:
            spans.append((at, at + len(token)))
            at += len(token)
        return self._checked(Prompt("".join(tokens), ids, tokens, tuple(spans)))

    def chat(self, turns: str | Sequence[dict[str, str]]) -> Prompt:
        """A prompt in the model's chat template, up to where the assistant speaks; a plain string is one user turn."""
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise LenscopeError(f"{self.name} has no chat template: give the prompt as plain text")
        if isinstance(turns, str):
            if not turns:
                raise LenscopeError("the prompt is empty: give at least one token")
            turns = [{"role": "user", "content": turns}]
        text = self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return self._encode(text, special=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id as text, leading space kept; bytes that are no whole character as <F0>."""
        if self.tokenizer is None:
            return [f"<{i}>" for i in ids]
        # Decoded behind an anchor: many tokenizers drop the space of a first token.
        known = len(self.tokenizer)
        pairs = [[*self._anchor, i] if i < known else self._anchor for i in ids]
        texts = self.tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False) if pairs else []
        skip = len(self.tokenizer.decode(self._anchor, clean_up_tokenization_spaces=False))
        found = [text[skip:] for text in texts]
        for n, (i, text) in enumerate(zip(ids, found, strict=True)):
            if "�" in text or not text:
                found[n] = _bytes(str(self.tokenizer.convert_ids_to_tokens(int(i)))) if i < known else f"<{i}>"
        return found

    def token_id(self, token: str | int) -> int:
        """The id of a token given as text (exactly one token, leading space included) or as id."""
        if isinstance(token, int):
            if not 0 <= token < self.vocab_size:
                raise LenscopeError(f"token {token}: {self.name} has token ids 0–{self.vocab_size - 1}")
            return token
        if self.tokenizer is None:
            raise LenscopeError(f"token {token!r}: {self.name} was loaded without a tokenizer; give the id")
        ids = self.ids(token)
        if len(ids) != 1:
            pieces = ", ".join(repr(t) for t in self.tokens(ids)) or "none"
            raise LenscopeError(f"token {token!r}: is {len(ids)} tokens ({pieces}); give one of them, or an id")
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as one text, special tokens included."""
        if self.tokenizer is None:
            return "".join(self.tokens(ids))
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _encode(self, text: str, special: bool) -> Prompt:
        if not text:
            raise LenscopeError("the prompt is empty: give at least one token")
        if self.tokenizer is None:
            raise LenscopeError(f"{self.name} was loaded without a tokenizer: give prompts as lists of token ids")
        # a prompt too long is told off by lenscope, in one line, so the tokenizer need not warn as well
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
            ids, spans = encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]]
        else:
            ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            spans = self._spans_by_decoding(ids)
        return self._checked(Prompt(text, tuple(ids), tuple(self.tokens(ids)), tuple(spans)))

    def _spans_by_decoding(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For tokenizers that keep no offsets: each token ends where the decoded prefix ends."""
        ends = [0]
        for n in range(1, len(ids) + 1):
            ends.append(len(self.tokenizer.decode(ids[:n], skip_special_tokens=True)))
        return list(itertools.pairwise(ends))

    def _checked(self, prompt: Prompt) -> Prompt:
        if not prompt.ids:
            raise LenscopeError("the prompt is empty: give at least one token")
        if self.context is not None and len(prompt) > self.context:
            raise LenscopeError(
                f"the prompt has {len(prompt)} tokens: {self.name} reads at most {self.context}; shorten it"
            )
        bad = [i for i in prompt.ids if not 0 <= i < self.vocab_size]
        if bad:
            raise LenscopeError(
                f"token {bad[0]}: {self.name} has token ids 0–{self.vocab_size - 1}; is this another model's tokenizer?"
            )
        return prompt

    def ids(self, text: str) -> list[int]:
        """The ids of a text alone, without special tokens."""
        if self.tokenizer is None:
            raise LenscopeError(f"{self.name} was loaded without a tokenizer: give token ids")
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _find_anchor(self) -> list[int]:
        return self.ids("a") if self.tokenizer is not None else []


@dataclass(frozen=True)
class Batch:
    """Prompts padded to one length: ids (B, T), mask (B, T), and per row how many pads stand before and its length."""

    ids: Tensor
    mask: Tensor
    before: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether any row is padded at all."""
        return len(set(self.lengths)) > 1

    @property
    def position_ids(self) -> Tensor:
        """(B, T) positions counted from each prompt's own start; 0 on pads."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)


def pad(prompts: Sequence[Prompt], side: str, device: torch.device) -> Batch:
    """Stack prompts, padded on the "right" (reading: no position moves) or the "left" (generating)."""
    length = max(len(p) for p in prompts)
    before = tuple(length - len(p) if side == "left" else 0 for p in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, (prompt, start) in enumerate(zip(prompts, before, strict=True)):
        ids[row] = prompt.ids[-1]  # pads are masked; a real id keeps models with a small vocabulary in range
        ids[row, start : start + len(prompt)] = torch.tensor(prompt.ids)
        mask[row, start : start + len(prompt)] = 1
    return Batch(ids.to(device), mask.to(device), before, tuple(len(p) for p in prompts))


def _bytes(token: str) -> str:
    """A byte-level token's name, one letter per byte, with the bytes that are no letters as <F0>; others unchanged."""
    if not all(c in BYTES for c in token):
        return token
    return "".join(chr(BYTES[c]) if 32 <= BYTES[c] < 127 else f"<{BYTES[c]:02X}>" for c in token)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
