"""nnterp's Patchscope of one source prompt over all layers, timed; prints one line of JSON.

    nnterp/bin/python nnterp_sweep.py --task lens --model FOLDER --repeats 3 --ids-json prompts.json

README.md beside this file says how to make the venv. ``prompts.json`` holds ``{"source": [ids], "target": [ids]}``;
the source's last token is written over the target's last one. nnterp numbers block outputs from 0: its layer l is
lenscope's l + 1, and the first block's input is out of its reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_common

COMPUTES = {
    "lens": "patchscope_lens: source pass, then one target pass per layer (source layer = target layer); next-token "
    "probabilities of the whole vocabulary",
    "grid": "source pass, then patchscope_lens(latents=...) with all source layers as the rows of every target layer's "
    "pass; next-token probabilities of the whole vocabulary for every source layer x target layer",
    "generate": "patchscope_generate(max_batch_size=32): source pass, then greedy continuations of all layers (source "
    "layer = target layer) in one batch, until every row has met an end-of-text token or max_length",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(COMPUTES), default="lens", help="what to run; grid is next token too")
    parser.add_argument("--model", required=True, type=Path, help="folder saved by transformers (safetensors)")
    parser.add_argument("--ids-json", required=True, type=Path, help='a JSON object of token ids: "source", "target"')
    parser.add_argument("--new-tokens", type=int, default=16, help="how many tokens --task generate writes")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, after one warm-up")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    args = parser.parse_args()
    if min(args.repeats, args.threads, args.new_tokens) < 1:
        parser.error("--repeats, --threads and --new-tokens must be 1 or more")
    return args


def main() -> None:
    args = parse_args()
    prompts = json.loads(args.ids_json.read_text(encoding="utf-8"))
    source, target = prompts["source"], prompts["target"]
    stdout_fd = peer_common.take_stdout()

    from importlib.metadata import version

    import torch
    from nnterp import StandardizedTransformer
    from nnterp.interventions import TargetPrompt, patchscope_generate, patchscope_lens
    from nnterp.nnsight_utils import get_token_activations

    torch.set_num_threads(args.threads)
    model = StandardizedTransformer(str(args.model), device_map="cpu", dtype=torch.float32)
    # nnsight takes ids wherever it takes text, so that every tool reads the very same tokens.
    placed = TargetPrompt(target, -1)

    def lens() -> Any:
        return patchscope_lens(model, [source], placed)

    def grid() -> Any:
        states = get_token_activations(model, [source])[:, 0]
        return patchscope_lens(model, target_patch_prompts=placed, latents=states.expand(len(states), -1, -1))

    def generate() -> Any:
        return patchscope_generate(model, [source], placed, max_length=args.new_tokens)

    def top5(probs: Any) -> dict[str, Any]:
        return {"cells": probs.shape[0] * probs.shape[1], "top5": probs.topk(5).indices.tolist()}

    def written(generations: Any) -> dict[str, Any]:
        new = [generations[layer][0, len(target) :].tolist() for layer in sorted(generations)]
        return {"cells": len(new), "new_tokens": args.new_tokens, "written": new}

    tasks: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]] = {
        "lens": (lens, top5),
        "grid": (grid, top5),
        "generate": (generate, written),
    }
    run, summary = tasks[args.task]
    measured = peer_common.measure(run, args.repeats, summary)
    record = {
        "peer": "nnterp",
        "version": version("nnterp"),
        "nnsight": version("nnsight"),
        "transformers": version("transformers"),
        "torch": torch.__version__,
        "model": str(args.model),
        "task": args.task,
        "tokens": len(target),
        "threads": torch.get_num_threads(),
        "computes": COMPUTES[args.task] + "; float32, sdpa attention, no_grad",
    }
    peer_common.emit(stdout_fd, {**record, **measured})


if __name__ == "__main__":
    main()
