"""Held-out KL of fitted lenses against tokens seen, wall time and peak memory: lenscope, the published recipe, peers.

All fits read the same rows of the same text, each in a process of its own, and are measured on the same held-out rows
of it, over the whole vocabulary, in float32. "published" is the recipe of Belrose et al. 2023 in lenscope (identity,
SGD with Nesterov momentum, all of the vocabulary) with --per-step tokens instead of 262,144 a step; "tuned-lens" is
that package's own loop in an environment of its own (benchmarks/peers/README.md), its lens read back by lenscope.
Seconds are those of fitting: reading, closed form, steps and choosing, without loading the model, tokenizing and the
final measurement. Memory is the peak resident set of the whole process. With --against, lenscope's fits run with this
checkout's code and another's.

    python benchmarks/fit.py --data TEXT.jsonl --tokens 3072 25600 102400 --published 32768 --tuned PYTHON
    python benchmarks/fit.py --data TEXT.jsonl --tokens 3072 --ridge 3072 --against OTHER/src
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkouts
import timing

import lenscope as ls

# glibc gives large buffers back to the system and pays for their pages again, also in peers: not so here
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}


COLUMNS: timing.Columns = {
    "recipe": ("", 16, ""),
    "tokens": ("tokens", 8, "d"),
    "steps": ("steps", 7, "d"),
    "seconds": ("seconds", 9, ".1f"),
    "peak_mb": ("peak MB", 9, ".0f"),
}


def opened(args: argparse.Namespace):
    """The model, the text that is fitted and the text that is held out."""
    lm = ls.load(args.model)
    return lm, *text(lm, args).split(args.held_out)


def text(lm, args: argparse.Namespace):
    return ls.Corpus.open(lm, [Path(name) for name in args.data], seed=0)


def child(name: str, where: str, args: argparse.Namespace) -> None:
    """In a process of its own: one fit, saved, and what it took."""
    lm = ls.load(args.model)
    corpus = text(lm, args)
    lenses = []
    began = time.perf_counter()
    _, peak_mb = timing.memory_of(
        lambda: lenses.append(
            ls.fit(lm, corpus, tokens=args.tokens[0], recipe=recipe(name, args), held_out=args.held_out)
        )
    )
    wall = time.perf_counter() - began
    lenses[0].save(where)
    report = lenses[0].report
    spent = report["spent"]
    seconds = sum(spent.values()) - spent["measuring"]
    numbers = {"tokens": report["tokens"], "steps": report["steps"], "wall_s": wall, "spent": spent}
    timing.answer({name: [seconds]}, peak_mb, seconds=seconds, **numbers)


def recipe(name: str, args: argparse.Namespace) -> Any:
    """The recipe of that name; the published one with --per-step tokens a step."""
    if name != "published":
        return name
    try:
        from lenscope.fitting.recipes import RECIPES
    except ImportError:  # another checkout may be older
        from lenscope.tuning import RECIPES

    return replace(RECIPES[name], tokens_per_step=args.per_step)


def work(name: str, tokens: int, where: Path, args: argparse.Namespace) -> list[str]:
    """The command line of a child that fits."""
    same = ["--model", args.model, "--data", *args.data, "--held-out", str(args.held_out)]
    return [*same, "--tokens", str(tokens), "--per-step", str(args.per_step), "--child", name, str(where)]


def fits(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Every fit, one after the other: its name, what it took, and the folder of its lens."""
    for name, sizes in (("muon", args.tokens), ("ridge", args.ridge), ("published", args.published)):
        for tokens in sizes:
            where = folder / f"{name}{tokens}"
            took = timing.child(work(name, tokens, where, args), MALLOC, may_fail=True)
            yield {"recipe": name, "where": where, **took}
    if args.tuned:
        yield from peers(args, folder)


