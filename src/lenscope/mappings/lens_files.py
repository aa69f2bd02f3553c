"""Fitted lenses from wherever they are: lenscope's folders, tuned-lens' folders, Jacobian-lens files, the hub.

Knows: which files make a lens, and where on the Hugging Face hub lenses are kept.
Does not know: what stands in the files of other packages (foreign_formats.py, jacobian_files.py), what lenses are
used for.
"""

import os
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files import hub
from lenscope.files.kinds import CONFIG
from lenscope.files.tensors import ENDINGS, read_tensors
from lenscope.files.untrusted import read_json
from lenscope.files.weights_folder import names_of_weights
from lenscope.files.yaml_files import read_document
from lenscope.mappings.foreign_formats import (
    PARAMS,
    describes_tuned_lens,
    names_of_model,
    read_tuned_lens,
)
from lenscope.mappings.jacobian_files import BESIDE, holds_jacobian_lens, model_of_file, read_jacobian_lens
from lenscope.mappings.mapping import PairMapping, load_mapping
from lenscope.models.language_model import LM

SPACE = "AlignmentResearch/tuned-lens"


def load_lens(where: str | os.PathLike[str], lm: LM) -> PairMapping:
    """Load a fitted lens for a model. `Lens(lm, f)` reads through it, and Patchscopes take it as f.

    It is found in a folder or a hub repository that lenscope saved; in a folder of the package tuned-lens, or under the
    model's name in the hub space that its lenses are kept in; or in a Jacobian-lens file, OWNER/REPOSITORY/PATH.pt, or
    a repository with one such file for this model. Translators that a tuned-lens file lacks are the identity, as they
    are before training; layers that a Jacobian lens lacks are left out. `report` of the result says what was read.

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
    if ("/" not in name and path.suffix in ENDINGS) or name.startswith((".", "/", "~")):
        raise LenscopeError(f"{name}: no such file or folder")
    return _lens_from_hub(name, lm)


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
    if not describes_tuned_lens(config):
        raise LenscopeError(f"{folder}: its {CONFIG} is not that of a lens; give a folder of lenscope or of tuned-lens")
    for name in PARAMS:
        if (folder / name).is_file():
            return read_tuned_lens(config, read_tensors(folder / name), lm, str(folder))
    raise LenscopeError(f"{folder}: has the {CONFIG} of a tuned lens, but no {' or '.join(PARAMS)}; copy it there too")


def _from_file(path: Path, lm: LM, name: str) -> PairMapping:
    content = read_tensors(path)
    if not holds_jacobian_lens(content):
        beside = path.with_name(CONFIG)
        if path.name in PARAMS and beside.is_file():
            return _from_folder(path.parent, lm)
        raise LenscopeError(f"{path}: is no Jacobian lens: it has no J; for a tuned lens give the folder")
    about = path.with_name(BESIDE)
    return read_jacobian_lens(content, lm, name, read_document(about) if about.is_file() else None)


def _config(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise LenscopeError(f"{path}: is no JSON object")
    return content


def _lens_from_hub(name: str, lm: LM) -> PairMapping:
    parts = name.split("/")
    if len(parts) > 2 and name.endswith(ENDINGS):
        path = _fetch_with_config("/".join(parts[:2]), "/".join(parts[2:]), name)
        if path is not None:
            return _from_file(path, lm, name)
    elif len(parts) == 2:
        config = hub.fetch_file(name, CONFIG)
        if config is None:
            file = _file_for(name, lm)
            path = _fetch_with_config(name, file, name) if file else None
            if path is not None:
                return _from_file(path, lm, f"{name}/{file}")
        else:
            there = [hub.fetch_file(name, file) is not None for file in _files_beside(name, config)]
            if any(there):
                return _from_folder(config.parent, lm)
    if len(parts) <= 2:
        config = hub.fetch_file(SPACE, f"lens/{name}/{CONFIG}", "space", name)
        if config is not None and hub.fetch_file(SPACE, f"lens/{name}/{PARAMS[0]}", "space", name):
            return _from_folder(config.parent, lm)
    raise LenscopeError(
        f"{name}: no such folder, and no lens for {lm.name} of this name on the hub, nor in the space {SPACE}; give "
        "the folder that a lens was saved to, or OWNER/REPOSITORY (private ones need: hf auth login)"
    )


def _fetch_with_config(repo_id: str, file: str, named: str) -> Path | None:
    """A file of a repository, and what lies beside it of a Jacobian lens, where there is such a file."""
    path = hub.fetch_file(repo_id, file, named=named)
    if path is not None:
        hub.fetch_if_reachable(repo_id, f"{file.rpartition('/')[0]}/{BESIDE}".lstrip("/"))
    return path


def _files_beside(name: str, path: Path) -> tuple[str, ...]:
    """The files that may go with the config of a repository; none with that of a model."""
    config = _config(path)
    if "kind" in config:
        return tuple(names_of_weights(config))
    return PARAMS if describes_tuned_lens(config) else ()


def _file_for(repo_id: str, lm: LM) -> str | None:
    """The Jacobian-lens file of a repository that is named after this model."""
    fitting = [f for f in hub.list_files(repo_id) if (model_of_file(f) or "").lower() in names_of_model(lm)]
    if len(fitting) > 1:
        raise LenscopeError(f"{repo_id}: has {len(fitting)} lenses for {lm.name}; give one, as {repo_id}/{fitting[0]}")
    return fitting[0] if fitting else None
