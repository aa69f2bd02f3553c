"""Jacobian lenses of several runs as that of one run that read all their text.

Knows: folders of lenses with the sums of their halves, what of them is measured anew.
Does not know: how sums add up (jacobian_sums.py), how lenses are measured (jacobian_measuring.py).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.files.kinds import CONFIG
from lenscope.files.writing import folder_lock
from lenscope.fitting.jacobian_lens import jacobian_lens_of, make_run
from lenscope.fitting.jacobian_measuring import JacobianMeasures, padded
from lenscope.fitting.jacobian_sums import SUMS, JacobianSums, added_sums
from lenscope.mappings.mapping import Affine
from lenscope.models.language_model import LM
from lenscope.models.provenance import provenance
from lenscope.models.same_model import model_identity
from lenscope.text.corpus import Corpus
from lenscope.text.documents import Data


def merge_jacobian_lenses(
    lm: LM,
    folders: Sequence[str | os.PathLike[str]],
    data: "Data | None" = None,
    *,
    shrink: bool = True,
    folder: str | os.PathLike[str] | None = None,
) -> Affine:
    """Join Jacobian lenses that `fit_jacobian_lens` saved: the lens of one run that read the text of all of them.

    Every prompt weighs the same, wherever it was read. With `data` the lens is measured on the part of its documents
    that no run fitted, as a fit measures: how far the two halves agree, KL, shrinkage. Without, it is the plain mean,
    and its report has no rows of layers. The sums are saved, too: what was merged can be merged again, and fitted
    further.

    Args:
        lm: the model of all the lenses.
        folders: of the lenses; at least two.
        data: text to measure on, as `Corpus.open` takes it; None: nothing is measured.
        shrink: whether layers may be drawn towards cheaper estimates, with `data`.
        folder: where the merged lens is saved; None: nowhere.

    Raises LenscopeError for folders without sums of halves, lenses of other models or settings, and two lenses that
    read the same rows of a text.
    """
    names = [os.fspath(f) for f in folders]
    for name in names:
        if not JacobianSums.exists(Path(name) / SUMS):
            raise LenscopeError(
                f"{name}: has no sums of halves to merge; give folders that lenscope fit --recipe jacobian wrote"
            )
    if folder is not None and (Path(folder) / CONFIG).exists():
        raise LenscopeError(f"{folder}: holds a lens already; give another folder")
    sums = added_sums([JacobianSums.load(Path(name) / SUMS) for name in names], names)
    me, was = model_identity(lm), sums.settings
    if was["model"] != me["model_hash"] or sums.total.shape[-1] != lm.hidden_size:
        raise LenscopeError(f"{names[0]}: was fitted for another model than {lm.name}; give that model")
    sums.total = sums.total.to(lm.device)
    report = {
        "lens": "R-lens" if was["rule"] == "relp" else "Jacobian lens",
        **was,
        "prompts": sum(sums.prompts),
        "tokens": sum(sums.prompts) * was["length"],
        "merged": len(names),
        "made_with": provenance(lm),
    }
    if data is None:
        matrices = padded(sums.mean(), lm)
    else:
        corpus = Corpus.open(lm, data, length=was["length"], skip=was["skip"], seed=was["seed"])
        text, held = corpus.split(was["held_out"])
        run = make_run(lm, text, sums, (0, 1), Group())
        measures = JacobianMeasures.read(lm, held, LayerOwners(lm.n_layers, Group(), Group()))
        matrices, layers, drawn, about = measures.lens(sums, run.rows_of if shrink else None, corpus.seed)
        report |= {"corpus": text.provenance(), "held_out": about, "layers": layers, "shrinkage": drawn}
    lens = jacobian_lens_of(matrices, me, report)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            sums.save(Path(folder) / SUMS)
            lens.save(folder)
    return lens
