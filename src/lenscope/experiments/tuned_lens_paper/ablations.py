"""What every block does to the loss, and whether later blocks make up for one that is missing.

Knows: the changes and their controls, which text measures, what counts as harmless, how the numbers are read.
Does not know: how a block is changed or what is measured (interventions/block_ablation.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel, Series
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.report import Report, ReportTable
from lenscope.experiments.setting import HELD_OUT, Setting
from lenscope.interventions.block_ablation import (
    Change,
    RandomDirection,
    Resampling,
    ablate_blocks,
    deletion,
    mean_update,
)
from lenscope.interventions.block_ablation_results import MEASURES, BlockAblations
from lenscope.statistics.intervals import Estimate, interval
from lenscope.text.corpus import TokenBatch

CLAIM = (
    "Deleting any single block of a transformer is harmless, except the first (Belrose et al. 2023, appendix, after "
    "Veit et al. 2016, who found it of residual networks for images): blocks refine a prediction step by step, and "
    "later ones make up for one that is missing. No number per block is at hand to compare with."
)
LENGTH = 128
# tokens that measure
MEASURED = {"quick": 768, "full": 2_048}
# tokens that means are taken over
AVERAGED = {"quick": 2_048, "full": 4_096}
# tokens that lenses read
READ_BY_LENSES = {"quick": 512, "full": 1_024}
# one prediction in so many counts: neighbours tell little more, and unembedding costs more than all blocks above
COUNTED = 4
# a block is harmless where its loss is less than this share of what the first one costs
HARMLESS = 0.1
KEPT = "deletion but at the first token"
UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def first_kept(update: Tensor, layer: int) -> Tensor:
    """The block adds nothing but at the first position of a row, where attention sinks have their states."""
    return torch.cat([update[:, :1], torch.zeros_like(update[:, 1:])], 1)


def _run_ablations(setting: Setting) -> Report:
    """The loss without each block, beside controls; direct effects; what lenses read above a deleted block."""
    lm, n = setting.lm, setting.lm.n_layers
    length = min(LENGTH, setting.corpus.length)
    fitted, held_out = (replace(part, length=length) for part in setting.corpus.split(HELD_OUT))
    text = [_thinned(batch, setting.seed) for batch in held_out.batches(setting.choose(**MEASURED))]
    other = fitted.batches(setting.choose(**AVERAGED))
    means = setting.cached("means", lambda: mean_update(lm, other))
    changes: dict[str, Change] = {
        "deletion": deletion,
        KEPT: first_kept,
        "resampling": Resampling(setting.seed),
        "mean": means,
        "random direction": RandomDirection(setting.seed),
    }
    # quick: the controls at every third block
    fewer = None if not setting.quick else sorted({1, 2, *range(3, n, 3), n - 1, n} & {*range(1, n + 1)})
    by_change = {
        name: _ablated(setting, name, text, {name: change}, None if name == "deletion" else fewer)
        for name, change in changes.items()
    }
    nothing = _ablated(setting, "nothing", [_few(text[0])], {"nothing": lambda update, _: update})
    deleted = tuple(sorted({1, 2, *np.linspace(3, n, 6).round().astype(int).tolist()} & {*range(1, n)}))
    read = tuple(sorted({*deleted, *range(n - n // 8, n)} | {n}))
    lenses = {"logit lens": None, "tuned lens": setting.translators}
    shown = text[: max(1, setting.choose(**READ_BY_LENSES) // text[0].ids.numel())]
    above = _ablated(setting, "above", shown, {"deletion": deletion}, layers=deleted, lenses=lenses, read=read)
    tables: dict[str, ReportTable] = {
        "loss by block": [
            {
                "block": b,
                **{name: a.estimate("loss", name, b) if b in a.layers else UNKNOWN for name, a in by_change.items()},
            }
            for b in range(1, n + 1)
        ],
        "deletion": [
            {"block": b, **{m: by_change["deletion"].estimate(m, "deletion", b) for m in MEASURES if m != "loss"}}
            for b in range(1, n + 1)
        ],
        "changes": [_summary_of_blocks(name, a) for name, a in {**by_change, "nothing": nothing}.items()],
        "lenses above a deleted block": _recovery(above),
    }
    whole = by_change["deletion"]
    return Report(
        experiment="ablations",
        model=lm.name,
        claim=CLAIM,
        reading=_ablations_reading(by_change, nothing, above),
        tables=tables,
        figures=(_ablations_figure(by_change, above),),
        settings=setting.settings(
            tokens=whole.tokens,
            units=len(whole.counts),
            row=length,
            loss=float(whole.own.sum() / whole.counts.sum()),
        ),
        provenance=setting.provenance(),
    )


def _thinned(batch: TokenBatch, seed: int) -> TokenBatch:
    """The rows with one in `COUNTED` of their predictions, drawn at random."""
    draw = torch.Generator().manual_seed(seed * 1009 + int(batch.row[0]))
    drawn = torch.rand(batch.counted.shape, generator=draw) < 1 / COUNTED
    return replace(batch, counted=batch.counted & drawn)


def _few(batch: TokenBatch) -> TokenBatch:
    """The first two rows."""
    return replace(batch, row=batch.row[:2], ids=batch.ids[:2], document=batch.document[:2], counted=batch.counted[:2])


def _ablated(
    setting: Setting, name: str, text: Sequence[TokenBatch], changes: Mapping[str, Change],
    layers: Sequence[int] | None = None, lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    read: Sequence[int] = (),
) -> BlockAblations:  # fmt: skip
    """Ablations of all blocks, or those that make `layers`, with what lenses read above them; cached under the name."""
    lm = setting.lm
    numbers = tuple(range(1, lm.n_layers + 1) if layers is None else layers)

    def compute() -> BlockAblations:
        with setting.progress(f"batches of text: {name}") as advance:
            return ablate_blocks(lm, text, changes, numbers, lenses=lenses, read=read, progress=advance)

    tokens = sum(batch.ids.numel() for batch in text)
    return setting.cached(name.replace(" ", "-"), compute, tokens=tokens, layers=[*numbers], read=[*read])


def _summary_of_blocks(name: str, a: BlockAblations) -> dict[str, Any]:
    loss = a.column("loss")[0]
    worst = a.layers[int(loss.argmax())]
    first = loss[0] or np.nan
    return {
        "change": name,
        "first block": a.estimate("loss", name, 1),
        "median of the others": float(np.median(loss[1:])) if len(loss) > 1 else np.nan,
        "worst of the others": float(loss[1:].max()) if len(loss) > 1 else np.nan,
        "worst block": worst,
        "others": len(loss) - 1,
        "others under a tenth of the first": int((loss[1:] < HARMLESS * first).sum()),
        "direct KL / KL": float(a.column("direct_kl")[0].sum() / a.column("kl")[0].sum()) if loss.any() else np.nan,
    }


def _recovery(a: BlockAblations) -> list[dict[str, Any]]:
    """KL over that of the model as it is, where the block stood, half way up, and at the end."""
    rows = []
    for lens in a.lenses:
        for b in a.layers:
            above = [m for m in a.read if m >= b]
            spots = {"at the block": above[0], "half way": above[len(above) // 2], "at the end": above[-1]}
            kl = {where: a.reading("kl", lens, "deletion", b, m) for where, m in spots.items()}
            top = {f"agreement {w}": a.reading("agreement", lens, "deletion", b, m) for w, m in spots.items()}
            rows.append({"lens": lens, "block": b, **{f"KL {w}": v for w, v in kl.items()}, **top})
    return rows


def _ablations_reading(by_change: Mapping[str, BlockAblations], nothing: BlockAblations, above: BlockAblations) -> str:
    whole = by_change["deletion"]
    of = {b: whole.estimate("loss", "deletion", b) for b in whole.layers}
    own = float(whole.own.sum() / whole.counts.sum())
    first, rest = of[1], {b: e for b, e in of.items() if b > 1}
    harmful = {b: e for b, e in rest.items() if e.value >= HARMLESS * first.value}
    largest = first.value >= max((e.value for e in rest.values()), default=0)
    median = float(np.median([e.value for e in rest.values()])) if rest else np.nan
    costs = f"Leaving out block 1 costs {interval(first, 3)} nats per token (the model's own loss is {own:.2f}). "
    costs += f"The median of the other {len(rest)} blocks is {median:.3f}."
    if largest and not harmful:
        verdict = "Replicates: no other block costs a tenth of the first."
    else:
        listed = ", ".join(f"{b} ({interval(e, 3)})" for b, e in sorted(harmful.items(), key=lambda x: -x[1].value))
        part = "Replicates in part: the first block costs most" if largest else "Does not replicate: the first block "
        part += "" if largest else f"costs less than block {max(rest, key=lambda b: rest[b].value)}"
        verdict = f"{part}, and {len(harmful)} of {len(rest)} others cost at least a tenth of it: {listed}."
    none = [b for b, e in rest.items() if e.low <= 0]
    free = f"Blocks after the first that may cost nothing, since the interval reaches 0: {len(none)} of {len(rest)}."
    sinks = by_change[KEPT]
    eased = [b for b in sinks.layers if sinks.estimate("loss", KEPT, b).high < of[b].low]
    sink = (
        "Attention sink: where a block's update is left out but at the first token of a row, it costs clearly less at "
        f"{_list(eased)}."
        if eased
        else ""
    )
    direct = {b: whole.estimate("repair", "deletion", b) for b in whole.layers[:-1]}
    mends, spoils = ([b for b, e in direct.items() if sign(e)] for sign in (lambda e: e.low > 0, lambda e: e.high < 0))
    repair = (
        "Later blocks make up for a missing one (the last prediction is nearer to the model's own than if they did not "
        f"react) at {len(mends)} of {len(direct)} blocks, and make it worse at {len(spoils)}."
    )
    same = [b - 1 for b in sinks.layers if b > 1]
    others = ", ".join(
        f"{name} {float(np.median(a.column('loss')[0][same if name == 'deletion' else slice(1, None)])):.3f}"
        for name, a in by_change.items()
    )
    controls = (
        f"Controls: median cost of {_count_in_words(len(same), 'block')} after the first, by what is put in the place "
        f"of the update: {others}. Putting back exactly what a block adds changes the loss by at most "
        f"{float(np.abs(nothing.sums['loss']).max()):.1g}."
    )
    return "\n".join(filter(None, (verdict, costs, free, sink, repair, _recovered(above), controls)))


def _recovered(a: BlockAblations) -> str:
    parts = []
    for lens in a.lenses:
        ends = {b: [a.reading("kl", lens, "deletion", b, m).value for m in a.read if m >= b] for b in a.layers if b > 1}
        falls = [b for b, kl in ends.items() if kl[-1] < kl[0]]
        parts.append(f"{len(falls)} of {len(ends)} by the {lens}")
    nearer = ", ".join(parts)
    return (
        "Between a deleted block (after the first) and the end, the prediction that a lens reads comes nearer to the "
        f"model's own at {nearer}."
    )


def _count_in_words(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _list(blocks: Sequence[int]) -> str:
    return f"block{'' if len(blocks) == 1 else 's'} {', '.join(map(str, blocks))}"


def _ablations_figure(by_change: Mapping[str, BlockAblations], above: BlockAblations) -> Figure:
    curves = [
        curve(name, a.layers, [a.estimate("loss", name, b) for b in a.layers], name in ("random direction", KEPT))
        for name, a in by_change.items()
    ]
    whole = by_change["deletion"]
    effects = [
        Series(label, whole.layers, whole.column(measure)[0].tolist())
        for measure, label in (("kl", "later blocks react"), ("direct_kl", "later blocks as before"))
    ]
    lens = above.lenses[-1]
    over = (above.read_sums["kl"][-1, 0] - above.clean["kl"][-1]).sum(-1) / above.counts.sum()
    ways = [
        Series(f"without block {b}", above.read[i:], over[n, i:].tolist())
        for n, b in enumerate(above.layers)
        for i in [sum(m < b for m in above.read)]
    ]
    return Figure(
        "ablations",
        [
            Panel("Loss without a block", "block", "nats per token more", curves, log=True),
            Panel("Deletion", "block", "KL(model ‖ without), nats", effects, log=True),
            Panel(f"{lens} above a deleted block", "layer", "KL more than with it, nats", ways),
        ],
    )


EXPERIMENT = Experiment(data="text", run=_run_ablations)
