"""Which facts and two-hop questions a model answers by itself, after demonstrations of others.

Knows: prompts of facts and chains, and that an answer counts where the greedy continuation begins with it.
Does not know: how text is continued (engine/shared_prefix_continuations.py), what counts as the same word
(text_match.py).
"""

from collections.abc import Sequence

import numpy as np

from lenscope.engine.shared_prefix_continuations import continue_prompts
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.tasks.relations import Chain, Fact, Relation, demonstration
from lenscope.tasks.text_match import starts

# tokens that it may write beyond an answer's own, such as an article
TOKENS_BEYOND_ANSWER = 2


def fact_prompt(relation: Relation, fact: Fact, shots: int = 5, seed: int = 0) -> str:
    """Lines of `shots` other facts of a relation with their first answers, then its template with this subject.

    All facts have the same demonstrations in the same order, so that they are read once (multiple-choice questions
    have demonstrations of their own: `questions.few_shot_prompts`), except that a fact's own place in them is taken by
    the next one. Raises LenscopeError where there are too few others.
    """
    order = np.random.default_rng(seed).permutation(len(relation.facts)).tolist()
    others = [relation.facts[n] for n in order if relation.facts[n].subject != fact.subject][:shots]
    if shots < 0 or len(others) < shots:
        raise LenscopeError(f"shots {shots}: {relation.name} has {len(others)} other facts; give 0–{len(others)}")
    lines = [demonstration(relation.template.replace("{}", o.subject), o.answers[0]) for o in others]
    return "".join(lines) + relation.template.replace("{}", fact.subject)


def answers_correctly(
    lm: LM, prompts: Sequence[str], answers: Sequence[str | Sequence[str]], progress: Progress | None = None
) -> np.ndarray:
    """Whether the greedy continuation of each prompt begins with one of its answers: (N,) of bool."""
    if len(prompts) != len(answers):
        raise LenscopeError(f"{len(prompts)} prompts, {len(answers)} answers: give answers for each prompt")
    names = [[a] if isinstance(a, str) else [*a] for a in answers]
    if not names:
        return np.zeros(0, dtype=bool)
    new = TOKENS_BEYOND_ANSWER + max(len(lm.encoder.ids_behind(" " + name)) for names_of in names for name in names_of)
    continuations = continue_prompts(lm, prompts, new, progress)
    return np.array([starts(one.text, names_of) for one, names_of in zip(continuations, names, strict=True)])


def known_facts(
    lm: LM, relation: Relation, shots: int = 5, seed: int = 0, progress: Progress | None = None
) -> np.ndarray:
    """Which facts a model goes on to say after others: (N,) of bool.

    Args:
        lm: the model, which continues greedily.
        relation: the facts; one is known if one of its answers comes first.
        shots: how many other facts are shown before each.
        seed: fixes which.
        progress: is called with the facts done and all there are.
    """
    prompts = [fact_prompt(relation, fact, shots, seed) for fact in relation.facts]
    return answers_correctly(lm, prompts, [fact.answers for fact in relation.facts], progress)


def known_chains(
    lm: LM, chains: Sequence[Chain], shots: int = 3, seed: int = 0, progress: Progress | None = None
) -> np.ndarray:
    """Which hops a model answers, (N, 3) of bool: the first, the second, and both in one question.

    Raises LenscopeError where too few chains can be shown.

    Args:
        lm: the model, which continues greedily.
        chains: N two-hop questions.
        shots: how many questions of chains of the same name are shown before each, none with the same bridge.
        seed: fixes which.
        progress: is called with the questions done and all there are.
    """
    prompts: list[str] = []
    answers: list[str] = []
    order = np.random.default_rng(seed).permutation(len(chains)).tolist()
    for hop in range(3):
        for chain in chains:
            peers = (chains[n] for n in order if chains[n].name == chain.name and chains[n].bridge != chain.bridge)
            shown = {peer.questions[hop]: peer.bridge if hop == 0 else peer.answer for peer in peers}
            if len(shown) < shots:
                raise LenscopeError(f"shots {shots}: {chain.name} has {len(shown)} others to show; give fewer shots")
            lines = [demonstration(*item) for item in list(shown.items())[:shots]]
            prompts.append("".join(lines) + chain.questions[hop])
            answers.append(chain.bridge if hop == 0 else chain.answer)
    return answers_correctly(lm, prompts, answers, progress).reshape(3, len(chains)).T
