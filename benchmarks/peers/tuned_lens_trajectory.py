"""tuned-lens' prediction trajectory (logit lens) over all layers and positions, timed; prints one line of JSON.

    tuned/bin/python tuned_lens_trajectory.py --model FOLDER --tokens 512 --repeats 3 --ids-json ids.json

README.md beside this file says how to make the venv. tuned-lens 0.2.0 runs on transformers 4, so the folder's
config.json is rewritten for it, in a temporary folder that links to the weights. The trajectory holds the
log-probabilities of the whole vocabulary at once, layers x tokens x vocabulary: 3 GB for 512 tokens of SmolLM2-135M,
and about three times that at its peak.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import peer_common


def config_for_transformers_4(config: dict) -> dict:
    """A config.json of transformers 5 in transformers 4's words (``rope_theta``, ``torch_dtype``)."""
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope and "full_attention" in rope:  # Gemma 3: one setting for each kind of layer
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    elif rope:
        rope = dict(rope)
        config["rope_theta"] = rope.pop("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    config.pop("transformers_version", None)
    return config


def folder_for_transformers_4(model: Path, target: Path) -> Path:
    """Fill ``target`` with the rewritten config and links to the weights; the tokenizer is not needed."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config_for_transformers_4(config)), encoding="utf-8")
    for file in model.glob("model*.safetensors*"):
        (target / file.name).symlink_to(file.resolve())
    return target


def main() -> None:
    args = peer_common.parse_args(__doc__.splitlines()[0])
    ids = peer_common.read_ids(args)
    stdout_fd = peer_common.take_stdout()

    from importlib.metadata import version

    import torch
    from transformers import AutoModelForCausalLM
    from tuned_lens.nn.lenses import LogitLens
    from tuned_lens.plotting import PredictionTrajectory

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        source = folder_for_transformers_4(args.model, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.eval()
    lens = LogitLens.from_model(model)
    targets = ids[1:] + ids[-1:]  # the package wants one target for each position; the last one has none of its own
    steps: dict[str, list[float]] = {"trajectory": [], "statistics": [], "top5": []}

    def run():
        clock = [time.perf_counter()]
        with torch.no_grad():
            trajectory = PredictionTrajectory.from_lens_and_model(lens, model, input_ids=ids, targets=targets)
        clock.append(time.perf_counter())
        values = {
            "entropy": trajectory.entropy().stats,
            "forward_kl": trajectory.forward_kl().stats,
            "cross_entropy": trajectory.cross_entropy().stats,
            "max_probability": trajectory.max_probability().stats,
        }
        clock.append(time.perf_counter())
        top = torch.topk(torch.from_numpy(trajectory.log_probs), 5, dim=-1)
        clock.append(time.perf_counter())
        for name, begin, end in zip(steps, clock[:-1], clock[1:], strict=True):
            steps[name].append(round(end - begin, 4))
        return values, top

    def summary(result):
        values, top = result
        layers = [f"{i}_pre" for i in range(top.indices.shape[0] - 1)] + ["final_post"]
        return {
            "layers": layers,
            "last_top1": top.indices[:, -1, 0].tolist(),
            "mean_statistics": {name: [round(float(v), 5) for v in stat.mean(-1)] for name, stat in values.items()},
        }

    measured = peer_common.measure(run, args.repeats, summary)
    record = {
        "peer": "tuned-lens",
        "version": version("tuned-lens"),
        "transformers": version("transformers"),
        "torch": torch.__version__,
        "model": str(args.model),
        "tokens": len(ids),
        "threads": torch.get_num_threads(),
        "computes": (
            "PredictionTrajectory.from_lens_and_model(LogitLens): forward pass and the log-probabilities of the whole "
            "vocabulary for every layer's input and the model's output, every position; then its statistics entropy, "
            "forward_kl, cross_entropy (next token) and max_probability, and torch.topk(5) over log_probs (its own "
            "top-k also turns ids into strings); float32, sdpa attention, no_grad"
        ),
    }
    # The warm-up's steps come first in the lists: dropped, so that they match wall_s.
    peer_common.emit(stdout_fd, {**record, **measured, "steps_s": {k: v[1:] for k, v in steps.items()}})


if __name__ == "__main__":
    main()
