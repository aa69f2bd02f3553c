"""What lenscope saves: each kind of file and folder, told from outside, and the function that reads it again.

Knows: by which mark a file says what it holds. Does not know: what is in it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import CONFIG_LIMIT, escaped, read_json

CONFIG = "config.json"
# kind → what it is called, and what reads it
KINDS = {
    "trajectory": ("trajectory", "load_results(path)"),
    "attribution": ("attribution of a logit", "load_results(path)"),
    "comparison": ("comparison", "load_results(path)"),
    "side by side": ("trajectory through several lenses", "load_results(path)"),
    "grid": ("grid", "load_grid(path)"),
    "effects": ("table of effects", "load_effects(path)"),
    "edit effects": ("table of what edits did", "load_edit_effects(path)"),
    "odd positions": ("table of odd positions", "load_results(path)"),
    "evaluation": ("evaluation", "load_evaluation(path)"),
    "transfer": ("transfer matrix", "load_evaluation(path)"),
    "mapping": ("mapping", "load_lens(folder, lm) or load_mapping(folder)"),
    "tuned-lens": ("lens of the package tuned-lens", "load_lens(folder, lm)"),
    "basis": ("basis", "load_basis(folder)"),
    "detector": ("detector", "load_detector(folder, lm)"),
    "softprompt": ("soft prompt", "load_soft_prompt(folder)"),
    "verbaliser": ("verbaliser", "load_verbaliser(folder, lm)"),
    "verbaliserrun": ("checkpoint of a verbaliser", "fit_verbaliser(lm, …, folder=the folder above it)"),
    "jacobian": ("half of a Jacobian lens", "merge_jacobian_lenses(lm, [the folder above it, …])"),
    "checkpoint": ("checkpoint", "fit(lm, …, folder=the folder above it)"),
    "sums": ("checkpoint of an evaluation", "evaluate(lm, …, folder=the folder above it)"),
    "report": ("report", "any reader of JSON or Parquet"),
    "influence": ("table of influences", "any reader of JSON"),
}
# keys of a Parquet file's metadata
PARQUET = {
    "lenscope": "trajectory", "side_by_side": "side by side", "grid": "grid", "effects": "effects",
    "evaluation": "evaluation",
}  # fmt: skip


def kind_of_path(path: str | os.PathLike[str]) -> str | None:
    """The kind of what lenscope saved at a path, told by its marks alone; None for what has none. Never raises."""
    path = Path(path)
    try:
        if path.is_dir():
            config = read_json(path / CONFIG)
            if config.get("kind") == "checkpoint":
                return "checkpoint"
            weights = config.get("weights", "")
            first = weights[0] if isinstance(weights, list) else weights
            stem = re.match(r"([a-z]+)(-[0-9a-f]{16})?\.safetensors$", str(first))
            if stem is None and "d_model" in config and "model_type" not in config:
                return "tuned-lens"
            # before weights had names of their own
            named = stem[1] if stem else "mapping" if {"kind", "pairs", "sha256"} <= {*config} else ""
            return named if named in KINDS else None
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            import pyarrow.parquet as pq

            marks = [k.decode("ascii", "replace") for k in pq.read_schema(path).metadata or {}]
            return next((PARQUET[m] for m in marks if m in PARQUET), "report" if "report" in marks else None)
        value = read_json(path, CONFIG_LIMIT)
        kind = kind_of_document(value[0] if isinstance(value, list) else value)
        return kind if kind in KINDS else None
    except Exception:  # whatever is there, it has no mark of lenscope's
        return None


def kind_of_document(document: Mapping[str, Any]) -> Any:
    """The kind that a document or a head says it is; None where it says none."""
    return "grid" if document.get("kind") in ("predict", "generate") else document.get("kind")


def refusal(path: str | os.PathLike[str], wanted: str, reason: object) -> LenscopeError:
    """The error of a loader of one kind that cannot read a path: what is there instead, else the reason."""
    kind = kind_of_path(path)
    name = escaped(os.fspath(path))
    noun = KINDS.get(wanted, (wanted, ""))[0]
    if kind is not None and KINDS[kind][1] != KINDS.get(wanted, ("", ""))[1]:
        what, loader = KINDS[kind]
        return LenscopeError(f"{name}: is no {noun} but {'an' if what[0] in 'aeio' else 'a'} {what}; {loader} reads it")
    why = str(reason).removeprefix(f"{name}: ")
    return LenscopeError(f"{name}: is no {noun} that lenscope saved ({why})")
