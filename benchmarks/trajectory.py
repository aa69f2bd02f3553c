"""Wall time and peak memory of a prediction trajectory over all layers, against its floor, the plain way and peers.

Every figure is a median over repeats. Ratios pair a repeat with the floor measured right after it in the same
process: one forward pass plus one unembedding of the same rows per layer. Memory is the peak resident set above the
loaded model, each tool in a process of its own. Peers run in environments of their own (benchmarks/peers/README.md).

    python benchmarks/trajectory.py --models smollm2-135m gemma3-270m --tl PYTHON --tuned PYTHON
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TEXT = HERE.parent / "LICENSE"  # English prose that is always there


def status_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def prepared(model: str, tokens: int):
    import lenscope as ls
    from lenscope.models.provenance import model_hash

    lm = ls.load(model)
    model_hash(lm.model)  # touches every page of the memory-mapped weights, so that none is charged to the run
    ids = list(lm.prompt(TEXT.read_text()).ids)[:tokens]
    return lm, ids


def floor(lm, ids) -> None:
    """One forward pass up to the last layer, and one unembedding of the same rows per layer."""
    import torch

    h = lm.read(ids)[:, :]
    with torch.no_grad():
        for state in h:
            lm.readout.columns(lm.readout.prepare(state), 0, lm.vocab_size)


def plain(lm, ids) -> None:
    """All logits stacked, then the same measures from their log-probabilities."""
    import torch

    from lenscope.measures import definitions as measures

    log_q = lm.unembed(lm.read(ids)[:, :]).log_softmax(-1)
    following = torch.tensor([*ids[1:], 0]).expand(len(log_q), -1)
    measures.entropy(log_q), measures.kl(log_q[-1:].expand_as(log_q), log_q)
    measures.surprisal(log_q, following), measures.rank(log_q, following), log_q.topk(5)


def trajectory(lm, ids) -> None:
    import lenscope as ls

    ls.Lens(lm).trajectory(ids)


TOOLS = {"lenscope": trajectory, "floor": floor, "plain": plain}


def child(model: str, tools: list[str], tokens: int, repeats: int) -> None:
    """In a process of its own: time `tools` in turn, and the peak memory of the first run of each."""
    lm, ids = prepared(model, tokens)
    trajectory(lm, ids[:8])  # lazy imports and first-time checks
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = status_kb("VmRSS")
    TOOLS[tools[0]](lm, ids)
    peak = (status_kb("VmHWM") - before) / 1000
    times: dict[str, list[float]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            began = time.perf_counter()
            TOOLS[tool](lm, ids)
            times[tool].append(time.perf_counter() - began)
    print(json.dumps({"peak_mb": peak, "times": times, "layers": lm.n_layers, "vocab": lm.vocab_size}))


def call(command: list[str]) -> dict | str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return (
        json.loads(lines[-1])
        if done.returncode == 0 and lines
        else (done.stderr.strip().splitlines() or ["failed"])[-1]
    )


def measure(model: str, args: argparse.Namespace) -> Iterator[dict]:
    me = [sys.executable, __file__, "--tokens", str(args.tokens), "--repeats", str(args.repeats), "--child", model]
    paired = call([*me, "lenscope", "floor"])
    if isinstance(paired, str):
        raise SystemExit(f"{model}: {paired}")
    mine, base = paired["times"]["lenscope"], paired["times"]["floor"]
    floor_s = statistics.median(base)
    ratio = statistics.median(a / b for a, b in zip(mine, base, strict=True))
    yield {"tool": "lenscope", "median_s": statistics.median(mine), "to_floor": ratio, "peak_mb": paired["peak_mb"]}
    alone = call([*me, "floor"])
    yield {"tool": "floor", "median_s": floor_s, "to_floor": 1.0, "peak_mb": alone["peak_mb"]}
    needed = 3 * (paired["layers"] + 1) * args.tokens * paired["vocab"] * 4 / 1e9
    if needed < args.memory:
        row = call([*me, "plain", "floor"])
        pairs = zip(row["times"]["plain"], row["times"]["floor"], strict=True)
        to_floor = statistics.median(a / b for a, b in pairs)
        seconds = statistics.median(row["times"]["plain"])
        yield {
            "tool": "plain: all logits stacked",
            "median_s": seconds,
            "to_floor": to_floor,
            "peak_mb": row["peak_mb"],
        }
    else:
        yield {"tool": "plain: all logits stacked", "note": f"needs about {needed:.0f} GB: not run"}
    for tool, python, script in (
        ("transformer-lens logit_lens", args.tl, "transformer_lens_trajectory.py"),
        ("tuned-lens PredictionTrajectory", args.tuned, "tuned_lens_trajectory.py"),
    ):
        if python:
            yield peer(tool, python, HERE / "peers" / script, model, args, floor_s)


def peer(tool: str, python: str, script: Path, model: str, args: argparse.Namespace, floor_s: float) -> dict:
    lm, ids = prepared(model, args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps(ids))
        where = lm.model.name_or_path
        del lm
        repeats = str(min(args.repeats, 3))
        found = call([python, str(script), "--model", where, "--tokens", str(args.tokens), "--repeats", repeats,
                      "--ids-json", str(file)])  # fmt: skip
    if isinstance(found, str):
        return {"tool": tool, "note": found[:120]}
    peak = found["peak_rss_mb"] - found["loaded_rss_mb"]
    return {
        "tool": f"{tool} {found['version']}",
        "median_s": found["median_s"],
        "to_floor": found["median_s"] / floor_s,
        "peak_mb": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, default=16, help="GB that the plain way may take")
    parser.add_argument("--tl", help="python of an environment with transformer-lens")
    parser.add_argument("--tuned", help="python of an environment with tuned-lens")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1:], args.tokens, args.repeats)
        return
    results = {}
    for model in args.models:
        results[model] = []
        print(f"\n{model}, {args.tokens} tokens, all layers, float32")
        print(f"{'':<40}{'median s':>10}{'× floor':>10}{'peak MB above the model':>26}")
        for row in measure(model, args):
            results[model].append(row)
            if "note" in row:
                print(f"{row['tool']:<40}  {row['note']}", flush=True)
            else:
                print(
                    f"{row['tool']:<40}{row['median_s']:>10.2f}{row['to_floor']:>10.2f}{row['peak_mb']:>26.0f}",
                    flush=True,
                )
    import torch

    machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"benchmark": "trajectory", "tokens": args.tokens, "machine": machine, "results": results}))


if __name__ == "__main__":
    main()
