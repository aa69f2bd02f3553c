"""SelfIE adapters as Patchscopes: the prompt of an adapter's training, with its map in front of it.

Knows: how the prompt's template becomes tokens, and where the vector goes. Does not know: what is in an adapter's file.

In the published code (agencyenterprise/selfie-adapters, training/model.py) the template has its special tokens written
out, none is added, and the map's result replaces the embedding of every reserved token: layer 0 here.
"""

import os
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.mappings.foreign_formats import names_of_model
from lenscope.mappings.selfie_adapters import SelfieAdapter, read_selfie_adapter
from lenscope.models.language_model import LM
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.verbalisers.marked_prompts import places_of_marks, token_of_mark


def adapted_selfie(
    lm: LM,
    adapter: SelfieAdapter | str | os.PathLike[str],
    *,
    template: str | None = None,
    source_lm: LM | None = None,
    **options: Any,
) -> Patchscope:
    """Make the Patchscope of a SelfIE adapter: its map, and the prompt that it was trained with.

    Its sources are vectors as the adapter was trained on, which may be states less a mean. What it says ends with a
    quote: `generate(vectors, stop='"')`. Raises LenscopeError, in one line, for an adapter of another model or width, a
    file without a template where none is given, and a template without the mark, or whose mark is no token of its own.

    Args:
        lm: the model that says the words.
        adapter: what `read_selfie_adapter` reads, or the file.
        template: the prompt with special tokens written out, in place of the adapter's own.
        source_lm: the model of the vectors; None: `lm`.
        options: what else `Patchscope` takes.
    """
    if not isinstance(adapter, SelfieAdapter):
        adapter = read_selfie_adapter(adapter)
    if adapter.width != lm.hidden_size:
        raise LenscopeError(
            f"SelfIE adapter: is for vectors of {adapter.width} numbers, and {lm.name} has {lm.hidden_size}"
        )
    if adapter.model is not None and adapter.model.rstrip("/").rsplit("/", 1)[-1].lower() not in names_of_model(lm):
        raise LenscopeError(
            f"SelfIE adapter: was trained for {adapter.model}, and {lm.name} is another model or another name of it; "
            "where it is the same, give dataclasses.replace(adapter, model=None)"
        )
    text = adapter.template if template is None else template
    if text is None:
        raise LenscopeError("SelfIE adapter: its file has no template; give the prompt that it was trained with")
    mark = adapter.marker
    starts = [i for i in range(len(text)) if text.startswith(mark, i)]
    if not starts:
        raise LenscopeError(f"SelfIE adapter: its template has no {mark!r}, which stands for the vector")
    token = token_of_mark(lm, mark)
    prompt = lm.encoder.templated(text)
    target = Target(prompt, at=list(places_of_marks(lm, prompt, starts, mark, token)))
    return Patchscope(lm, target, adapter.map, layers=0, source_lm=source_lm, **options)
