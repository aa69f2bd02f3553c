"""At which lengths a model's behaviour may change: what holds for short prompts need not hold past them.

Knows: which numbers of a configuration are lengths (windows, chunks, RoPE switches, sparse attention), so that whatever
is measured of a model is measured on both sides of them, the first time that prompts get there.
Does not know: models, or what is measured.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

# Names of numbers that are a length from which on a model does something else ...
ONCE = re.compile(
    r"window|local_attention|topk|top_k|original_max_position|floor|extent|distance|budget|mem_len|clamp_len|span"
)
# ... or does so again and again; and names that the patterns hit although they are no lengths.
AGAIN = re.compile(r"chunk|block_size|compress")
NEVER = re.compile(r"feed_forward|lm_head|expert|moe|layer|group|pattern|^top_k$|num_.*chunks|max_inference_chunksize")
# what the names of numbers of recurrent and linear-attention layers have in common; their code, not their
# configuration, often says in chunks of how many tokens they are computed
RECURRENT = re.compile(r"^(linear|mamba|ssm|gla|kda|lru|conv|short_conv)_|state_size$")
RECURRENT_CHUNK = 64
# Lengths up to this one are on both sides of the trial runs that every model is measured with when it is first used.
LONGEST_TRIED = 8


class Regimes:
    """Ranges of lengths within which a configuration gives no reason for a model to behave differently.

    `thresholds` are the lengths that the configuration names. A window or switch of w tokens may set in one token
    sooner or later than its number says, so that the lengths w - 1 … w + 2 are a range each.
    """

    def __init__(self, config: Any) -> None:
        self.thresholds = tuple(sorted(set(_thresholds(config))))
        self.cuts = sorted({t + d for t in self.thresholds for d in (-2, -1, 0, 1)})

    def of(self, length: int) -> int:
        """The number of a length's range: 0 for lengths below all thresholds."""
        return bisect_left(self.cuts, length)

    def key(self, *lengths: int) -> tuple[int, ...]:
        """The ranges of several lengths."""
        return tuple(self.of(n) for n in lengths)

    def crossed(self, start: int, stop: int) -> list[int]:
        """The cuts between two lengths: each is the last length before something may change on the way."""
        return self.cuts[self.of(start) : self.of(stop)]


def _thresholds(config: Any) -> Iterator[int]:
    """Every length that a configuration names, those below LONGEST_TRIED left out."""
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    named = list(_numbers_in_config(config))
    known: dict[str, int] = dict(named)
    for name, value in named:
        if NEVER.search(name):
            continue
        times = (1, 2, 3) if AGAIN.search(name) else (1,) if ONCE.search(name) else ()
        yield from (value * n for n in times if value * n > LONGEST_TRIED)
    blocks = [value for name, value in named if re.search(r"block_size", name)]
    for block in blocks:
        # so many blocks are attended to at most (MiniMax-M3), or make attention sparse (BigBird)
        yield from (block * value for name, value in named if re.search(r"(topk|local)_blocks", name))
        if "num_random_blocks" in known:
            yield block * (5 + 2 * known["num_random_blocks"])
    if "'dynamic'" in str(config):
        # beyond what it was trained for such a model takes other rotary frequencies at every length
        yield from (value for name, value in named if name == "max_position_embeddings")
    if any(RECURRENT.search(name) for name, _ in named):
        yield from (RECURRENT_CHUNK * n for n in (1, 2, 3))


def _numbers_in_config(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in a configuration with their names, those of nested parts too."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, dict):
        # the name of a part stands for its numbers where they have names of no meaning (compress_rates)
        for key, inner in value.items():
            if not re.search(r"vision|audio|image|encoder_config|label2id|id2label", str(key)):
                yield from _numbers_in_config(inner, f"{name}.{key}" if name == "compress_rates" else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers_in_config(inner, name)
