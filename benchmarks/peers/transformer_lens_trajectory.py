"""TransformerLens' logit lens over all layers and positions of one sequence, timed; prints one line of JSON.

    tl/bin/python transformer_lens_trajectory.py --model FOLDER --tokens 512 --repeats 3 --ids-json ids.json

README.md beside this file says how to make the venv. Run under ``torch.no_grad()``, which TransformerLens leaves to
its user: with gradients on, the forward pass would keep its activations.
"""

from __future__ import annotations

import peer_common


def main() -> None:
    args = peer_common.parse_args(__doc__.splitlines()[0])
    ids = peer_common.read_ids(args)
    stdout_fd = peer_common.take_stdout()

    from importlib.metadata import version

    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis import logit_lens

    torch.set_num_threads(args.threads)
    model = TransformerBridge.boot_transformers(str(args.model), device="cpu", dtype=torch.float32)
    model.eval()
    tokens = torch.tensor([ids])

    def run():
        with torch.no_grad():
            return logit_lens(model, tokens, positions=None, top_k=5, return_type="log_probs")

    def summary(result):
        return {"layers": list(result.labels), "last_top1": result.readout.top_ids[:, 0, -1, 0].tolist()}

    measured = peer_common.measure(run, args.repeats, summary)
    record = {
        "peer": "transformer-lens",
        "version": version("transformer-lens"),
        "transformers": version("transformers"),
        "torch": torch.__version__,
        "model": str(args.model),
        "tokens": len(ids),
        "threads": torch.get_num_threads(),
        "computes": (
            "forward pass with its residual streams cached, then logit_lens(positions=None, top_k=5): the five largest "
            "log-probabilities with their ids and the entropy, for every layer's input and the last layer's output, "
            "every position; no KL, no cross-entropy; float32, eager attention (TransformerLens sets it), no_grad"
        ),
    }
    peer_common.emit(stdout_fd, {**record, **measured})


if __name__ == "__main__":
    main()
