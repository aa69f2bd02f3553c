"""Prompts: text ↔ token ids, positions by index, slice or substring, and the only padding code.

Knows: tokenizers, and how a person names a place in a text.
Does not know: models, except for the two numbers a prompt must respect: vocabulary size and context length.
"""

import itertools
import operator
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.inputs import elements, is_integer, plain, shown, slice_in_words, sliced, sound, token_ids
from lenscope.models.spelling import Spelling

# one position of a prompt as a person names it
Position = int | str
Positions = Position | slice | Sequence[Position]


@dataclass(frozen=True, repr=False)
class Prompt(Brief):
    """A tokenized prompt. `LM.prompt` and `LM.chat` make it.

    Attributes:
        text: the prompt as text.
        ids: its token ids.
        tokens: the text of each token.
        spans: where each token lies in `text`, as (start, end); empty for special tokens that are not in the text.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, at: Position) -> int:
        """Give one position as an index 0…T-1: from the start, from the end (negative), or a substring's last token.

        Raises LenscopeError if it is out of range, or the substring is missing or not unique.
        """
        if isinstance(at, str):
            return self._after(at)
        if not is_integer(at):
            raise LenscopeError(f"position {shown(at)}: give an integer or a substring of the prompt")
        index = operator.index(at)
        if not -len(self) <= index < len(self):
            valid = f"0–{len(self) - 1} or -{len(self)}–-1" if len(self) > 1 else "0 or -1"
            raise LenscopeError(f"position {index}: the prompt's positions are {valid}")
        return index % len(self)

    def positions(self, at: Positions | None = None) -> tuple[int, ...]:
        """Give several positions as indices: of an int, substring, slice, or list of ints and substrings; None: all."""
        if at is None:
            return tuple(range(len(self)))
        if isinstance(at, slice):
            indices = sliced(at, len(self), "positions")
            if not indices:
                raise LenscopeError(f"positions {slice_in_words(at)}: none of the prompt's {len(self)} tokens")
            return indices
        if isinstance(at, str) or is_integer(at) or not isinstance(at, Iterable):
            return (self.position(at),)
        indices = tuple(self.position(one) for one in elements(at, "a position, a slice or a list of positions"))
        if not indices:
            raise LenscopeError("positions: the list is empty; name at least one")
        return indices

    def every(self, part: str) -> tuple[int, ...]:
        """The last token of each occurrence of a substring; LenscopeError if there is none.

        Where the prompt does not have it as it is written, accented letters may be composed or not.
        """
        for form in dict.fromkeys((part, *(unicodedata.normalize(kind, part) for kind in ("NFC", "NFD")))):
            starts = [i for i in range(len(self.text)) if form and self.text.startswith(form, i)]
            if starts:
                return tuple(sorted({self._last_token(start, start + len(form)) for start in starts}))
        raise LenscopeError(f"position {part!r}: not in the prompt {_short_text(self.text)!r}")

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
    """A tokenizer as lenscope uses it: text, ids or chat turns → `Prompt`, ids → text, text that follows other → ids.

    `vocab_size` and `context` are the model's; `tokenizer` may be None, then prompts are given as ids.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, context: int | None, name: str) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context = context
        self.name = name
        self.spelling = None if tokenizer is None else Spelling(tokenizer)

    def prompt(self, source: Any) -> Prompt:
        """Tokenize text as the tokenizer does by default (with its BOS token if it adds one), or wrap ids.

        Ids are a list, an array or tensor of one dimension (or one row), or what the tokenizer returned, of which the
        ids that its mask shows are taken. Bytes are UTF-8 text. Raises LenscopeError for anything else.
        """
        if isinstance(source, Prompt):
            return source
        source = plain(source)
        if isinstance(source, str):
            return self._encode(source, special=True)
        items = elements(source, "a text or a list of token ids")
        if len(items) == 1 and not is_integer(items[0]) and not isinstance(items[0], str):
            items = elements(items[0], "token ids")
        ids = token_ids(items)
        # before the tokenizer, which may count in 32 bits
        self._require_known(ids)
        tokens = tuple(self.tokens(ids))
        ends = list(itertools.accumulate(map(len, tokens), initial=0))
        return self._checked(Prompt("".join(tokens), ids, tokens, tuple(itertools.pairwise(ends))))

    def prompts(self, given: Any) -> tuple[bool, list[Prompt]]:
        """Whether several prompts were given, and the prompts. A list of integers is one prompt's ids."""
        if isinstance(given, Prompt):
            return False, [given]
        given = plain(given)
        if isinstance(given, str):
            return False, [self.prompt(given)]
        items = elements(given, "a text, a list of token ids, or a list of these")
        if not items:
            raise LenscopeError("the prompt is empty: give at least one token")
        if any(map(is_integer, items)):
            return False, [self.prompt(items)]
        return True, [self.prompt(item) for item in items]

    def chat(self, turns: str | Sequence[Mapping[str, str]], begin: str = "") -> Prompt:
        """A prompt in the model's chat template, up to where the assistant speaks; a plain string is one user turn.

        `begin` is what the assistant's turn begins with.

        Raises LenscopeError without a template, and for turns that the template does not take.
        """
        return self.templated(self.chat_text(turns) + begin)

    def templated(self, text: str) -> Prompt:
        """A prompt of a text that has its special tokens written out, as what a chat template gives: none is added."""
        return self._encode(text, special=False)

    def chat_text(
        self, turns: str | Sequence[Mapping[str, str]], *, opened: bool = True, values: Mapping[str, Any] | None = None
    ) -> str:
        """What the model's chat template makes of turns, as text; `opened`: up to where the assistant speaks.

        `values` are what the template may ask for beside the turns, such as enable_thinking. Raises LenscopeError as
        `chat` does.
        """
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise LenscopeError(f"{self.name} has no chat template: give the prompt as plain text")
        turns = plain(turns)
        if isinstance(turns, str):
            if not turns:
                raise LenscopeError("the prompt is empty: give at least one token")
            turns = [{"role": "user", "content": turns}]
        listed = [turns] if isinstance(turns, Mapping) else elements(turns, "a text or a list of turns")
        if not listed or not all(isinstance(turn, Mapping) and "role" in turn and "content" in turn for turn in listed):
            raise LenscopeError(f"{shown(turns)}: give a text, or a list of turns with role and content")
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in listed], tokenize=False, add_generation_prompt=opened, **(values or {})
            )
        except Exception as error:  # a template is a program of its own, and may refuse in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise LenscopeError(f"{self.name}: its chat template does not take these turns ({reason})") from error
        if not isinstance(text, str):
            raise LenscopeError(f"{self.name}: its chat template gives {shown(text)}, no text")
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id as text as it follows other text, leading space kept; bytes that are no whole character as <F0>."""
        return [f"<{i}>" for i in ids] if self.spelling is None else self.spelling.tokens(ids)

    def token_id(self, token: Any) -> int:
        """The id of a token given as the text that `tokens` shows for it (leading space included), or as id.

        A text is taken as it follows other text. Raises LenscopeError where it is not exactly one token.
        """
        token = plain(token)
        if is_integer(token):
            token = operator.index(token)
            if not 0 <= token < self.vocab_size:
                raise LenscopeError(f"token {token}: {self.name} has token ids 0–{self.vocab_size - 1}")
            return token
        if not isinstance(token, str):
            raise LenscopeError(f"token {shown(token)}: give a token's text or its id")
        if self.spelling is None:
            raise LenscopeError(f"token {token!r}: {self.name} was loaded without a tokenizer; give the id")
        ids = self.spelling.behind(token)
        if len(ids) == 1 and self.tokens(ids) == [token]:
            return ids[0]
        if token in self._by_text:
            return self._by_text[token]
        if len(ids) == 1:
            return ids[0]
        if not ids:
            raise LenscopeError(
                f"token {token!r}: is no token of {self.name}; give the text of one, with the space before it where it "
                "has one"
            )
        pieces = ", ".join(repr(t) for t in self.tokens(ids))
        spaced = f", or {' ' + token!r}, which is one" if f" {token}" in self._by_text else ""
        raise LenscopeError(f"token {token!r}: it is {len(ids)} tokens ({pieces}); give one of them{spaced}")

    def answer_ids(self, prompt: Prompt, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each answer as it follows a prompt, spaces included; see `Spelling.after`.

        Raises LenscopeError for an answer that is no text, or that the tokenizer drops.
        """
        spelling = self._spelled("answers")
        bad = next((answer for answer in answers if not isinstance(answer, str)), None)
        if bad is not None:
            raise LenscopeError(f"answer {shown(bad)}: give a text")
        bare = self.tokenizer.decode(prompt.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ids_of_answers = spelling.after(prompt.ids, [prompt.text, bare], answers)
        empty = next((answer for answer, ids in zip(answers, ids_of_answers, strict=True) if not ids), None)
        if empty is not None:
            raise LenscopeError(f"answer {empty!r}: is no token of {self.name}; give a text of at least one")
        return ids_of_answers

    def ids(self, text: str) -> list[int]:
        """The ids of a text alone, as a prompt would begin with it, without special tokens."""
        return self._spelled("token ids").ids(text)

    def ids_behind(self, text: str) -> tuple[int, ...]:
        """The ids of a text as it follows other text."""
        return self._spelled("token ids").behind(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as one text, special tokens included."""
        return "".join(self.tokens(ids)) if self.spelling is None else self.spelling.decode(ids)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """What `tokens` shows of each id, of several with the same text the lowest."""
        every = range(self.vocab_size)
        return dict(zip(reversed(self.tokens(every)), reversed(every), strict=True))

    def _spelled(self, instead: str) -> Spelling:
        if self.spelling is None:
            raise LenscopeError(f"{self.name} was loaded without a tokenizer: give {instead} as token ids")
        return self.spelling

    def _encode(self, text: str, special: bool) -> Prompt:
        if not text:
            raise LenscopeError("the prompt is empty: give at least one token")
        if self.spelling is None:
            raise LenscopeError(f"{self.name} was loaded without a tokenizer: give prompts as lists of token ids")
        text = sound(text)
        # a prompt too long is told off by lenscope, in one line, so the tokenizer need not warn as well
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
            ids, spans = encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]]
        else:
            ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            spans = self.spelling.spans(text, ids)
        return self._checked(Prompt(text, tuple(ids), tuple(self.tokens(ids)), tuple(spans)))

    def require_room(self, length: int, new: int) -> None:
        """Raise LenscopeError where a prompt of `length` tokens and `new` ones are more than the model reads."""
        if self.context is not None and length + new > self.context:
            room = self.context - length
            remedy = f"ask for at most {room} new ones" if room > 0 else "give a shorter prompt"
            raise LenscopeError(
                f"{length} tokens of prompt and {new} new ones: {self.name} reads at most {self.context}; {remedy}"
            )

    def _require_known(self, ids: Sequence[int]) -> None:
        bad = [i for i in ids if not 0 <= i < self.vocab_size]
        if bad:
            raise LenscopeError(
                f"token {bad[0]}: {self.name} has token ids 0–{self.vocab_size - 1}; is this another model's tokenizer?"
            )

    def _checked(self, prompt: Prompt) -> Prompt:
        if not prompt.ids:
            raise LenscopeError("the prompt is empty: give at least one token")
        if self.context is not None and len(prompt) > self.context:
            raise LenscopeError(
                f"the prompt has {len(prompt)} tokens: {self.name} reads at most {self.context}; shorten it"
            )
        self._require_known(prompt.ids)
        return prompt


def _short_text(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
