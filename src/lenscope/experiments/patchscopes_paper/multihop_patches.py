"""Two-hop questions as they are asked and patched: which, after which demonstrations, and what is then said.

Knows: kinds of questions, prompts, the CoT Patchscope's and back-patching's grids with their controls, what is kept.
Does not know: what counts as right, how cells are selected and compared (multihop.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from lenscope.errors import LenscopeError
from lenscope.experiments.setting import Setting
from lenscope.models.hidden_states import HiddenStates
from lenscope.patchscopes.control_runs import CONDITIONS, RANDOM, SHUFFLED, VECTOR
from lenscope.patchscopes.controls import random_vectors
from lenscope.patchscopes.methods import back_patching
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.with_controls import ControlledTexts, continue_texts, generate_with_controls, texts_by_cell
from lenscope.statistics.derangements import derange
from lenscope.statistics.selection import balanced
from lenscope.tasks.model_knowledge import answers_correctly
from lenscope.tasks.relations import Chain, demonstration
from lenscope.tasks.text_match import mentions
from lenscope.text.packing import after_document_mark

# demonstrations, questions of a kind at least, tokens of a chain of thought
SHOTS, LEAST_CHAINS, THOUGHT_TOKENS = 3, 4, 48
STEPS = "Let's think step by step. "
# questions that are asked
ASKED = {"quick": 24, "full": 48}
STYLES = "zero-shot", "few-shot"
PLAIN = "asked, few-shot", "asked, zero-shot", "asked, step by step", "asked, step by step, chat"


@dataclass(frozen=True)
class Kind:
    """Questions of the same two relations, and the chains that are shown before each of them."""

    name: str
    shown: tuple[Chain, ...]
    chains: tuple[Chain, ...]

    def before(self, hop: int) -> str:
        """The demonstrations of the first hop, the second hop, or both at once (0, 1, 2), a line each."""
        return "".join(demonstration(c.questions[hop], c.answer if hop else c.bridge) for c in self.shown)

    def target(self, style: str) -> Target:
        """The second hop's prompt, x in the place of the bridge."""
        before, after = self.chains[0].second.split("{}")
        text = f"{self.before(1) if style == 'few-shot' else ''}{before}x"
        return Target(text + after, at=text)


def kinds_of(chains: Sequence[Chain], count: int, seed: int = 0) -> list[Kind]:
    """Up to `count` chains by kind, as many of each as there are, with SHOTS others to be shown before them.

    Shown are chains with the rarest bridges and answers, since all chains that share a word with them are left out:
    nothing that is asked for has been said before. Kinds with fewer than LEAST_CHAINS chains left are left out.
    """
    named: dict[tuple[str, ...], list[Chain]] = {}
    for n in np.random.default_rng(seed).permutation(len(chains)).tolist():
        c = chains[n]
        named.setdefault((c.name, c.first, c.phrase, c.second), []).append(c)
    kinds = []
    for same in named.values():
        shown: list[Chain] = []

        def apart(chain: Chain, shown: list[Chain] = shown) -> bool:
            words = " ".join(word for c in shown for word in (c.subject, c.bridge, c.answer))
            mine = chain.subject, chain.bridge, chain.answer
            return not mentions(words, mine) and not any(mentions(" ".join(mine), (c.bridge, c.answer)) for c in shown)

        counts = [(sum(c.answer == a.answer for c in same), sum(c.bridge == a.bridge for c in same)) for a in same]
        for _, n in sorted((count, n) for n, count in enumerate(counts)):
            if len(shown) < SHOTS and apart(same[n]):
                shown.append(same[n])
        left = [c for c in same if apart(c)]
        if len(shown) == SHOTS and len(left) >= LEAST_CHAINS:
            kinds.append(Kind(same[0].name, tuple(shown), tuple(left)))
    most = next((m for m in range(count, 0, -1) if sum(min(m, len(k.chains)) for k in kinds) <= count), 0)
    return [replace(k, chains=k.chains[:most]) for k in kinds if len(k.chains[:most]) >= LEAST_CHAINS]