def peers(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    lm, fitted, _ = opened(args)
    source = folder / "model"
    lm.model.save_pretrained(source)
    for tokens in args.tuned_tokens:
        steps = tokens // args.per_step
        rows = [row for batch in fitted.batches(tokens) for row in batch.ids.tolist()]
        (folder / "rows.json").write_text(json.dumps(rows))
        where = folder / f"tuned{tokens}"
        files = ["--model", str(source), "--rows-json", str(folder / "rows.json"), "--output", str(where)]
        sizes = ["--steps", str(steps), "--per-step", str(args.per_step)]
        ran = timing.call([args.tuned, str(timing.PEERS / "tuned_lens_fit.py"), *files, *sizes], MALLOC)
        if "note" not in ran:
            ran = {**ran, "seconds": ran["wall_s"], "peak_mb": ran["peak_rss_mb"], "steps": steps}
        yield {"recipe": "tuned-lens 0.2", "where": where, **ran}


def measured(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Held-out KL of every lens, by layer: printed, and put into the rows."""
    lm, _, held = opened(args)
    lenses = {"logit lens": None}
    for row in rows:
        if "seconds" in row:
            row["name"] = f"{row['recipe']} {row['tokens']}"
            lenses[row["name"]] = ls.load_lens(row["where"], lm)
    for corpus in (held, *(ls.Corpus.open(lm, [Path(name)], seed=0) for name in args.also)):
        result = ls.evaluate(lm, corpus.batches(args.measured), lenses)
        kl = result.measure("kl")
        layers = [layer for layer in result.layers if layer < lm.n_layers]
        shown = [layer for layer in layers if layer % max(1, len(layers) // 6) == 0]
        print(f"\nKL(model || lens) in nats on {result.tokens} held-out tokens of {corpus.name}")
        columns: timing.Columns = {"lens": ("", 24, ""), "mean": ("mean", 8, ".3f"), "later": ("1 on", 8, ".3f")}
        columns |= {str(layer): (str(layer), 8, ".3f") for layer in shown}
        timing.print_heading(columns)
        for n, name in enumerate(lenses):
            values = [float(kl[n, result.layers.index(layer)]) for layer in layers]
            for row in rows:
                if row.get("name") == name:
                    row.setdefault("kl", {})[corpus.name] = [round(value, 4) for value in values]
            means = {"mean": sum(values) / len(values), "later": sum(values[1:]) / len(values[1:])}
            by_layer = {str(layer): values[layers.index(layer)] for layer in shown}
            timing.print_row(columns, {"lens": name, **means, **by_layer})


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="text as lenscope fit takes it")
    parser.add_argument("--also", nargs="*", default=[], help="other texts that every lens is measured on")
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--tokens", nargs="*", type=int, default=[3072, 12800, 102400], help="fits of lenscope")
    parser.add_argument("--ridge", nargs="*", type=int, default=[3072, 102400], help="fits of its closed form alone")
    parser.add_argument("--published", nargs="*", type=int, default=[], help="fits with the published recipe")
    parser.add_argument("--per-step", type=int, default=1024, help="tokens of a step of the published recipe")
    parser.add_argument("--tuned", help="python of an environment with tuned-lens")
    parser.add_argument("--tuned-tokens", nargs="*", type=int, default=[131072], help="fits of that package")
    parser.add_argument("--measured", type=int, default=8192, help="held-out tokens of each text")
    checkouts.add_option(parser)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args)
        return
    timing.print_machine()
    setting = {"model": args.model, "data": args.data}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.against:
            sizes = {"muon": args.tokens, "ridge": args.ridge}
            works = {f"{name}, {n} tokens": work(name, n, folder / "lens", args) for name in sizes for n in sizes[name]}
            results = checkouts.compare(works, args.against, args.repeats, MALLOC)
            timing.print_closing("fit, two checkouts", results, **setting)
            return
        rows = []
        print(f"{args.model}, {args.data}")
        timing.print_heading(COLUMNS)
        for row in fits(args, folder):
            rows.append(row)
            timing.print_row(COLUMNS, row)
        measured(args, rows)
    results = [{key: value for key, value in row.items() if key not in ("where", "times", "source")} for row in rows]
    timing.print_closing("fit", results, **setting)


if __name__ == "__main__":
    main()
