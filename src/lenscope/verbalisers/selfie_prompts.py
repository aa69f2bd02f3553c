"""SelfIE adapters as Patchscopes and as verbalisers: the prompt of an adapter's training, with its map in front of it.

Knows: how the prompt's template becomes tokens, where the vector goes, what is an adapter's file and what a folder.
Does not know: what is in an adapter's file.

In the published code (agencyenterprise/selfie-adapters, training/model.py) the template has its special tokens written
out, none is added, and the map's result replaces the embedding of every reserved token: layer 0 here.
"""

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.mappings.foreign_formats import names_of_model
from lenscope.mappings.selfie_adapters import SelfieAdapter, read_selfie_adapter
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser, load_verbaliser
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
    read = _read_for(lm, adapter)
    return Patchscope(lm, _selfie_target(lm, read, template), read.map, layers=0, source_lm=source_lm, **options)


def selfie_verbaliser(
    lm: LM,
    adapter: SelfieAdapter | str | os.PathLike[str],
    *,
    template: str | None = None,
    layers: Sequence[int] = (),
    center: Tensor | None = None,
) -> Verbaliser:
    """Make a verbaliser of a SelfIE adapter, which goes wherever one goes that was trained here, and can be saved.

    Raises LenscopeError as `adapted_selfie` does.

    Args:
        lm: the model that says the words, and that the vectors come from.
        adapter: what `read_selfie_adapter` reads, or the file.
        template: the prompt with special tokens written out, in place of the adapter's own.
        layers: the layers whose states it was trained on, which no file says; (): states of any layer are taken.
        center: what was taken from states to make its vectors, (L, D) for the `layers`; None: nothing.
    """
    read = _read_for(lm, adapter)
    own = check_layers(layers, lm.n_layers, lm.name) if layers else ()
    report = {"selfie adapter": {"model": read.model, "config": read.config}}
    model = model_identity(lm)
    target = _selfie_target(lm, read, template)
    return Verbaliser(read.map, target, 0, model, layers=own, center=center, source=model, report=report)


def open_verbaliser(path: str | os.PathLike[str], lm: LM, source_lm: LM | None = None) -> Verbaliser:
    """Load a verbaliser that lenscope saved in a folder, or the SelfIE adapter of a .safetensors file.

    `source_lm` is the model that vectors come from, if it is not `lm`. Raises LenscopeError as `load_verbaliser` and
    `selfie_verbaliser` do.
    """
    if not str(path).endswith(".safetensors"):
        return load_verbaliser(path, lm, source_lm)
    own = selfie_verbaliser(lm, path)
    own.check(lm, source_lm)
    return own


def _read_for(lm: LM, adapter: SelfieAdapter | str | os.PathLike[str]) -> SelfieAdapter:
    """The adapter, read if it is a file; LenscopeError if it is for another model."""
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
    return adapter


def _selfie_target(lm: LM, adapter: SelfieAdapter, template: str | None) -> Target:
    """The prompt of an adapter's training and the places of the vector in it."""
    text = adapter.template if template is None else template
    if text is None:
        raise LenscopeError("SelfIE adapter: its file has no template; give the prompt that it was trained with")
    mark = adapter.marker
    starts = [i for i in range(len(text)) if text.startswith(mark, i)]
    if not starts:
        raise LenscopeError(f"SelfIE adapter: its template has no {mark!r}, which stands for the vector")
    token = token_of_mark(lm, mark)
    prompt = lm.encoder.templated(text)
    return Target(prompt, at=list(places_of_marks(lm, prompt, starts, mark, token)))
