"""Files of Jacobian lenses, read and written: one .pt file of matrices by block, and a config.yaml beside it.

Knows: what stands in both, which other names a file has for it, what models with parallel streams need.
Does not know: where files lie (lens_files.py), how a Jacobian lens is fitted or used.

Jacobian lens (Gurnee et al. 2026; anthropics/jacobian-lens, jlens/lens.py, read in copies of it; TransformerLens 4.3
reads and writes the same): one .pt file with J {block: (D, D)}, in float16, n_prompts, source_layers, d_model. Blocks
count from 0, so the output of block k is layer k + 1 here; J maps it to the last block's output before the final norm.
Copies for models with parallel streams have d_source too, and J (d_model, d_source), whose result is the one state
that the streams are merged into (xiangchensong/jacobian-lens-open-frontier). A fit that has not ended leaves
jacobian_sum, the sum over n_done prompts, in place of J. TransformerLens adds metadata with model_name, target_layer
and estimator; the hub's files that were fitted elsewhere have provenance with capture_point and stream_reduce.

config.yaml, as on the hub in neuronpedia/jacobian-lens, MODEL/jlens/CORPUS/: hf_model_name, dataset {name, …}, fit
{n_prompts, the number asked for, target_layer, …}, results {prompts_fitted, …}. A fit ends early where it has
converged: prompts_fitted is how many the finished lens is the mean of.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenscope._version import __version__
from lenscope.errors import LenscopeError
from lenscope.files.writing import whole_file
from lenscope.mappings.foreign_formats import affine_of_file, check_model_name, floating_weight
from lenscope.mappings.mapping import Affine, Pair, PairMapping
from lenscope.mappings.model_card import hub_name
from lenscope.models.deviations import FAILURES, TOLERANCE, deviation
from lenscope.models.language_model import LM
from lenscope.models.layers import numbers_in_runs

BESIDE = "config.yaml"
# without and with the rules of relevance propagation
LENS, BY_RULES = "Jacobian lens", "R-lens"
# what the largest number of float16 is
_LARGEST = 65504.0


def holds_jacobian_lens(content: Mapping[Any, Any]) -> bool:
    """Whether the content of a .pt file is that of a Jacobian lens, or of a fit of one that has not ended."""
    return isinstance(content.get("J"), dict) or isinstance(content.get("jacobian_sum"), dict)


def model_of_file(where: str) -> str | None:
    """The model that the name of a Jacobian-lens file says, as in gpt2_jacobian_lens.pt; None where it says none."""
    match = re.fullmatch(r"(.+)_jacobian_lens(?:_n\d+)?\.pth?", Path(where).name)
    return match[1] if match else None


def read_jacobian_lens(content: dict[Any, Any], lm: LM, where: str, config: Any = None) -> Affine:
    """A Jacobian lens from what its file holds, and the config.yaml beside it, for `lm`; layers it lacks are left out.

    Where the states of `lm` are n parallel streams, and the lens gives the one state that they are merged into, the
    result is n copies of that: (D, D) matrices, n times what the file holds. `report` says "unfinished", in words, of
    a lens of fewer prompts than its fit was to have. Raises LenscopeError, about `where`, for one of another model or
    size, and for what is no matrix by block.
    """
    about = _described(content, config if isinstance(config, dict) else {}, where)
    matrices, prompts = _matrices_of_file(content, where)
    blocks = sorted(matrices)
    finished = isinstance(content.get("J"), dict)
    listed = content.get("source_layers")
    if isinstance(listed, list | tuple) and finished:
        if not all(type(k) is int for k in listed):
            raise LenscopeError(
                f"{where}: source_layers hold {next(k for k in listed if type(k) is not int)!r}; they must be block "
                "numbers"
            )
        if sorted(listed) != blocks:
            raise LenscopeError(
                f"{where}: source_layers are {_in_words(sorted(listed))}, but J has the blocks {_in_words(blocks)}"
            )
    _check_names(about, where, lm)
    last = lm.n_layers - 1
    if about["target"] is not None and not (type(about["target"]) is int and about["target"] in (-1, last)):
        raise LenscopeError(f"{where}: maps to block {about['target']!r}; {lm.name} is read after block {last}")
    if about["captured"] not in (None, "block_output"):
        raise LenscopeError(f"{where}: reads {about['captured']!r}; lenses here read the outputs of blocks")
    if last in matrices and matrices[last].shape[0] == matrices[last].shape[1]:
        end = matrices[last].float()
        if (end - torch.eye(len(end))).abs().max() < 1e-2:  # to itself the last layer is mapped without weights
            blocks.remove(last)
    whole = blocks == list(range(len(blocks)))
    if (
        not blocks
        or blocks[0] < 0
        or blocks[-1] > lm.n_layers - 2
        or (whole and not about["names"] and len(blocks) < lm.n_layers - 1)
    ):
        raise LenscopeError(
            f"{where}: has blocks {_in_words(blocks)}; of {lm.name} it would have 0–{lm.n_layers - 2}, so it was "
            "fitted for another model"
        )
    first = matrices[blocks[0]]
    for block in blocks:
        if matrices[block].shape != first.shape:
            raise LenscopeError(
                f"{where}: block {block} has a matrix {tuple(matrices[block].shape)}, and block {blocks[0]} "
                f"{tuple(first.shape)}"
            )
    streams = _copies_needed(content, first, about, lm, where)
    report = {
        "lens": BY_RULES if about["relp"] else LENS,
        "format": "jacobian-lens",
        "base_model": about["names"][0] if about["names"] else None,
        "prompts": prompts,
        **_fit_of(about, prompts, not finished),
    }
    weights: dict[Pair, tuple[Tensor, ...]] = {}
    for k in blocks:
        matrix = floating_weight(matrices[k], where, k).float()
        if streams > 1:
            matrix = _of_all_copies_needed(matrix, streams, about)
        weights[k + 1, lm.n_layers] = (matrix,)
    if streams > 1:
        report["streams"] = streams
    return affine_of_file(weights, report, lm, where)


def _in_words(blocks: list[Any]) -> str:
    """Blocks in a few words, also what a file gives in their place: 0–2, 5."""
    whole = all(type(k) is int for k in blocks)
    words = numbers_in_runs(blocks) if whole else ", ".join(map(str, blocks))
    return (words if len(words) <= 80 else words[:79] + "…") or "none"


def _mapping_in(of: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    """A part of a document that is a mapping; empty where it is anything else."""
    part = of.get(name)
    return part if isinstance(part, dict) else {}


def _described(content: dict[Any, Any], config: dict[Any, Any], where: str) -> dict[str, Any]:
    """What a file and the config beside it say of a lens, in one set of words."""
    metadata, provenance = _mapping_in(content, "metadata"), _mapping_in(content, "provenance")
    described = _mapping_in(config, "lens").get("file")
    if described is not None and described != Path(where).name:
        config = {key: value for key, value in config.items() if key == "hf_model_name"}
    fit = _mapping_in(config, "fit")
    names = [metadata.get("model_name"), provenance.get("model_id"), config.get("hf_model_name")]
    targets = [metadata.get("target_layer"), provenance.get("target_layer"), content.get("target_layer")]
    return {
        "names": [n for n in names if isinstance(n, str) and n] or [n for n in (model_of_file(where),) if n],
        "target": next((t for t in (*targets, fit.get("target_layer")) if t is not None), None),
        "captured": provenance.get("capture_point"),
        "merged": provenance.get("stream_reduce"),
        "stream": provenance.get("stream_index"),
        "asked": fit.get("n_prompts"),
        "fitted": _mapping_in(config, "results").get("prompts_fitted"),
        "corpus": next(
            (
                c
                for c in (
                    _mapping_in(config, "dataset").get("name"),
                    metadata.get("corpus"),
                    provenance.get("dataset_id"),
                )
                if isinstance(c, str)
            ),
            None,
        ),
        "relp": metadata.get("estimator") == "relevance_lens",
    }


def _matrices_of_file(content: dict[Any, Any], where: str) -> tuple[dict[int, Tensor], int | None]:
    """The matrices by block, and how many prompts they are the mean of."""
    sums = None if isinstance(content.get("J"), dict) else content["jacobian_sum"]
    matrices = content["J"] if sums is None else sums
    if not matrices or not all(type(k) is int and isinstance(j, Tensor) and j.ndim == 2 for k, j in matrices.items()):
        raise LenscopeError(f"{where}: its J must hold matrices by block number")
    prompts = content.get("n_prompts" if sums is None else "n_done")
    if sums is not None:
        if type(prompts) is not int or prompts < 1:
            raise LenscopeError(f"{where}: holds jacobian_sum of n_done {prompts!r} prompts, of which there is no mean")
        matrices = {k: floating_weight(j, where, k).float() / prompts for k, j in sums.items()}
    elif type(prompts) is int and prompts < 0:
        raise LenscopeError(f"{where}: is the mean of n_prompts {prompts}; give a lens of 1 or more, or 0 for unknown")
    return matrices, prompts if type(prompts) is int else None


def _check_names(about: dict[str, Any], where: str, lm: LM) -> None:
    for name in about["names"]:
        check_model_name(where, lm, name)


def _fit_of(about: dict[str, Any], prompts: int | None, checkpoint: bool) -> dict[str, Any]:
    """What a report says of the fit: where its text comes from, what was asked for, whether it has ended."""
    wanted = about["fitted"] if type(about["fitted"]) is int else about["asked"]
    row: dict[str, Any] = {}
    if about["corpus"]:
        row["corpus"] = {"data": about["corpus"]}
    if type(about["asked"]) is int:
        row["prompts_asked"] = about["asked"]
    if about["relp"]:
        row["rule"] = "relp"
    if prompts is not None and type(wanted) is int and prompts < wanted:
        row["unfinished"] = f"unfinished: the mean of {prompts} of {wanted} prompts"
    elif checkpoint:
        row["unfinished"] = f"unfinished: a checkpoint of a fit after {prompts} prompts"
    return row


def _copies_needed(content: dict[Any, Any], first: Tensor, about: dict[str, Any], lm: LM, where: str) -> int:
    """How many copies of a result make a state of `lm`; LenscopeError where matrices like `first` do not fit it."""
    size = lm.hidden_size
    n, *rest = lm.runner.anatomy.stream.rest
    n = n if rest else 1
    to, of = content.get("d_model", first.shape[0]), content.get("d_source", content.get("d_model", first.shape[1]))
    if not type(to) is type(of) is int or first.shape != (to, of):
        raise LenscopeError(f"{where}: says d_model {to!r} from {of!r}, but its matrices are {tuple(first.shape)}")
    if (to, of) == (size, size):
        return 1
    if n > 1 and to == size // n:
        reduced = about["merged"] in ("mean", "sum") or (
            about["merged"] == "select" and type(about["stream"]) is int and 0 <= about["stream"] < n
        )
        if of == to and not reduced:
            raise LenscopeError(
                f"{where}: reads one state of size {of}; those of {lm.name} are {n} streams of it, and the file does "
                "not say which (provenance: stream_reduce)"
            )
        if of in (to, size):
            _require_copies(lm, n, where)
            return n
    sizes = f"{size} ({n} streams of {size // n})" if n > 1 else f"{size}"
    wide = f"{to}" if to == of else f"{of}, which it maps to {to}"
    raise LenscopeError(f"{where}: was fitted for states of size {wide}; {lm.name} has {sizes}")


@torch.no_grad()
def _require_copies(lm: LM, n: int, where: str) -> None:
    """Raise LenscopeError unless n copies of a vector are read as norm and head read the vector itself."""
    anatomy = lm.runner.anatomy
    last = anatomy.states[-1]
    merged = torch.randn(2, lm.hidden_size // n, generator=torch.Generator().manual_seed(0))
    merged = (merged * float(last.float().std())).to(last)
    with lm.lock:
        logits = lm.unembed(merged.repeat(1, n))
        try:
            alone = merged
            for _, module in anatomy.tail[-2:]:
                alone = module(alone)
            gap = deviation(alone.to(logits), logits)
        except FAILURES:
            gap = float("inf")
    # compared as rounded as the model computes
    if not gap <= max(TOLERANCE.get(last.dtype, 1e-4), 1e-4):
        raise LenscopeError(
            f"{where}: maps to the one state that {n} streams are merged into; {lm.name} reads {n} equal streams as "
            f"another state (off by {gap:.2g} standard deviations of the logits), so this lens cannot be read"
        )


def _of_all_copies_needed(matrix: Tensor, n: int, about: dict[str, Any]) -> Tensor:
    """The matrix (D, D) from all streams, side by side, to n copies of what `matrix` gives."""
    if matrix.shape[0] == matrix.shape[1]:
        shares = torch.zeros(n)
        if about["merged"] == "select":
            shares[about["stream"]] = 1.0
        else:
            # a mean in place of a sum changes only the length, which the norm takes out
            shares[:] = 1.0 / n
        matrix = torch.cat([matrix * share for share in shares], dim=1)
    return matrix.repeat(n, 1)


def export_jacobian_lens(mapping: PairMapping, path: str | os.PathLike[str]) -> None:
    """Write a Jacobian lens as a .pt file of the field's format, with a config.yaml beside it.

    jlens, TransformerLens and Neuronpedia read the file: J {l - 1: (D, D)} for the layers l = 1…n_layers-1, in float16
    (each number is off by at most 2^-11 of itself), n_prompts, source_layers, d_model. The format counts the outputs
    of blocks, so layer 0 has no place in it and is left out. A lens that was read from a file of a model with n
    parallel streams is written as it was there, J (d, n·d).

    Raises LenscopeError unless the mapping is a Jacobian lens or an R-lens (`report["lens"]`), without biases, from
    every layer 1…n_layers-1 of a model to its last, and for numbers that float16 does not hold.

    Args:
        mapping: the lens.
        path: the file, which ends in .pt; its folder has to be there.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise LenscopeError(f"{path}: give a file that ends in .pt")
    n_layers, size, report = mapping.source["n_layers"], mapping.source["hidden_size"], mapping.report
    named = report.get("lens", "a mapping")
    if mapping.source != mapping.target:
        named = "a mapping between two models"
    if named not in (LENS, BY_RULES) or not isinstance(mapping, Affine):
        raise LenscopeError(f"{mapping!r}: is no Jacobian lens but {named}; fit one")
    if report.get("target_layer", n_layers) != n_layers:
        raise LenscopeError(
            f"{mapping!r}: its target is layer {report['target_layer']}; the file's readers take {n_layers}, the last"
        )
    streams = report.get("streams", 1)
    matrices: dict[int, Tensor] = {}
    for layer in range(1, n_layers):
        weights = mapping.weights.get((layer, n_layers))
        if weights is None:
            raise LenscopeError(
                f"{mapping!r}: none from layer {layer}; the file holds every layer 1–{n_layers - 1} to {n_layers}"
            )
        a, b = (w.detach().cpu() for w in weights)
        if b.any():
            raise LenscopeError(f"{mapping!r}: layer {layer} has a bias, which a Jacobian lens has not")
        if (largest := float(a.abs().max())) > _LARGEST:
            raise LenscopeError(f"{mapping!r}: layer {layer} has {largest:.4g}, and float16 ends at {_LARGEST:,.0f}")
        if streams > 1 and not a.equal(a[: size // streams].repeat(streams, 1)):
            raise LenscopeError(f"{mapping!r}: layer {layer} gives {streams} streams that are not the same")
        matrices[layer - 1] = a[: size // streams].half()
    prompts = report.get("prompts")
    content: dict[str, Any] = {
        "J": matrices,
        "n_prompts": prompts if type(prompts) is int else 0,
        "source_layers": sorted(matrices),
        "d_model": size // streams,
    }
    if streams > 1:
        content["d_source"] = size
    if named == BY_RULES:
        content["metadata"] = {"estimator": "relevance_lens"}
    config = _config_beside(mapping, path.name, content)
    try:
        with whole_file(path.with_name(BESIDE)) as text, whole_file(path) as tensors:
            text.write_text(config, encoding="utf-8")
            torch.save(content, tensors)
    except (OSError, RuntimeError) as error:
        raise LenscopeError(f"{path}: cannot be written ({' '.join(str(error).split())[:200]})") from error


def name_of_jacobian_file(mapping: PairMapping) -> str:
    """The name that the file of a lens has on the hub: the model's, without its owner, and _jacobian_lens.pt."""
    name = hub_name(mapping.source["model"]).rstrip("/").rsplit("/", 1)[-1]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}_jacobian_lens.pt"


def _config_beside(mapping: Affine, name: str, content: dict[str, Any]) -> str:
    """The config.yaml beside a file: JSON values by key, which YAML reads as they stand."""
    report, blocks, prompts = mapping.report, content["source_layers"], content["n_prompts"]
    corpus = report["corpus"] if isinstance(report.get("corpus"), dict) else {}
    about = {
        "hf_model_name": hub_name(mapping.source["model"]),
        "dataset": {"name": corpus.get("data")},
        "fit": {
            "n_prompts": report.get("prompts_asked", prompts),
            "max_seq_len": corpus.get("length"),
            "target_layer": None,
            "dtype": mapping.source.get("dtype"),
        },
        "lens": {
            "file": name,
            "d_model": content["d_model"],
            "source_layers_first": blocks[0],
            "source_layers_last": blocks[-1],
            "n_source_layers": len(blocks),
            "capture_point": "block_output",
        },
        "results": {"prompts_fitted": prompts if not report.get("unfinished") else None},
        "attribution": f"Jacobian lens (Gurnee et al. 2026), written by lenscope {__version__}",
    }
    lines = ["# Jacobian lens, in the format of anthropics/jacobian-lens"]
    for key, value in about.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {part}: {json.dumps(one)}" for part, one in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
