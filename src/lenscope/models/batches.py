"""Which prompts run together: near in length, within a memory budget, padded only where that changes nothing.

Knows: lengths. Does not know: models, or whether padding changes a model's numbers, which it is told.
"""

from collections.abc import Callable, Iterator, Sequence

from lenscope.models.prompts import Prompt

# Padded tokens that run through the model at once: bounds the activations of long lists of prompts.
TOKENS_PER_RUN = 8192


def length_groups(prompts: Sequence[Prompt], together: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Indices of prompts that run together: near in length, and of equal length unless `together` allows more.

    `together(a, b)` says whether prompts of a to b tokens, padded to one length, are each as if they ran alone.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group: list[int] = []
    for i in order:
        length = len(prompts[i])
        full = length * (len(group) + 1) > TOKENS_PER_RUN
        shortest = len(prompts[group[0]]) if group else length
        if group and (full or (length != shortest and not together(shortest, length))):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
