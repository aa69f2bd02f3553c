"""Full grids on random models of families that the engine has to treat in ways of their own, against plain hooks.

For each family a random model of 24 blocks: the last state of a source prompt, from every layer to every layer, 25 × 25
rows at the placeholder of a target prompt, which is its last token, or has a few tokens after it. The next token of
every row, then a few written tokens, in the mode that the engine measured to be exact and by hooks on whole prompts.
Both must find the same: logits as close as the model's own rounding, and the same tokens. The plain way runs every n-th
row (--every) and its time is scaled up, as its rows cost the same. Every figure is a median over repeats, and the ratio
that of the two in the same process, in turn.

    python benchmarks/families.py mamba2 jamba gemma3n_text
    python benchmarks/families.py --blocks 6 --repeats 1 mamba     # a minute
"""

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch

import lenscope as ls
from lenscope.engine import exact_modes, sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.models.deviations import deviation
from lenscope.models.edits import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import tiny

RECURRENT = (
    "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "jamba", "bamba", "nemotron_h", "zamba",
    "zamba2", "minimax", "qwen4_exp_text",
)  # fmt: skip
OTHERS = (
    "gemma3n_text", "gemma4_text", "gemma4_unified_text", "longcat_flash", "openai-gpt", "xmod", "zaya",
)  # fmt: skip
COLUMNS: timing.Columns = {
    "family": ("family", 22, ""),
    "parameters": ("M params", 10, ".1f"),
    "mode": ("  mode", 10, ""),
    "task": ("task", 22, ""),
    "mode_s": ("s", 9, ".2f"),
    "plain_s": ("plain s", 10, ".2f"),
    "ratio": ("plain / mode", 24, ".1f"),
    "gap": ("logits differ", 15, ".1e"),
    "equal": ("   same texts", 14, ""),
}
# sizes of tests/support/tiny.py that grow with the width, and those that the number of blocks decides
WIDTHS = {16, 32, 64}
HEADS = ("head_dim", "dim_head", "kv_channels", "rotary_dim", "mamba_d_head")


