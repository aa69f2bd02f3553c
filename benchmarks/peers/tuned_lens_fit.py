"""tuned-lens' own training loop on given rows of token ids, timed; saves its lens and prints one line of JSON.

    tuned/bin/python tuned_lens_fit.py --model FOLDER --rows-json rows.json --steps 128 --output LENS

README.md beside this file says how to make the venv. Everything is the package's: `Train.execute` with its defaults
(SGD with Nesterov momentum, learning rate 1, weight decay 1e-3, KL), except the rows, so that a benchmark can give
the same ones to others, and the tokens of a step, which are --per-step instead of 2**18.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import peer_common
from tuned_lens_trajectory import folder_for_transformers_4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path, help="folder saved by transformers (safetensors)")
    parser.add_argument("--rows-json", required=True, type=Path, help="a JSON list of rows of token ids, equally long")
    parser.add_argument("--steps", type=int, required=True, help="how many steps; the schedule ends with them")
    parser.add_argument("--per-step", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--lr-scale", type=float, default=1.0, help="the package's lr_scale")
    parser.add_argument("--output", required=True, type=Path, help="folder for the lens")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    args = parser.parse_args()
    rows = json.loads(args.rows_json.read_text(encoding="utf-8"))
    length = len(rows[0])
    if args.steps * args.per_step > len(rows) * length:
        # the package would stop in silence
        parser.error(f"{len(rows)} rows of {length} tokens are fewer than {args.steps} steps of {args.per_step}")
    stdout_fd = peer_common.take_stdout()

    from importlib.metadata import version

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from tuned_lens.scripts import ingredients
    from tuned_lens.scripts.train_loop import Train

    class Model(ingredients.Model):
        def load(self, device, must_use_cache=False):
            with tempfile.TemporaryDirectory() as folder:
                source = folder_for_transformers_4(args.model, Path(folder))
                model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            model.eval().requires_grad_(False)
            return model, "none: rows are token ids"

    class Rows(ingredients.Data):
        def load(self, tokenizer):
            return Dataset.from_dict({"input_ids": rows}).with_format("torch"), 1.0

    torch.set_num_threads(args.threads)
    train = Train(
        model=Model(name=str(args.model), precision="float32"),
        data=Rows(),
        opt=ingredients.Optimizer(lr_scale=args.lr_scale),
        dist=ingredients.Distributed(),
        output=args.output,
        num_steps=args.steps,
        tokens_per_step=args.per_step,
    )
    ready = train.setup()
    train.setup = lambda: ready
    loaded = peer_common.rss_mb()
    peer_common.reset_peak()
    begin = time.perf_counter()
    train.execute()
    wall = time.perf_counter() - begin
    record = {
        "peer": "tuned-lens",
        "version": version("tuned-lens"),
        "transformers": version("transformers"),
        "torch": torch.__version__,
        "model": str(args.model),
        "tokens": args.steps * args.per_step,
        "per_step": args.per_step,
        "lr_scale": args.lr_scale,
        "threads": torch.get_num_threads(),
        "wall_s": round(wall, 2),
        "loaded_rss_mb": loaded,
        "peak_rss_mb": peer_common.peak_rss_mb(),
        "computes": "Train.execute without loading: forward passes, KL and its gradient layer by layer, SGD, saving",
    }
    peer_common.emit(stdout_fd, record)


if __name__ == "__main__":
    main()
