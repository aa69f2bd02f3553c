"""Fitted lenses from wherever they are: lenscope's folders, tuned-lens' folders, Jacobian-lens files, the hub.

Knows: the files that other packages write, and where on the Hugging Face hub lenses are kept.
Does not know: what lenses are used for.

tuned-lens (Belrose et al. 2023; its nn/lenses.py, versions 0.0.x to 0.2.0): a folder with config.json and params.pt,
a state dict of `{l}.weight` W (D, D) and `{l}.bias` b (D) for the layers 0…n_layers-1, with A = I + W. Before 0.1 the
keys were `input_translator.…` for layer 0 and `layer_translators.{l-1}.…` for layer l ("probe" or "adapter" still
earlier), beside the model's own norm and unembedding. On the hub: the space AlignmentResearch/tuned-lens, folder
lens/MODEL.

Jacobian lens (Gurnee et al. 2026; anthropics/jacobian-lens, jlens/lens.py, read in copies of it; TransformerLens 4.3
reads and writes the same): one .pt file with J {block: (D, D)}, in float16, n_prompts, source_layers, d_model. Blocks
count from 0, so the output of block k is layer k + 1 here; J maps it to the last block's output before the final norm.
TransformerLens adds metadata with model_name and target_layer. On the hub: neuronpedia/jacobian-lens,
MODEL/jlens/CORPUS/NAME_jacobian_lens.pt.
"""

import os
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files import hub, pickles
from lenscope.files.untrusted import read_json, read_safetensors
from lenscope.mappings.foreign_formats import (
    CONFIG,
    PARAMS,
    _file_model,
    _is_tuned_lens,
    _jacobian_lens,
    _names,
    _tuned_lens,
)
from lenscope.mappings.mapping import PairMapping, load_mapping
from lenscope.models.language_model import LM

SPACE = "AlignmentResearch/tuned-lens"
_TENSORS = (".pt", ".pth", ".safetensors")


def load_lens(where: str | os.PathLike[str], lm: LM) -> PairMapping:
    """A fitted lens for `lm`: a mapping from its layers to its last, for `Lens(lm, f)` and for Patchscopes.

    `where` is a folder or a hub repository that lenscope saved; a folder of the package tuned-lens, or the model's
    name in the hub space that its lenses are kept in; a Jacobian-lens file, or OWNER/REPOSITORY/PATH.pt, or a
    repository with one file for this model. Translators that a tuned-lens file lacks are the identity, as they are
    before training; layers that a Jacobian lens lacks are left out. `report` says what was read.

    Nothing that could run code is loaded. Raises LenscopeError for what is missing, damaged, not finite, of another
    size or of another model; a lens of tuned-lens is known by its hash of the unembedding or by its model's name, a
    Jacobian lens by name alone, and by its size where it carries no name.
    """
    name = os.fspath(where)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, lm)
    if path.is_file():
        return _from_file(path, lm, name)
    if ("/" not in name and path.suffix in _TENSORS) or name.startswith((".", "/", "~")):
        raise LenscopeError(f"{name}: no such file or folder")
    return _from_hub(name, lm)


# -- files


def _from_folder(folder: Path, lm: LM) -> PairMapping:
    config = _config(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is None:
        files = [p for p in sorted(folder.iterdir()) if p.suffix in (".pt", ".pth")]
        if len(files) == 1:
            return _from_file(files[0], lm, str(files[0]))
        raise LenscopeError(f"{folder}: is no lens: it has no {CONFIG}, and {len(files)} files of tensors")
    if "kind" in config:
        mapping = load_mapping(folder)
        mapping.check(lm, lm)
        return mapping
    if not _is_tuned_lens(config):
        raise LenscopeError(f"{folder}: its {CONFIG} is not that of a lens; give a folder of lenscope or of tuned-lens")
    for name in PARAMS:
        if (folder / name).is_file():
            return _tuned_lens(config, _tensors(folder / name), lm, str(folder))
    raise LenscopeError(f"{folder}: has the {CONFIG} of a tuned lens, but no {' or '.join(PARAMS)}; copy it there too")


def _from_file(path: Path, lm: LM, name: str) -> PairMapping:
    content = _tensors(path)
    if not isinstance(content.get("J"), dict):
        beside = path.with_name(CONFIG)
        if path.name in PARAMS and beside.is_file():
            return _from_folder(path.parent, lm)
        raise LenscopeError(f"{path}: is no Jacobian lens: it has no J; for a tuned lens give the folder")
    return _jacobian_lens(content, lm, name)


def _config(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise LenscopeError(f"{path}: is no JSON object")
    return content


def _tensors(path: Path) -> dict[Any, Any]:
    """A dictionary of tensors and plain values, on the CPU wherever they were saved from; never runs code."""
    content: Any = read_safetensors(path) if path.suffix == ".safetensors" else pickles.load(path)
    if not isinstance(content, dict):
        raise LenscopeError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


# -- tuned-lens


# -- Jacobian lens


# -- belonging


# -- the hub


def _from_hub(name: str, lm: LM) -> PairMapping:
    parts = name.split("/")
    if len(parts) > 2 and name.endswith(_TENSORS):
        path = hub.fetch("/".join(parts[:2]), "/".join(parts[2:]), named=name)
        if path is not None:
            return _from_file(path, lm, name)
    elif len(parts) == 2:
        config = hub.fetch(name, CONFIG)
        if config is None:
            file = _file_for(name, lm)
            path = hub.fetch(name, file) if file else None
            if path is not None:
                return _from_file(path, lm, f"{name}/{file}")
        elif any(hub.fetch(name, file) for file in _beside(name, config)):
            return _from_folder(config.parent, lm)
    if len(parts) <= 2:
        config = hub.fetch(SPACE, f"lens/{name}/{CONFIG}", "space", name)
        if config is not None and hub.fetch(SPACE, f"lens/{name}/{PARAMS[0]}", "space", name):
            return _from_folder(config.parent, lm)
    raise LenscopeError(
        f"{name}: no such folder, and no lens for {lm.name} of this name on the hub, nor in the space {SPACE}; give "
        "the folder that a lens was saved to, or OWNER/REPOSITORY (private ones need: hf auth login)"
    )


def _beside(name: str, path: Path) -> tuple[str, ...]:
    """The files that may go with the config of a repository; none with that of a model."""
    config = _config(path)
    if "kind" in config:
        return (str(config.get("weights")),)
    return PARAMS if _is_tuned_lens(config) else ()


def _file_for(repo_id: str, lm: LM) -> str | None:
    """The Jacobian-lens file of a repository that is named after this model."""
    fitting = [f for f in hub.files(repo_id) if (_file_model(f) or "").lower() in _names(lm)]
    if len(fitting) > 1:
        raise LenscopeError(f"{repo_id}: has {len(fitting)} lenses for {lm.name}; give one, as {repo_id}/{fitting[0]}")
    return fitting[0] if fitting else None