def known_kinds(setting: Setting, kinds: Sequence[Kind]) -> tuple[list[Kind], list[np.ndarray]]:
    """The kinds with chains both of whose hops the model answers, and for each how the hops of all it had went (n, 2).

    Raises LenscopeError where the model answers both hops of next to none.
    """
    every = [(k, c) for k in kinds for c in k.chains]

    def compute() -> list[np.ndarray]:
        by_hop = []
        for hop in (0, 1):
            prompts = [k.before(hop) + c.questions[hop] for k, c in every]
            with setting.progress(f"questions, {('first', 'second')[hop]} hop") as advance:
                answers = [c.answer if hop else c.bridge for _, c in every]
                by_hop.append(answers_correctly(setting.lm, prompts, answers, advance))
        return by_hop

    right = np.array(setting.cached("multihop-hops", compute, questions=[c.questions[2] for _, c in every])).T
    ends = np.cumsum([len(k.chains) for k in kinds])
    hops = np.split(right, ends[:-1])
    both = [h[:, 0] & h[:, 1] for h in hops]
    known = [[c for c, b in zip(k.chains, yes, strict=True) if b] for k, yes in zip(kinds, both, strict=True)]
    picked = [balanced([c.answer for c in chains], 2) for chains in known]
    for most in range(3, len(every) + 1):
        more = [balanced([c.answer for c in chains], most) for chains in known]
        if sum(map(len, more)) > setting.choose(**ASKED):
            break
        picked = more
    chosen = [tuple(chains[n] for n in mine) for chains, mine in zip(known, picked, strict=True)]
    pairs = [(replace(k, chains=c), h) for k, c, h in zip(kinds, chosen, hops, strict=True) if c]
    chosen_kinds = [kind for kind, _ in pairs]
    if sum(len(k.chains) for k in chosen_kinds) < 2 * LEAST_CHAINS:
        raise LenscopeError(
            f"questions: {setting.lm.name} answers both hops of {int(right.all(1).sum())} of {len(every)}; give others"
        )
    return chosen_kinds, [h for _, h in pairs]


def plain_answers(setting: Setting, kinds: Sequence[Kind], how: dict[str, Any]) -> dict[str, list[str]]:
    """What the model says when asked both hops at once, in each of PLAIN (chat only where there is a template)."""
    lm = setting.lm
    questions = [c.questions[2] for k in kinds for c in k.chains]

    def compute() -> dict[str, list[str]]:
        few = [k.before(2) + c.questions[2] for k in kinds for c in k.chains]
        with setting.progress("questions asked") as advance:
            texts = {PLAIN[0]: continue_texts(lm, few, how["tokens"], "\n")}
            texts[PLAIN[1]] = continue_texts(lm, questions, how["tokens"], "\n")
            texts[PLAIN[2]] = continue_texts(lm, [STEPS + q for q in questions], THOUGHT_TOKENS)
            if getattr(lm.tokenizer, "chat_template", None):
                turns = [lm.chat(f"Complete the sentence: {q} ... {STEPS.strip()}") for q in questions]
                texts[PLAIN[3]] = continue_texts(lm, turns, THOUGHT_TOKENS)
            advance(len(questions), len(questions))
        return texts

    return setting.cached("multihop-asked", compute, thought=THOUGHT_TOKENS, **how)


class PatchedTexts(NamedTuple):
    """What is generated after patching: (source, target) layers, and texts by what was patched (N, styles · C)."""

    cells: list[tuple[int, int]]
    texts: dict[str, np.ndarray]


