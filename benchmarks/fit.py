"""Held-out KL of fitted lenses against tokens seen, wall time and peak memory: lenscope, the published recipe, peers.

All fits read the same rows of the same text, each in a process of its own, and are measured on the same held-out rows
of it, over the whole vocabulary, in float32. "published" is the recipe of Belrose et al. 2023 in lenscope (identity,
SGD with Nesterov momentum, all of the vocabulary) with --per-step tokens instead of 262,144 a step; "tuned-lens" is
that package's own loop in an environment of its own (benchmarks/peers/README.md), its lens read back by lenscope.
Seconds are those of fitting: reading, closed form, steps and choosing, without loading the model, tokenizing and the
final measurement.

    python benchmarks/fit.py --data TEXT.jsonl --tokens 3072 25600 102400 --published 32768 --tuned PYTHON
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
# glibc gives large buffers back to the system and pays for their pages again, also in peers: not so here
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}


def opened(args: argparse.Namespace):
    """The model, the text that is fitted and the text that is held out."""
    import lenscope as ls

    lm = ls.load(args.model)
    return lm, *text(lm, args).split(args.held_out)


def text(lm, args: argparse.Namespace):
    import lenscope as ls

    return ls.Corpus.open(lm, [Path(name) for name in args.data], seed=0)


def child(args: argparse.Namespace) -> None:
    """One fit, saved; prints what it took."""
    import lenscope as ls
    from lenscope.fitting.recipes import RECIPES

    lm = ls.load(args.model)
    recipe = RECIPES[args.child]
    if args.child == "published":
        recipe = replace(recipe, tokens_per_step=args.per_step)
    corpus = text(lm, args)
    began = time.perf_counter()
    f = ls.fit(lm, corpus, tokens=args.tokens[0], recipe=recipe, held_out=args.held_out)
    wall = time.perf_counter() - began
    f.save(args.save)
    spent = f.report["spent"]
    took = {"wall_s": wall, "seconds": sum(spent.values()) - spent["measuring"], "spent": spent}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({**took, "tokens": f.report["tokens"], "steps": f.report["steps"], "peak_mb": peak}))


def call(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **MALLOC})
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"note": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    return json.loads(lines[-1])


def fits(args: argparse.Namespace, folder: Path):
    """Every fit, one after the other: its name, what it took, and the folder of its lens."""
    for recipe, many in (("muon", args.tokens), ("ridge", args.ridge), ("published", args.published)):
        for tokens in many:
            where = folder / f"{recipe}{tokens}"
            same = ["--model", args.model, "--data", *args.data, "--held-out", str(args.held_out)]
            how = ["--tokens", str(tokens), "--per-step", str(args.per_step), "--child", recipe, "--save", str(where)]
            yield recipe, call([sys.executable, __file__, *same, *how]), where
    if args.tuned:
        yield from peers(args, folder)


def peers(args: argparse.Namespace, folder: Path):
    lm, fitted, _ = opened(args)
    source = folder / "model"
    lm.model.save_pretrained(source)
    for tokens in args.tuned_tokens:
        steps = tokens // args.per_step
        rows = [row for batch in fitted.batches(tokens) for row in batch.ids.tolist()]
        (folder / "rows.json").write_text(json.dumps(rows))
        where = folder / f"tuned{tokens}"
        script = HERE / "peers" / "tuned_lens_fit.py"
        files = ["--model", str(source), "--rows-json", str(folder / "rows.json"), "--output", str(where)]
        found = call([args.tuned, str(script), *files, "--steps", str(steps), "--per-step", str(args.per_step)])
        if "wall_s" in found:
            found = {**found, "seconds": found["wall_s"], "peak_mb": found["peak_rss_mb"], "steps": steps}
        yield "tuned-lens 0.2", found, where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
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
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        print(f"{args.model}, {args.data}")
        print(f"{'':<16}{'tokens':>8}{'steps':>7}{'seconds':>9}{'peak MB':>9}", flush=True)
        for recipe, found, where in fits(args, folder):
            rows.append({"recipe": recipe, "where": where, **found})
            told = (f"{found['tokens']:>8}{found['steps']:>7}{found['seconds']:>9.1f}{found['peak_mb']:>9.0f}"
                    if "seconds" in found else f"  {found['note']}")  # fmt: skip
            print(f"{recipe:<16}{told}", flush=True)
        measured(args, rows)
    import torch

    machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
    done = [{key: value for key, value in row.items() if key != "where"} for row in rows]
    print(json.dumps({"benchmark": "fit", "model": args.model, "data": args.data, "machine": machine, "results": done}))


def measured(args: argparse.Namespace, rows: list[dict]) -> None:
    """Held-out KL of every lens, by layer, with intervals: printed, and put into the rows."""
    import lenscope as ls

    lm, _, held = opened(args)
    lenses = {"logit lens": None}
    for row in rows:
        if "seconds" in row:
            row["name"] = f"{row['recipe']} {row['tokens']}"
            lenses[row["name"]] = ls.load_lens(row["where"], lm)
    for corpus in (held, *(ls.Corpus.open(lm, [Path(text)], seed=0) for text in args.also)):
        result = ls.evaluate(lm, corpus.batches(args.measured), lenses)
        kl = result.measure("kl")
        layers = [layer for layer in result.layers if layer < lm.n_layers]
        print(f"\nKL(model || lens) in nats on {result.tokens} held-out tokens of {corpus.name}")
        shown = [layer for layer in layers if layer % max(1, len(layers) // 6) == 0]
        print(f"{'':<24}{'mean':>8}{'1 on':>8}" + "".join(f"{layer:>8}" for layer in shown))
        for n, name in enumerate(lenses):
            values = [float(kl[n, layers.index(layer)]) for layer in layers]
            for row in rows:
                if row.get("name") == name:
                    row.setdefault("kl", {})[corpus.name] = [round(value, 4) for value in values]
            mean = [sum(some) / len(some) for some in (values, values[1:])]
            print(
                f"{name:<24}" + "".join(f"{v:>8.3f}" for v in (*mean, *(values[layer] for layer in shown))), flush=True
            )


if __name__ == "__main__":
    main()
