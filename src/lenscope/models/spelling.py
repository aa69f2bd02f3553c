"""How a tokenizer's tokens read within a text, and which tokens a text is made of where it follows other text.

Knows: tokenizers that put a space before a text, drop one, join words, name bytes, have gaps in their vocabulary.
Does not know: prompts, models.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from lenscope.models.inputs import sound

# the letters by which byte-level tokenizers name bytes
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
# texts that most tokenizers keep apart from what comes behind one or the other of them
ANCHORS = ("a", "\n", ".", "0", "A", "%")
# tokens that are looked through, and anchors that are enough, where the vocabulary has none of these
SEARCHED, ENOUGH = 4096, 4
# What most models without a token that begins a text saw between documents: GPT-2, Pythia, Phi, OLMo, Qwen, SmolLM.
BETWEEN = "<|endoftext|>"
# what stands for bytes that are no whole character
BROKEN = "\ufffd"


class Spelling:
    """The tokens of one tokenizer as text, and texts as its tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """The ids of a text alone, without special tokens around it."""
        return list(self.tokenizer(sound(text), add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as one text, special tokens included."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id as text as it follows other text, leading space kept; bytes that are no whole character as <F0>."""
        names = self._names(ids)
        anchor, skip = self._shown
        # behind an anchor, since many tokenizers drop the space of a first token
        behind = [anchor if name is None else [*anchor, i] for i, name in zip(ids, names, strict=True)]
        decoded = self.tokenizer.batch_decode(behind, clean_up_tokenization_spaces=False) if behind else []
        texts = []
        for i, name, text in zip(ids, names, decoded, strict=True):
            token = text[skip:]
            if BROKEN in token or not token:
                token = f"<{i}>" if name is None else _byte_name(name)
            texts.append(token)
        return texts

    def behind(self, text: str) -> tuple[int, ...]:
        """The ids of a text where it follows other text: of the two together, without the first one's."""
        first: tuple[int, ...] | None = None
        for before, ids in self.anchors:
            whole = self.ids(before + text)
            if whole[: len(ids)] == ids:
                own = tuple(whole[len(ids) :])
                if own and self.decode(whole) == self.decode(ids) + text:
                    return own
                first = first or own
        return tuple(self.ids(text)) if first is None else first

    def after(self, ids: Sequence[int], texts: Sequence[str], answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each answer after a prompt of `ids`, of which `texts` are readings.

        They are those that the prompt's text and the answer have together, without the prompt's. Where the two would
        be joined to other tokens than the prompt's, or the prompt's ids are none that the tokenizer makes of a text,
        the answer is `behind` other text: the prompt's ids stay as they are, and what follows them reads as the answer.
        """
        readings = ((text, self.ids(text)) for text in dict.fromkeys(texts) if text)
        prompt = tuple(ids)
        before, known = next(((t, i) for t, i in readings if i and prompt[-len(i) :] == tuple(i)), ("", []))
        ids_of_answers = []
        for answer in answers:
            whole = self.ids(before + answer) if known else []
            joined = known and whole[: len(known)] == known
            ids_of_answers.append((tuple(whole[len(known) :]) if joined else ()) or self.behind(answer))
        return ids_of_answers

    def spans(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token lies in the text it was made of, for tokenizers that do not say; empty where it does not.

        Tokens are found one after the other; those that cannot be, as parts of a character, lie between their
        neighbours.
        """
        spans: list[tuple[int, int] | None] = []
        at = 0
        for i, token in zip(ids, self.tokens(ids), strict=True):
            piece = token.strip() or token
            lost = bool(spans) and spans[-1] is None
            start = _find(text, piece, at)
            if start < 0 or not (lost or not text[at:start].strip()):
                spans.append((at, at) if i in self.special else None)
                continue
            spans.append((start, start + len(piece)))
            at = start + len(piece)
        places: list[tuple[int, int]] = []
        for known, group in itertools.groupby(enumerate(spans), lambda item: item[1] is not None):
            tokens_of_group = list(group)
            if known:
                places += [span for _, span in tokens_of_group if span is not None]
                continue
            start = places[-1][1] if places else 0
            after = spans[tokens_of_group[-1][0] + 1 :]
            stop = after[0][0] if after and after[0] is not None else len(text)
            inside = text[start:stop]
            places += [(start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip()))] * len(
                tokens_of_group
            )
        return places

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of marks that are no text, wherever they stand: those of ends and roles, not that of what is unknown.

        Many tokenizers make one of them of a text such as "<|endoftext|>".
        """
        named = (self._named(f"{name}_token_id") for name in ("bos", "eos", "pad", "cls", "sep", "mask"))
        added = (i for i, token in (self._named("added_tokens_decoder") or {}).items() if token.special)
        more = {*(self._named("all_special_ids") or ()), *added} - {self._named("unk_token_id")}
        between = self.tokenizer.get_vocab().get(BETWEEN)
        return frozenset(i for i in (*named, *more, between) if i is not None)

    def _named(self, name: str) -> Any:
        """What a tokenizer says of itself; None where it does not."""
        return getattr(self.tokenizer, name, None)

    @cached_property
    def anchors(self) -> list[tuple[str, list[int]]]:
        """Texts that tokens can be read and found behind, with their ids: none special, none unknown."""
        special = {*self.special, self._named("unk_token_id")}
        anchors = []
        for text in ANCHORS:
            ids = self.ids(text)
            if ids and special.isdisjoint(ids):
                anchors.append((text, ids))
        return anchors or list(itertools.islice(self._alphabet(special), ENOUGH))

    def _alphabet(self, special: set[Any]) -> Iterator[tuple[str, list[int]]]:
        for i in sorted({*self.tokenizer.get_vocab().values()} - special)[:SEARCHED]:
            text = self.decode([i]).strip()
            if text and BROKEN not in text and self.ids(text) == [i]:
                yield text, [i]

    @cached_property
    def _shown(self) -> tuple[list[int], int]:
        """Ids that tokens are decoded behind, and how many characters of the text are theirs."""
        for _, ids in self.anchors:
            text = self.decode(ids)
            if text and BROKEN not in text and self.decode([*ids, *ids]).startswith(text):
                return ids, len(text)
        return [], 0

    @cached_property
    def _vocabulary(self) -> dict[int, str]:
        return {i: name for name, i in self.tokenizer.get_vocab().items()}

    def _names(self, ids: Sequence[int]) -> list[str | None]:
        """What the vocabulary calls each id, None where it has none."""
        if not self.tokenizer.is_fast:
            return [self._vocabulary.get(i) for i in ids]
        return list(self.tokenizer.convert_ids_to_tokens(list(ids)))


def _find(text: str, piece: str, at: int) -> int:
    """Where a piece is next in a text, whatever its case where that keeps the text's length."""
    start = text.find(piece, at)
    lower = text.lower()
    return start if start >= 0 or len(lower) != len(text) else lower.find(piece.lower(), at)


def _byte_name(token: str) -> str:
    """A byte-level token's name, one letter per byte, with the bytes that are no letters as <F0>; others unchanged."""
    if not all(c in BYTES for c in token):
        return token
    return "".join(chr(BYTES[c]) if 32 <= BYTES[c] < 127 else f"<{BYTES[c]:02X}>" for c in token)
