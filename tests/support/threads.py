"""Two threads that use one model, or two: python tests/support/threads.py --calls 1000.

Calls of many kinds run at once in random order; each result must be that of the same call alone, or one line that
refuses it. Knows: calls and their results alone. Does not know: how lenscope keeps threads apart.
"""

import argparse
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import tiny
import torch
from fuzzed import of_json, of_mapping, plain

import lenscope as ls

PROMPTS = ("The capital of France is", "The cat sat on the mat.", "x", "one two three four five")
TARGET = "one -> one, two -> two, x"
TEXTS = [f"{n} is a number, and the cat sat on mat {n}. The capital is Paris." for n in range(24)]
# a wait no machine needs
LONGEST = 900


def model() -> ls.LM:
    return ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")


def edited(lm: ls.LM, layer: int) -> str:
    """Several runs within one block: what is read of others must not see the edit, nor these anything else."""
    v = torch.ones(lm.hidden_size)
    with lm.edit(ls.Edit(layer, -1, v)):
        first = lm.read(PROMPTS[0]).tensor
        written = lm.generate(PROMPTS[1], 3).ids
        second = lm.read(PROMPTS[0]).tensor
    return plain([first, written, second])


def calls(lm: ls.LM) -> dict[str, Callable[[], str]]:
    """Every call by name, its result as a text."""
    lens = ls.Lens(lm)
    made: dict[str, Callable[[], str]] = {}
    for n, prompt in enumerate(PROMPTS):
        made |= {
            f"read {n}": lambda p=prompt: plain(lm.read(p).tensor),
            f"trajectory {n}": lambda p=prompt: of_json(lens.trajectory(p)),
            f"generate {n}": lambda p=prompt: plain(lm.generate(p, 5).ids),
            f"edit {n}": lambda n=n: edited(lm, n),
        }
    made |= {
        "read together": lambda: plain(lm.read(list(PROMPTS)).tensor),
        "generate together": lambda: plain([c.ids for c in lm.generate(list(PROMPTS), 4)]),
        "compare": lambda: of_json(lens.compare(PROMPTS[0], PROMPTS[1])),
        "predict": lambda: predicted(lm, PROMPTS[0]),
        "predict another": lambda: predicted(lm, PROMPTS[1]),
        "write": lambda: written(lm),
        "tracing": lambda: of_json(
            ls.interventions.causal_tracing(lm, PROMPTS[0], "France", " a", samples=2, layers=[0, 2])
        ),
        "knockout": lambda: of_json(ls.interventions.attention_knockout(lm, PROMPTS[0], "France", " a", layers=[1, 2])),
        "fit": lambda: of_mapping(fitted(lm)),
    }
    return made


def predicted(lm: ls.LM, source: str) -> str:
    states = lm.read(source, positions=[0, -1])
    return of_json(ls.Patchscope(lm, ls.Target(TARGET, at="x", below="none")).predict(states, [0, 2, 4]))


def written(lm: ls.LM) -> str:
    states = lm.read(PROMPTS[3], positions=-1)
    return of_json(ls.Patchscope(lm, TARGET).generate(states, [1, 3], max_new_tokens=4))


def fitted(lm: ls.LM) -> Any:
    lens = ls.fit(lm, TEXTS, tokens=256, length=16, recipe="ridge", held_out=0.3)
    # how long it took is not compared
    report = {k: v for k, v in lens.report.items() if k not in ("seconds", "spent")}
    return ls.Affine(lens.weights, lens.source, lens.target, report)


def alone(lm: ls.LM) -> dict[str, str]:
    """Every call's result with nothing beside it."""
    return {name: untimed(call()) for name, call in calls(lm).items()}


def untimed(result: str) -> str:
    """A result without the time at which it was made, and without the digest of a document that names it."""
    return re.sub(r'\d{4}-\d\d-\d\dT[\d:+.]+|"sha256": "[0-9a-f]{64}"', "", result)


def together(lms: Sequence[ls.LM], expected: dict[str, str], count: int, seed: int = 0) -> Counter[str]:
    """`count` calls by a thread for each model, at once: how many are "equal", "refused", or what went wrong."""
    results: Counter[str] = Counter()
    ready = threading.Barrier(len(lms))

    def work(number: int, lm: ls.LM) -> None:
        draw, mine = Random(f"{seed} {number}"), calls(lm)
        ready.wait()
        for _ in range(count // len(lms)):
            name = draw.choice(sorted(mine))
            try:
                equal = untimed(mine[name]()) == expected[name]
                results["equal" if equal else f"{name}: another result"] += 1
            except ls.LenscopeError as error:
                results["refused" if "\n" not in str(error) else f"{name}: {error}"] += 1
            except BaseException as error:  # whatever else comes out of a call is a fault
                results[f"{name}: {type(error).__name__} {error}"] += 1

    workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(lms)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(LONGEST)
    if any(one.is_alive() for one in workers):
        results["a thread waits for ever"] += 1
    return results


def unlike(lm: ls.LM, expected: dict[str, str]) -> list[str]:
    """What is not as it was: modules with hooks that stayed, another attention, another result."""
    left = [name for name, m in lm.model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    configs = {m.config._attn_implementation for m in lm.model.modules() if hasattr(m, "config")}
    again: dict[str, str] = {}
    try:
        again = alone(lm)
    except ls.LenscopeError as error:
        left.append(f"a call that is refused: {error}")
    return [
        *(name or "the model" for name in left),
        *(f"attention {name}" for name in configs - {"sdpa"}),
        *(f"{name} afterwards" for name in again if again[name] != expected[name]),
        *(["training"] if lm.model.training else []),
        *(["an edit"] if lm.runner.editing else []),
    ]


def cases() -> dict[str, list[ls.LM]]:
    """One model of which all is known, one whose first calls these are, two objects of one model, two models."""
    warm, fresh, shared = model(), model(), tiny.model("llama")
    alone(warm)
    return {
        "one": [warm, warm],
        "first calls": [fresh, fresh],
        "one model, two objects": [ls.LM(shared, tiny.tokenizer(), "tiny-llama") for _ in range(2)],
        "two models": [model(), model()],
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    right = alone(model())
    wrong = 0
    for case, lms in cases().items():
        counts = together(lms, right, chosen.calls, chosen.seed)
        after = [what for lm in lms for what in unlike(lm, right)]
        wrong += sum(counts.values()) - counts["equal"] - counts["refused"] + len(after)
        sys.stdout.write(f"{case}: {dict(counts.most_common())}; afterwards: {after or 'as it was'}\n")
    sys.exit(wrong > 0)
