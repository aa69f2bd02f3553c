"""The paper's Patchscopes with the map of a trained verbaliser: the same prompts, the mapped state as an embedding.

Knows: how a verbaliser's map is put into another prompt, which controls it is beside. Does not know: which prompts,
what is scored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lenscope.experiments.setting import Setting
from lenscope.models.language_model import PromptLike
from lenscope.patchscopes.control_runs import VECTOR
from lenscope.patchscopes.methods import feature_extraction, named_target
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.patchscopes.with_controls import ControlledTexts, Score, generate_with_controls
from lenscope.tasks.relations import Relation, prompt_up_to
from lenscope.tasks.text_match import mentions
from lenscope.text.packing import after_document_mark
from lenscope.text.topic_vectors import usual_layer

TABLE = "trained map"


def trained_next_token_tables(setting: Setting, prompts: Sequence[PromptLike], own: Sequence[str]) -> dict[str, Any]:
    """Token identity with the map: is the model's own next token said? A table by its name; none without a map."""
    rows = _trained_map_row(
        setting, "precision@1", named_target("identity"), prompts, None, lambda text, n: float(text == own[n]), 1
    )
    return {TABLE: rows} if rows else {}


def trained_entity_tables(
    setting: Setting, names: Sequence[str], scores: Mapping[str, Score], cut: Callable[[str], str], new: int
) -> dict[str, Any]:
    """Entity description with the map, by every score of what `cut` takes for the description. As above."""
    prompts = after_document_mark(setting.lm, names)
    rows = []
    for what, score in scores.items():

        def of_description(text: str, n: int, score: Score = score) -> float:
            return score(cut(text), n)

        rows += _trained_map_row(setting, what, named_target("entity"), prompts, names, of_description, new)
    return {TABLE: rows} if rows else {}


def trained_attribute_tables(setting: Setting, relations: Sequence[Relation], new: int) -> dict[str, Any]:
    """Feature extraction with the map: is an answer said? Read in each fact's first text. As above."""
    rows = []
    for relation in relations if setting.verbaliser is not None else ():
        subjects, answers = [f.subject for f in relation.facts], [f.answers for f in relation.facts]
        prompts = [prompt_up_to(setting.lm, f.texts[0], f.subject) for f in relation.facts]

        def is_named(text: str, n: int, answers: Sequence[tuple[str, ...]] = answers) -> float:
            return float(mentions(text, answers[n]))

        target = feature_extraction(setting.lm, relation.target).targets[0]
        rows += _trained_map_row(setting, relation.name, target, prompts, subjects, is_named, new)
    return {TABLE: rows} if rows else {}


def _trained_map_row(
    setting: Setting,
    name: str,
    target: Target,
    prompts: Sequence[PromptLike],
    texts: Sequence[str] | None,
    score: Score,
    new: int,
) -> list[dict[str, Any]]:
    """A row of what is said of states that the map of the given verbaliser makes embeddings of; none without one.

    The map was trained behind another question than these prompts. "state itself" and "unit vector, scaled" are the
    untrained maps in the same place, "vector - …" the paired differences from them and from every other control.

    Args:
        setting: what the run is given.
        name: what the row is called.
        target: the prompt and its placeholder.
        prompts: what states are read from, at the last token, (N,).
        texts: what stands in the placeholder's place instead, (N,); None: there is no such control.
        score: gives a text of an item, by its number, a number.
        new: new tokens.
    """
    one = setting.verbaliser
    if one is None:
        return []
    lm = setting.lm
    many = [lm.prompt(p) for p in prompts]

    def compute(one: Verbaliser = one) -> ControlledTexts:
        states = one.vectors(lm.read(many, list(one.layers) or usual_layer(lm), -1))
        scope = Patchscope(lm, target, one.map, op=one.op, layers=one.target_layer)
        with setting.progress(f"trained map: {name}") as advance:
            return generate_with_controls(
                scope, states, texts, max_new_tokens=new, stop="\n", seed=setting.seed, progress=advance
            )

    ids = [list(p.ids) for p in many]
    asked = lm.prompt(target.prompt).text
    words = setting.cached(f"trained-map-{name}", compute, prompts=ids, target=asked, tokens=new, texts=texts)
    scored = words.scored(score, seed=setting.seed)
    layers = " or ".join(str(source) for source in dict.fromkeys(source for source, _ in scored.chosen()))
    return [{"what": name, "items": len(scored.scores[VECTOR]), "layer": layers, **scored.row()}]
