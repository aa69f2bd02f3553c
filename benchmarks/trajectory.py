"""Wall time and peak memory of a prediction trajectory over all layers, against its floor, the plain way and peers.

Every figure is a median over repeats. Ratios pair a repeat with the floor measured right after it in the same
process: one forward pass plus one unembedding of the same rows per layer. Memory is the peak resident set above the
loaded model, each tool in a process of its own. Peers run in environments of their own (benchmarks/peers/README.md).
With --against, only lenscope runs, this checkout's and another's.

    python benchmarks/trajectory.py --models smollm2-135m gemma3-270m --tl PYTHON --tuned PYTHON
    python benchmarks/trajectory.py --against OTHER/src
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkouts
import timing

import lenscope as ls

TEXT = timing.HERE.parent / "LICENSE"  # English prose that is always there
COLUMNS: timing.Columns = {
    "tool": ("", 40, ""),
    "median_s": ("median s", 10, ".2f"),
    "ratio": ("× floor", 20, ".2f"),
    "peak_mb": ("peak MB above the model", 26, ".0f"),
}


def prepared(model: str, tokens: int):
    lm = ls.load(model)
    timing.touch(lm.model)
    text = TEXT.read_text()[: 16 * tokens]  # more than enough, and not more than the model reads
    ids = list(lm.prompt(text).ids)[:tokens]
    return lm, ids


def floor(lm, ids) -> None:
    """One forward pass up to the last layer, and one unembedding of the same rows per layer."""
    import torch

    h = lm.read(ids)[:, :]
    # also that of versions whose LM has the readout itself
    readout = getattr(lm, "runner", lm).readout
    with torch.no_grad():
        for state in h:
            readout.columns(readout.prepare(state), 0, lm.vocab_size)


def plain(lm, ids) -> None:
    """All logits stacked, then the same measures from their log-probabilities."""
    import torch

    from lenscope.measures import definitions as measures

    log_q = lm.unembed(lm.read(ids)[:, :]).log_softmax(-1)
    following = torch.tensor([*ids[1:], 0]).expand(len(log_q), -1)
    measures.entropy(log_q), measures.kl(log_q[-1:].expand_as(log_q), log_q)
    measures.surprisal(log_q, following), measures.rank(log_q, following), log_q.topk(5)


def trajectory(lm, ids) -> None:
    ls.Lens(lm).trajectory(ids)


TOOLS = {"lenscope": trajectory, "floor": floor, "plain": plain}


def child(model: str, tools: list[str], tokens: int, repeats: int) -> None:
    """In a process of its own: the peak memory of the first of `tools`, then the time of all of them in turn."""
    lm, ids = prepared(model, tokens)
    trajectory(lm, ids[:8])  # lazy imports and first-time checks
    peak_mb = timing.peak_above(lambda: TOOLS[tools[0]](lm, ids))
    clocks = {tool: timing.clock(lambda tool=tool: TOOLS[tool](lm, ids)) for tool in tools}
    layers, vocab = len(ls.Lens(lm).trajectory(ids[:2]).layers), lm.model.get_output_embeddings().weight.shape[0]
    timing.answer(timing.in_turn(clocks, repeats), peak_mb, layers=layers, vocab=vocab)


def measure(model: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row of every tool: lenscope, the floor, the plain way if it fits into memory, and the peers there are."""
    own = ["--tokens", str(args.tokens), "--repeats", str(args.repeats), "--child", model]
    pair = timing.child([*own, "lenscope", "floor"])
    rows = timing.summary(pair["times"], "floor")
    yield {"tool": "lenscope", **rows["lenscope"], "peak_mb": pair["peak_mb"]}
    yield {"tool": "floor", **rows["floor"], "peak_mb": timing.child([*own, "floor"])["peak_mb"]}
    name, needed = "plain: all logits stacked", 3 * pair["layers"] * args.tokens * pair["vocab"] * 4 / 1e9
    if needed < args.memory:
        stacked = timing.child([*own, "plain", "floor"], may_fail=True)
        if "note" in stacked:
            yield {"tool": name, **stacked}
        else:
            yield {"tool": name, **timing.summary(stacked["times"], "floor")["plain"], "peak_mb": stacked["peak_mb"]}
    else:
        yield {"tool": name, "note": f"needs about {needed:.0f} GB: not run"}
    for tool, python, script in (
        ("transformer-lens logit_lens", args.tl, "transformer_lens_trajectory.py"),
        ("tuned-lens PredictionTrajectory", args.tuned, "tuned_lens_trajectory.py"),
    ):
        if python:
            yield peer(tool, [python, str(timing.PEERS / script)], model, args, rows["floor"]["median_s"])


def peer(tool: str, command: list[str], model: str, args: argparse.Namespace, floor_s: float) -> dict[str, Any]:
    lm, ids = prepared(model, args.tokens)
    where = lm.model.name_or_path
    del lm
    repeats = str(min(args.repeats, 3))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps(ids))
        ran = timing.call([*command, "--model", where, "--tokens", str(args.tokens), "--repeats", repeats,
                           "--ids-json", str(file)])  # fmt: skip
    if "note" in ran:
        return {"tool": tool, **ran}
    return {
        "tool": f"{tool} {ran['version']}",
        "median_s": ran["median_s"],
        "ratio": ran["median_s"] / floor_s,
        "peak_mb": ran["peak_rss_mb"] - ran["loaded_rss_mb"],
    }


def main() -> None:
    parser = timing.options(__doc__, model=False)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--memory", type=float, default=16, help="GB that the plain way may take")
    parser.add_argument("--tl", help="python of an environment with transformer-lens")
    parser.add_argument("--tuned", help="python of an environment with tuned-lens")
    checkouts.add_option(parser)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1:], args.tokens, args.repeats)
        return
    timing.print_machine()
    if args.against:
        own = ["--tokens", str(args.tokens), "--repeats", "3", "--child"]
        works = {f"{model}, {args.tokens} tokens": [*own, model, "lenscope"] for model in args.models}
        results = checkouts.compare(works, args.against, args.repeats)
        timing.print_closing("trajectory, two checkouts", results, tokens=args.tokens)
        return
    results = {}
    for model in args.models:
        results[model] = []
        print(f"\n{model}, {args.tokens} tokens, all layers, float32")
        timing.print_heading(COLUMNS)
        for row in measure(model, args):
            results[model].append(row)
            timing.print_row(COLUMNS, row)
    timing.print_closing("trajectory", results, tokens=args.tokens)


if __name__ == "__main__":
    main()
