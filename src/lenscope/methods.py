"""Target prompts by name: those of the Patchscopes paper, word for word.

Knows: their texts and where their placeholders stand. Does not know: how patches are run, or results made.
"""

from lenscope.errors import LenscopeError
from lenscope.patchscope import Target

# Ghandeharioun et al. 2024: §4.1 (as in the authors' code) and §4.3
TARGETS = {
    "identity": Target("cat -> cat\n1135 -> 1135\nhello -> hello\n?"),
    "entity": Target(
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
        "major appliance and consumer electronics corporation, x"
    ),
}


def named(name: str) -> Target:
    """A target prompt by its name; LenscopeError if there is none of that name."""
    if name not in TARGETS:
        raise LenscopeError(f"target {name!r}: there are {', '.join(TARGETS)}; or give a target prompt of your own")
    return TARGETS[name]
