"""The table of prior methods: each is a Patchscope with its own target prompt, mapping and layers.

Knows: target prompts of the literature word for word, and which layers each method reads and patches.
Does not know: how patches are run, how f is fitted and prompts are learned (fitting/). Causal tracing and attention
knockout are in interventions/.

Ghandeharioun et al. 2024, Table 1, and what came after; T is the target prompt, ℓ the source's layer, ℓ* the target's:

| method | call | T | f | ℓ* |
|---|---|---|---|---|
| logit lens (nostalgebraist 2020) | `lens_patchscope(lm, p)` | the source's | identity | n_layers |
| tuned lens (Belrose et al. 2023) | `lens_patchscope(lm, p, fit(…))` | the source's | affine | n_layers |
| linear shortcut (Din et al. 2023) | `lens_patchscope(lm, p, fit_mapping(…))` | the source's | affine | n_layers |
| LRE attribute (Hernandez et al. 2023) | `lens_patchscope(lm, p, f)` | the source's | affine | n_layers |
| Future Lens, linear (Pal et al. 2023) | `lens_patchscope(lm, p, f)`, N ahead | the source's | affine | n_layers |
| Future Lens, fixed prompt | `future_lens(lm)` | asks for more | identity | ℓ |
| Future Lens, learned prompt | `future_lens(lm, fit_soft_prompt(…))` | learned | identity | ℓ, as learned |
| token identity (§4.1) | `token_identity(lm)` | repeats tokens | identity | ℓ |
| zero-shot feature extraction (§4.2) | `feature_extraction(lm, relation)` | a relation of x | identity | every one |
| entity description (§4.3), across models (§4.4) | `entity_description(lm)` | describes x | identity, affine | ℓ |
| SelfIE (Chen et al. 2024) | `selfie(lm)` | a chat about _ _ _ _ _ | identity | 1 |
| Tokens2Words (Kaplan et al. 2024) | `tokens2words(lm)` | repeats a word | identity | 0 |
| captions (LiMBeR, Merullo et al. 2022) | `Patchscope(lm, Target(…), f, layers=0)` | before a caption | affine | 0 |

The last one needs no code: vectors (N, K, D) of an image encoder are sources like any other, f maps them to layer 0 of
K placeholders. Every call's `layers` can be given anew: `token_identity(lm).predict(states, [4, 8])`.
"""

import random
from collections.abc import Sequence

from lenscope.errors import LenscopeError
from lenscope.mappings.mapping import StateMap
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.prompts import Position
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.soft_prompt import FIXED_PROMPTS, SoftPrompt
from lenscope.patchscopes.target_prompts import Target

# Ghandeharioun et al. 2024, Table 2: the twelve tasks' verbalizations, under the names of their data
RELATIONS = {
    "fruit_inside_color": "On the inside, the color of x",
    "fruit_outside_color": "On the outside, the color of x",
    "object_superclass": "Among the superclasses of animal, bird, fish, vegetable, flower, fruit, the superclass of x",
    "substance_phase": "At room temperature, the phase of matter of x",
    "task_done_by_tool": "The tool that is used for x",
    "company_ceo": "The name of the CEO of x",
    "country_currency": "The official currency of x",
    "food_from_country": "The country of origin for x",
    "person_plays_position_in_sport": "In their sport, the position played by x",
    "person_plays_pro_sport": "The professional sport played by x",
    "product_by_company": "The company which developed x",
    "star_constellation": "The name of the constellation including x",
}

# Ghandeharioun et al. 2024: §4.1 as in the authors' code, §4.3 and §4.2
TARGETS = {
    "identity": Target("cat -> cat\n1135 -> 1135\nhello -> hello\n?"),
    "entity": Target(
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
        "major appliance and consumer electronics corporation, x"
    ),
    **{name: Target(text) for name, text in RELATIONS.items()},
}

# f(h), f(h, layer) or f(h, layer, target_layer); None: identity
# stands for the placeholders while a chat template is filled in
MARK = "LENSCOPE-PLACEHOLDERS"


def named_target(name: str) -> Target:
    """Give a target prompt by its name, such as "entity" or "identity"; LenscopeError if there is none of that name."""
    if name not in TARGETS:
        raise LenscopeError(f"target {name!r}: there are {', '.join(TARGETS)}; or give a target prompt of your own")
    return TARGETS[name]


def lens_patchscope(lm: LM, prompt: PromptLike, f: StateMap | None = None, *, at: Position = -1) -> Patchscope:
    """Make a Patchscope that does what a lens does, for one position of a prompt.

    Its target is the source prompt up to the source's position `at`, patched at the last layer. With f None it is the
    logit lens; tuned lens, linear shortcut, LRE attribute lens and linear Future Lens are other f. What `predict` gives
    equals `Lens(lm, f)` at that position, its "kl" included, which is cheaper for whole prompts.
    """
    source = lm.prompt(prompt)
    return Patchscope(lm, Target(source.ids[: source.position(at) + 1]), f, layers=lm.n_layers)


def token_identity(
    lm: LM, demonstrations: Sequence[str] | None = None, f: StateMap | None = None, *, source_lm: LM | None = None
) -> Patchscope:
    """Make the token identity Patchscope (§4.1): which token does a state stand for?

    The state is patched in where a token is about to be repeated, at its own layer. `demonstrations` are the repeated
    words, by default the authors' cat, 1135 and hello; `drawn` draws others.
    """
    target = TARGETS["identity"]
    if demonstrations is not None:
        target = Target("".join(f"{word} -> {word}\n" for word in demonstrations) + "?")
    return Patchscope(lm, target, f, layers="same", source_lm=source_lm)


