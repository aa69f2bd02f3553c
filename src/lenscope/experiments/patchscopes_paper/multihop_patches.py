"""Two-hop questions as they are asked and patched: which, after which demonstrations, and what is then said.

Knows: kinds of questions, prompts, the CoT Patchscope's and back-patching's grids with their controls, what is kept.
Does not know: what counts as right, how cells are selected and compared (multihop.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lenscope.errors import LenscopeError
from lenscope.experiments.setting import Setting
from lenscope.experiments.wording import cached_json
from lenscope.models.hidden_states import HiddenStates
from lenscope.patchscopes.controls import random_vectors
from lenscope.patchscopes.methods import back_patching
from lenscope.patchscopes.patchscope import Patchscope, Target
from lenscope.patchscopes.with_controls import (
    RANDOM,
    SHUFFLED,
    VECTOR,
    continue_texts,
    generate_with_controls,
    texts_by_cell,
)
from lenscope.statistics.derangements import derange
from lenscope.statistics.selection import balanced
from lenscope.tasks.known_facts import answers_correctly
from lenscope.tasks.relations import Chain
from lenscope.tasks.text_match import mentions
from lenscope.text.packing import after_document_mark

# demonstrations, questions of a kind at least, tokens of a chain of thought
SHOTS, LEAST, THOUGHT = 3, 4, 48
STEPS = "Let's think step by step. "
# quick and full: questions that are asked
ASKED = 24, 48
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
        return "".join(f"{c.questions[hop]} {c.answer if hop else c.bridge}.\n" for c in self.shown)

    def target(self, style: str) -> Target:
        """The second hop's prompt, x in the place of the bridge."""
        before, after = self.chains[0].second.split("{}")
        text = f"{self.before(1) if style == 'few-shot' else ''}{before}x"
        return Target(text + after, at=text)


def kinds_of(chains: Sequence[Chain], count: int, seed: int = 0) -> list[Kind]:
    """Up to `count` chains by kind, as many of each as there are, with SHOTS others to be shown before them.

    Shown are chains with the rarest bridges and answers, since all chains that share a word with them are left out:
    nothing that is asked for has been said before. Kinds with fewer than LEAST chains left are left out.
    """
    named: dict[tuple[str, ...], list[Chain]] = {}
    for n in np.random.default_rng(seed).permutation(len(chains)).tolist():
        c = chains[n]
        named.setdefault((c.name, c.first, c.phrase, c.second), []).append(c)
    made = []
    for some in named.values():
        shown: list[Chain] = []

        def apart(chain: Chain, shown: list[Chain] = shown) -> bool:
            said = " ".join(word for c in shown for word in (c.subject, c.bridge, c.answer))
            mine = chain.subject, chain.bridge, chain.answer
            return not mentions(said, mine) and not any(mentions(" ".join(mine), (c.bridge, c.answer)) for c in shown)

        counts = [(sum(c.answer == a.answer for c in some), sum(c.bridge == a.bridge for c in some)) for a in some]
        for _, n in sorted((count, n) for n, count in enumerate(counts)):
            if len(shown) < SHOTS and apart(some[n]):
                shown.append(some[n])
        left = [c for c in some if apart(c)]
        if len(shown) == SHOTS and len(left) >= LEAST:
            made.append(Kind(some[0].name, tuple(shown), tuple(left)))
    most = next((m for m in range(count, 0, -1) if sum(min(m, len(k.chains)) for k in made) <= count), 0)
    return [replace(k, chains=k.chains[:most]) for k in made if len(k.chains[:most]) >= LEAST]


def known_kinds(setting: Setting, kinds: Sequence[Kind]) -> tuple[list[Kind], list[np.ndarray]]:
    """The kinds with chains both of whose hops the model answers, and for each how the hops of all it had went (n, 2).

    Raises LenscopeError where the model answers both hops of next to none.
    """
    every = [(k, c) for k in kinds for c in k.chains]

    def make() -> list[list[bool]]:
        found = []
        for hop in (0, 1):
            prompts = [k.before(hop) + c.questions[hop] for k, c in every]
            with setting.progress(f"questions, {('first', 'second')[hop]} hop") as advance:
                answers = [c.answer if hop else c.bridge for _, c in every]
                found.append(answers_correctly(setting.lm, prompts, answers, advance).tolist())
        return found

    right = np.array(cached_json(setting, "multihop-hops", make, questions=[c.questions[2] for _, c in every])).T
    ends = np.cumsum([len(k.chains) for k in kinds])
    hops = np.split(right, ends[:-1])
    both = [h[:, 0] & h[:, 1] for h in hops]
    known = [[c for c, b in zip(k.chains, yes, strict=True) if b] for k, yes in zip(kinds, both, strict=True)]
    picked = [balanced([c.answer for c in some], 2) for some in known]
    for most in range(3, len(every) + 1):
        more = [balanced([c.answer for c in some], most) for some in known]
        if sum(map(len, more)) > setting.sized(*ASKED):
            break
        picked = more
    chosen = [tuple(some[n] for n in mine) for some, mine in zip(known, picked, strict=True)]
    pairs = [(replace(k, chains=c), h) for k, c, h in zip(kinds, chosen, hops, strict=True) if c]
    made = [kind for kind, _ in pairs]
    if sum(len(k.chains) for k in made) < 2 * LEAST:
        raise LenscopeError(
            f"questions: {setting.lm.name} answers both hops of {int(right.all(1).sum())} of {len(every)}; give others"
        )
    return made, [h for _, h in pairs]


