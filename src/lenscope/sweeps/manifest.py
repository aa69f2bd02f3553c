"""The manifest of a sweep's folder: which sweep it is, of which models, and which parts it has when it is complete.

Knows: what makes a folder that of another sweep, and in which one line that is told. Does not know: how parts are run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenscope._version import __version__
from lenscope.errors import LenscopeError
from lenscope.files.untrusted import TEXT_LIMIT, checked_reading, escaped, read_text
from lenscope.files.writing import write_text
from lenscope.sweeps.parts import Part
from lenscope.sweeps.spec import SweepSpec, spec_digest

MANIFEST = "manifest.json"
VERSION = 1


def manifest_of(
    spec: SweepSpec, inputs: Mapping[str, str], models: Mapping[str, str], parts: Sequence[Part]
) -> dict[str, Any]:
    """What is written down of a sweep before its first part.

    Args:
        spec: what is asked for.
        inputs: digests of files that the spec names, by their names in it.
        models: identities of models, by the names that the spec gives them.
        parts: all parts, in order.
    """
    return {
        "kind": "sweep",
        "version": VERSION,
        "lenscope": __version__,
        "spec": spec.document(),
        "spec_sha256": spec_digest(spec),
        "inputs": dict(inputs),
        "models": dict(models),
        "rows": sum(part.rows for part in parts),
        "parts": [[part.digest, part.rows] for part in parts],
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where it has none; LenscopeError for one that is damaged or of another format."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    with checked_reading(path, "is no manifest of a sweep"):
        manifest = json.loads(read_text(path, TEXT_LIMIT))
        if manifest["kind"] != "sweep" or manifest["version"] != VERSION:
            raise ValueError(f"it has kind {str(manifest['kind'])[:40]}, version {str(manifest['version'])[:40]}")
        if not all(isinstance(d, str) and type(n) is int and n > 0 for d, n in manifest["parts"]):
            raise ValueError("its parts are not digests and numbers of rows")
        if manifest["rows"] != sum(n for _, n in manifest["parts"]):
            raise ValueError("its rows are not those of its parts")
        for key in ("spec_sha256", "lenscope"):
            if not isinstance(manifest[key], str):
                raise ValueError(f"its {key} is no text")
        return {
            **manifest,
            "spec": dict(manifest["spec"]),
            "models": dict(manifest["models"]),
            "inputs": dict(manifest["inputs"]),
        }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a folder's manifest, whole or not at all."""
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=None) + "\n")


def listed_parts(manifest: Mapping[str, Any]) -> list[Part]:
    """The parts that a manifest lists: their numbers, rows and digests, not what is in them."""
    return [Part(n, -1, -1, -1, rows, digest) for n, (digest, rows) in enumerate(manifest["parts"])]


def require_same_sweep(folder: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise LenscopeError where a folder holds another sweep than is wanted; what `wanted` lacks is not compared."""
    name = escaped(folder)
    if known["spec_sha256"] != wanted["spec_sha256"]:
        others = sorted(k for k in {*known["spec"], *wanted["spec"]} if known["spec"].get(k) != wanted["spec"].get(k))
        raise LenscopeError(
            f"{name}: holds the sweep of another spec ({', '.join(map(escaped, others))} differ); give another folder"
        )
    for what, key in (("file", "inputs"), ("model", "models")):
        changed = sorted(n for n in wanted.get(key, {}) if known[key].get(n) != wanted[key][n])
        if changed:
            raise LenscopeError(
                f"{name}: was begun with another {what} {escaped(changed[0])}, with other contents than now; give "
                "another folder"
            )
    if "parts" in wanted and known["parts"] != wanted["parts"]:
        raise LenscopeError(
            f"{name}: its rows are not those of this spec: a mapping has changed, or how rows are made since lenscope "
            f"{escaped(known['lenscope'])}; give another folder"
        )