def drawn(lm: LM, k: int, seed: int = 0) -> tuple[str, ...]:
    """`k` different words at random, each one token after a space: demonstrations as in Ghandeharioun et al., Fig. 5.

    Words are letters only, at least two. Raises LenscopeError for fewer than 1 or more than the vocabulary has.
    """
    if k < 1:
        raise LenscopeError(f"k {k}: give at least 1 demonstration")
    order = list(range(lm.encoder.vocab_size))
    random.Random(seed).shuffle(order)
    words: list[str] = []
    for part in (order[at : at + 512] for at in range(0, len(order), 512)):
        for i, token in zip(part, lm.encoder.tokens(part), strict=True):
            word = token[1:]
            if token[0] == " " and len(word) > 1 and word.isalpha() and lm.encoder.ids_behind(token) == (i,):
                words.append(word)
                if len(words) == k:
                    return tuple(words)
    raise LenscopeError(f"k {k}: {lm.name} has {len(words)} words of one token; give at most {len(words)}")


def feature_extraction(lm: LM, relation: str, f: StateMap | None = None, *, source_lm: LM | None = None) -> Patchscope:
    """Make a Patchscope that asks for an attribute of the source in words (§4.2).

    `relation` is a name of RELATIONS, or a text that ends in x, which is patched. All source layers go to all target
    layers. The paper calls a source layer right if any cell has the answer in 20 generated tokens, which rewards the
    number of cells: compare with other sources' cells, or select cells on other items.
    """
    if relation not in RELATIONS and not relation.endswith("x"):
        raise LenscopeError(f"relation {relation!r}: give a text that ends in x, or one of {', '.join(RELATIONS)}")
    return Patchscope(lm, Target(RELATIONS.get(relation, relation)), f, layers=None, source_lm=source_lm)


def entity_description(lm: LM, f: StateMap | None = None, *, source_lm: LM | None = None) -> Patchscope:
    """Make the entity description Patchscope (§4.3): what is the state taken for?

    The target prompt is a list of entities with descriptions, and the state is patched in at its own layer. Across
    models (§4.4) `source_lm` is the smaller model, `lm` the larger, and f a mapping between them.
    """
    return Patchscope(lm, TARGETS["entity"], f, layers="same", source_lm=source_lm)


def selfie(
    lm: LM,
    f: StateMap | None = None,
    *,
    placeholders: int = 5,
    answer: str = "Sure, I'll summarize your message:",
    source_lm: LM | None = None,
) -> Patchscope:
    """Make the Patchscope of SelfIE: the model summarizes a message that is the state.

    That is Chen et al. 2024, arXiv 2403.10949. The message is `placeholders` slots in the model's chat template, all
    replaced by f(h) at layer 1 (the default of the authors' code), and `answer` begins the reply. Slots are tokens of
    their own, whatever the tokenizer would merge. Raises LenscopeError where the model has no chat template, or one
    that alters its messages.

    Args:
        lm: the model that is asked.
        f: maps the source's states; None: identity.
        placeholders: how many slots the message has.
        answer: how the reply begins.
        source_lm: the model of the sources; None: `lm`.
    """
    if placeholders < 1:
        raise LenscopeError(f"placeholders {placeholders}: give at least 1")
    text = lm.chat(MARK).text + answer
    if text.count(MARK) != 1:
        raise LenscopeError(
            f"{lm.name}: its chat template changes or repeats the user's message, so placeholders cannot be located in "
            "it; give a Target of your own"
        )
    opening, closing = text.split(MARK)
    before, after = lm.encoder.ids(opening), lm.encoder.ids_behind(closing)
    slot = lm.encoder.ids(" _")[-1]
    slots = range(len(before), len(before) + placeholders)
    target = Target([*before, *[slot] * placeholders, *after], at=list(slots))
    return Patchscope(lm, target, f, layers=1, source_lm=source_lm)


def tokens2words(lm: LM, f: StateMap | None = None, *, source_lm: LM | None = None) -> Patchscope:
    """Make the Patchscope of Tokens2Words: which word does a state stand for, also one of several tokens?

    That is Kaplan et al. 2024, arXiv 2410.05864. The state is the word's only embedding, at layer 0 of the prompt `Next
    is the same word twice: 1) {word} 2)`.
    """
    target = Target("Next is the same word twice: 1) x 2)", at=" x")
    return Patchscope(lm, target, f, layers=0, source_lm=source_lm)


def future_lens(lm: LM, prompt: SoftPrompt | str = FIXED_PROMPTS[0], f: StateMap | None = None) -> Patchscope:
    """Make the Patchscope of Future Lens: what will come after the token of a state?

    That is Pal et al. 2023, arXiv 2311.04897. The state takes the place of the prompt's last token: at its own layer in
    a text (by default the first of the paper's FIXED_PROMPTS), at the layers that a soft prompt was learned for.
    `generate` goes on from it.
    """
    if isinstance(prompt, str):
        return Patchscope(lm, Target(prompt), f, layers="same")
    return Patchscope(lm, prompt.target(lm), f, layers=[(prompt.layer, prompt.target_layer)])


def back_patching(
    lm: LM, prompt: PromptLike, at: Position = -1
) -> tuple[Patchscope, HiddenStates, list[tuple[int, int]]]:
    """Write later states back at earlier layers of the same position and prompt (Biran et al. 2024).

    Returns a Patchscope with its sources and its (source layer, target layer) pairs, every source above its target:
    scope.predict(states, pairs, answers=[...]) for the probability of answers, scope.generate(states, pairs) for what
    is then said.
    """
    target = Target(lm.prompt(prompt), at)
    pairs = [(above, layer) for layer in range(lm.n_layers) for above in range(layer + 1, lm.n_layers + 1)]
    return Patchscope(lm, target), lm.read(target.prompt, positions=at), pairs