def plain_answers(setting: Setting, kinds: Sequence[Kind], how: dict[str, Any]) -> dict[str, list[str]]:
    """What the model says when asked both hops at once, in each of PLAIN (chat only where there is a template)."""
    lm = setting.lm
    questions = [c.questions[2] for k in kinds for c in k.chains]

    def make() -> dict[str, list[str]]:
        few = [k.before(2) + c.questions[2] for k in kinds for c in k.chains]
        with setting.progress("questions asked") as advance:
            made = {PLAIN[0]: continue_texts(lm, few, how["tokens"], "\n")}
            made[PLAIN[1]] = continue_texts(lm, questions, how["tokens"], "\n")
            made[PLAIN[2]] = continue_texts(lm, [STEPS + q for q in questions], THOUGHT)
            if getattr(lm.tokenizer, "chat_template", None):
                turns = [lm.chat(f"Complete the sentence: {q} ... {STEPS.strip()}") for q in questions]
                made[PLAIN[3]] = continue_texts(lm, turns, THOUGHT)
            advance(len(questions), len(questions))
        return made

    found: dict[str, list[str]] = cached_json(setting, "multihop-asked", make, thought=THOUGHT, **how)
    return found


def cot_sayings(setting: Setting, kinds: Sequence[Kind], layers: list[int], how: dict[str, Any]) -> dict[str, Any]:
    """Every chain's first hop in its second hop's prompts: cells, and texts by way (N, styles · C)."""
    lm = setting.lm
    pairs = [(a, b) for a in layers for b in layers]
    parts: dict[str, list[np.ndarray]] = {}
    for number, kind in enumerate(kinds):
        found = []
        for style in STYLES:

            def make(kind: Kind = kind, style: str = style) -> dict[str, Any]:
                described = [c.described for c in kind.chains]
                with setting.progress(f"cells, {kind.name}, {style}") as advance:
                    return generate_with_controls(
                        Patchscope(lm, kind.target(style)),
                        lm.read(after_document_mark(lm, described), layers, -1),
                        described,
                        pairs,
                        answers=[c.answer for c in kind.chains],
                        max_new_tokens=how["tokens"],
                        stop="\n",
                        seed=setting.seed,
                        progress=advance,
                    ).to_json()

            name = f"multihop-cot-{number}-{style}"
            found.append(cached_json(setting, name, make, layers=layers, kind=kind.name, **how)["said"])
        for way in found[0]:
            parts.setdefault(way, []).append(np.concatenate([np.array(f[way], dtype=object) for f in found], 1))
    return {"cells": pairs, "said": {way: np.concatenate(some) for way, some in parts.items()}}


def back_sayings(setting: Setting, kinds: Sequence[Kind], layers: list[int], how: dict[str, Any]) -> dict[str, Any]:
    """Later states of each question's first hop written back below: cells, and texts by way (N, styles · C)."""
    pairs = [(a, b) for b in layers for a in layers if a > b]
    parts: dict[str, list[np.ndarray]] = {}
    for number, kind in enumerate(kinds):
        found: list[dict[str, Any]] = []
        for style in STYLES:

            def make(kind: Kind = kind, style: str = style) -> dict[str, Any]:
                with setting.progress(f"questions back-patched, {kind.name}, {style}") as advance:
                    return _back_patched(setting, kind, style, pairs, how["tokens"], advance)

            name = f"multihop-back-{number}-{style}"
            found.append(cached_json(setting, name, make, layers=layers, kind=kind.name, **how))
        for way in found[0]:
            parts.setdefault(way, []).append(np.concatenate([np.array(f[way], dtype=object) for f in found], 1))
    return {"cells": sorted(pairs), "said": {way: np.concatenate(some) for way, some in parts.items()}}


def _back_patched(
    setting: Setting,
    kind: Kind,
    style: str,
    pairs: list[tuple[int, int]],
    new: int,
    advance: Callable[[int, int], None],
) -> dict[str, Any]:
    before = kind.before(2) if style == "few-shot" else ""
    made = []
    for chain in kind.chains:
        start, after = chain.second.split("{}")
        text = f"{before}{start}{chain.described}"
        made.append(back_patching(setting.lm, text + after, text))
    others = derange([c.answer for c in kind.chains], setting.seed)
    said: dict[str, list[Any]] = {VECTOR: [], RANDOM: [], SHUFFLED: []}
    for n, (scope, own, _) in enumerate(made):
        # a seed of its own, else all questions have the same directions
        some = [own, random_vectors(own, setting.seed + n), made[others[n]][1]]
        states = _beside(own, some)
        texts = texts_by_cell(scope.generate(states, pairs, max_new_tokens=new, stop="\n"))[1]
        for way, row in zip(said, texts.tolist(), strict=True):
            said[way].append(row)
        advance(n + 1, len(made))
    return said


def _beside(own: HiddenStates, several: Sequence[HiddenStates]) -> HiddenStates:
    """The states of several prompts as if all came from where the first did."""
    return replace(
        own,
        tensor=torch.cat([s.tensor for s in several]),
        prompts=own.prompts * len(several),
        positions=own.positions * len(several),
        batched=True,
    )


def exchanged(kinds: Sequence[Kind], seed: int) -> np.ndarray:
    """For every chain, in order, the number of another one of its kind that has another answer: (N,)."""
    made: list[int] = []
    for kind in kinds:
        start = len(made)
        made += [start + n for n in derange([c.answer for c in kind.chains], seed)]
    return np.array(made)