def cot_texts(setting: Setting, kinds: Sequence[Kind], layers: list[int], how: dict[str, Any]) -> PatchedTexts:
    """Every chain's first hop in its second hop's prompts."""
    lm = setting.lm
    pairs = [(a, b) for a in layers for b in layers]

    def compute(kind: Kind, style: str) -> ControlledTexts:
        described = [c.described for c in kind.chains]
        with setting.progress(f"cells, {kind.name}, {style}") as advance:
            return generate_with_controls(
                Patchscope(lm, kind.target(style)),
                lm.read(after_document_mark(lm, described), layers, -1),
                described,
                pairs,
                answers=[c.answer for c in kind.chains],
                controls=CONDITIONS[1:],
                max_new_tokens=how["tokens"],
                stop="\n",
                seed=setting.seed,
                progress=advance,
            )

    def texts(number: int, kind: Kind, style: str) -> Mapping[str, np.ndarray]:
        name = f"multihop-cot-{number}-{style}"
        return setting.cached(name, partial(compute, kind, style), layers=layers, kind=kind.name, **how).texts

    return PatchedTexts(pairs, _by_way(kinds, texts))


def back_patched_texts(setting: Setting, kinds: Sequence[Kind], layers: list[int], how: dict[str, Any]) -> PatchedTexts:
    """Later states of each question's first hop written back below."""
    pairs = [(a, b) for b in layers for a in layers if a > b]

    def compute(kind: Kind, style: str) -> dict[str, np.ndarray]:
        with setting.progress(f"questions back-patched, {kind.name}, {style}") as advance:
            return _back_patched(setting, kind, style, pairs, how["tokens"], advance)

    def texts(number: int, kind: Kind, style: str) -> Mapping[str, np.ndarray]:
        name = f"multihop-back-{number}-{style}"
        return setting.cached(name, partial(compute, kind, style), layers=layers, kind=kind.name, **how)

    return PatchedTexts(sorted(pairs), _by_way(kinds, texts))


def _by_way(
    kinds: Sequence[Kind], texts: Callable[[int, Kind, str], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Texts by what was patched: all kinds one after the other, both styles beside each other (N, styles · C)."""
    parts: dict[str, list[np.ndarray]] = {}
    for number, kind in enumerate(kinds):
        styles = [texts(number, kind, style) for style in STYLES]
        for way in styles[0]:
            parts.setdefault(way, []).append(np.concatenate([by_way[way] for by_way in styles], 1))
    return {way: np.concatenate(tables) for way, tables in parts.items()}


def _back_patched(
    setting: Setting,
    kind: Kind,
    style: str,
    pairs: list[tuple[int, int]],
    new: int,
    advance: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    before = kind.before(2) if style == "few-shot" else ""
    patches = []
    for chain in kind.chains:
        start, after = chain.second.split("{}")
        text = f"{before}{start}{chain.described}"
        patches.append(back_patching(setting.lm, text + after, text))
    others = derange([c.answer for c in kind.chains], setting.seed)
    texts: dict[str, list[Any]] = {VECTOR: [], RANDOM: [], SHUFFLED: []}
    for n, (scope, own, _) in enumerate(patches):
        # a seed of its own, else all questions have the same directions
        several = [own, random_vectors(own, setting.seed + n), patches[others[n]][1]]
        generated = texts_by_cell(
            scope.generate(_states_side_by_side(own, several), pairs, max_new_tokens=new, stop="\n")
        )[1]
        for way, row in zip(texts, generated.tolist(), strict=True):
            texts[way].append(row)
        advance(n + 1, len(patches))
    return {way: np.array(rows, dtype=object) for way, rows in texts.items()}


def _states_side_by_side(own: HiddenStates, several: Sequence[HiddenStates]) -> HiddenStates:
    """The states of several prompts as if all came from where the first did."""
    return replace(
        own,
        tensor=torch.cat([s.tensor for s in several]),
        prompts=own.prompts * len(several),
        positions=own.positions * len(several),
        batched=True,
    )


def chains_with_other_answers(kinds: Sequence[Kind], seed: int) -> np.ndarray:
    """For every chain, in order, the number of another one of its kind that has another answer: (N,)."""
    numbers: list[int] = []
    for kind in kinds:
        start = len(numbers)
        numbers += [start + n for n in derange([c.answer for c in kind.chains], seed)]
    return np.array(numbers)