def build(family: str, blocks: int, times: int) -> ls.LM:
    """A random model of a family: as the tests' tiny one, with more blocks, and `times` as wide."""
    small, overrides = dict(tiny.SMALL), {name: dict(values) for name, values in tiny.OVERRIDES.items()}
    depths = {name for name, value in tiny.SMALL.items() if "layers" in name or name == "n_layer"}
    kept = {"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "chunk_size", "mamba_chunk_size"}
    for name, value in tiny.SMALL.items():
        if name in depths:
            small[name] = blocks
        elif name in kept:
            small[name] = value if "chunk" in name else 512
        elif name.endswith(HEADS) or (value in WIDTHS and "window" not in name and "state" not in name):
            small[name] = value * times
    own = _deeper(overrides.get(family, {}), blocks, times)
    if family == "nemotron_h":
        kinds = ["linear_attention", "mlp", "linear_attention", "moe", "full_attention", "mlp"]
        own["layer_types"] = (kinds * blocks)[:blocks]
    before = tiny.SMALL, tiny.OVERRIDES, tiny.LARGEST
    tiny.SMALL, tiny.OVERRIDES = small, {family: own}
    tiny.LARGEST = 400_000_000
    try:
        return ls.LM(tiny.model(family), None, family)
    finally:
        tiny.SMALL, tiny.OVERRIDES, tiny.LARGEST = before


def _deeper(values: dict, blocks: int, times: int) -> dict:
    """What a family's own configuration says of 4 blocks, of as many as there are, and of wider ones."""
    deeper = {}
    for name, value in values.items():
        if isinstance(value, dict):
            deeper[name] = _deeper(value, blocks, times)
        elif isinstance(value, list) and len(value) == 4:
            deeper[name] = (value * blocks)[:blocks]
        elif name == "attn_layer_indices":
            deeper[name] = list(range(1, blocks, 2))
        elif name == "num_kv_shared_layers":
            deeper[name] = blocks // 2
        elif isinstance(value, int) and (value in WIDTHS or name.endswith(HEADS)):
            deeper[name] = value * times
        else:
            deeper[name] = value
    return deeper


def grid(lm: ls.LM, length: int, after: int) -> PatchedRows:
    """Rows from every layer of a source prompt's last state to every layer of a target prompt's placeholder."""
    n = lm.n_layers + 1
    source, target = (tiny.ids(lm.model, 1, size, seed=size)[0].tolist() for size in (9, length))
    layers = np.arange(n * n)
    return PatchedRows(
        prompts=(lm.prompt(target),),
        target=np.zeros(n * n, dtype=np.int64),
        vectors=lm.read(source)[:, -1],
        row=layers,
        layer=layers % n,
        position=np.full(n * n, length - 1 - after),
        vector=layers // n,
        op=np.zeros(n * n, dtype=np.int64),
        ops=(replace,),
    )


def predicted(lm: ls.LM, rows: PatchedRows, mode: str | None) -> torch.Tensor:
    h = torch.zeros(len(rows), lm.hidden_size)
    for which, states in sweep.predict(lm, rows, mode=mode):
        h[which] = states[:, 0].cpu()
    return h


def written(lm: ls.LM, rows: PatchedRows, mode: str | None, new: int) -> list[tuple[int, ...]]:
    texts: list[tuple[int, ...]] = [()] * len(rows)
    writer = TokenChooser(lm, len(rows), new, (), 0.0, 1.0, 0)
    for which, wrote in sweep.generate(lm, rows, writer.choose, new, mode=mode):
        for n, one in zip(which.tolist(), wrote, strict=True):
            texts[n] = one.ids
    return texts


def both(lm: ls.LM, rows: PatchedRows, every: int, new: int) -> tuple[Callable[[], Any], Callable[[], Any], dict]:
    """Calls that run the rows in the engine's mode and a part of them plainly, and how what they find differs."""
    some = np.arange(0, len(rows), every)
    few = rows.only(some)
    if new:
        ours, plain = partial(written, lm, rows, None, new), partial(written, lm, few, "plain", new)
        found, expected = ours(), plain()
        equal = sum(found[n] == text for n, text in zip(some, expected, strict=True))
        return ours, plain, {"equal": f"{equal}/{len(some)}"}
    ours, plain = partial(predicted, lm, rows, None), partial(predicted, lm, few, "plain")
    found, expected = ours(), plain()
    return ours, plain, {"gap": deviation(lm.unembed(found[some]), lm.unembed(expected))}


def measure(family: str, options: Any) -> list[dict]:
    lm = build(family, options.blocks, options.times)
    millions = sum(p.numel() for p in lm.model.parameters()) / 1e6
    results = []
    for after, new in itertools.product(options.after, (0, options.new)):
        rows = grid(lm, options.length, after)
        mode = exact_modes.fastest_exact_mode(lm, options.length - 1 - after, options.length, new)
        row: dict[str, Any] = {"family": family, "parameters": millions, "mode": f"  {mode}"}
        row["task"] = f"{f'{new} tokens' if new else 'next token'}, {after} after"
        if mode == "plain":
            row["note"] = "as plain hooks"
        else:
            ours, plain, gap = both(lm, rows, options.every, new)
            scale = len(rows) / len(range(0, len(rows), options.every))
            clocks = {"mode": timing.clock(ours), "plain": timing.clock(plain, scale)}
            times = timing.in_turn(clocks, options.repeats)
            row |= gap
            row["mode_s"], row["plain_s"] = (timing.spread(times[name]).middle for name in ("mode", "plain"))
            row["ratio"] = timing.paired(times["plain"], times["mode"])
        results.append(row)
        timing.print_row(COLUMNS, row)
    return results


def main() -> None:
    parser = timing.options(__doc__, repeats=3, model=False)
    parser.add_argument("families", nargs="*", default=[*RECURRENT, *OTHERS])
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--times", type=int, default=8, help="how many times as wide as the tests' tiny models, 32")
    parser.add_argument("--length", type=int, default=20, help="tokens of the target prompt")
    parser.add_argument("--after", type=int, nargs="+", default=[0, 5], help="tokens behind the placeholder")
    parser.add_argument("--new", type=int, default=8, help="tokens that rows write")
    parser.add_argument("--every", type=int, default=5, help="the plain way runs every n-th row")
    options = parser.parse_args()
    timing.print_machine()
    timing.print_heading(COLUMNS)
    began, results = time.perf_counter(), []
    for family in options.families:
        try:
            results += measure(family, options)
        except (ls.LenscopeError, ValueError, RuntimeError) as error:
            results.append({"family": family, "note": " ".join(str(error).split())[:150]})
            timing.print_row(COLUMNS, results[-1])
    setting = {name: value for name, value in vars(options).items() if name not in ("child", "families")}
    timing.print_closing("families", results, **setting, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
