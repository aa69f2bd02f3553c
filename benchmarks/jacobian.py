"""Fitting a Jacobian lens: seconds a prompt of the reference's way and of ours, and what agreement they buy.

Two parts. *Speed*: for one prompt, the seconds of some cotangents the reference's way (the prompt replicated, one-hot
batches, whole rows, hooks on plain autograd) and ours (one graph, tokens before the first source cached), in turn;
medians, times all dimensions. Beside it the machine's own rate of matrix products of these shapes, and the fraction of
it that ours reaches, counting the products alone that a backward pass through all blocks needs. The reference's way is
in the model's own dtype; ours has its products in 16 bits where this machine is faster at them. Both ways give the same
rows, up to rounding, which is asserted. *Agreement*: the Jacobians of some prompts are had once, ours; the lens of the
first n of them, plain and shrunk, is compared with the lens of all others (the long one), on held-out states: the
cosine of centred logits, by layer.

    python benchmarks/jacobian.py --data TEXTS.jsonl --prompts 8 --minutes 20
    python benchmarks/jacobian.py --data TEXTS.jsonl --prompts 0          # speed alone
    python benchmarks/jacobian.py --data TEXTS.jsonl --device cuda --dtype bfloat16 --dim-batch 128
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import timing
import torch

import lenscope as ls
from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.fitting.halves_agreement import halves_agreement
from lenscope.fitting.jacobian_lens import make_run
from lenscope.fitting.jacobian_measuring import JacobianMeasures, padded
from lenscope.fitting.jacobian_passes import LOW_GAP, without_weight_gradients
from lenscope.fitting.jacobian_shrinkage import shrunk
from lenscope.fitting.jacobian_sums import JacobianSums
from lenscope.text.corpus import Corpus

SKIP = 16


def now(lm) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def products_in_blocks(lm) -> int:
    """Weights of the blocks' matrices: a backward pass makes two operations with each, for each token and cotangent."""
    return sum(p.numel() for block in lm.runner.anatomy.blocks for p in block.parameters() if p.ndim == 2)


def machine_rate(lm, tokens: int, dtype: torch.dtype) -> float:
    """Operations a second of products as large as those of a block, in this dtype; the best of some tries."""
    shapes = {tuple(p.shape) for p in lm.runner.anatomy.blocks[0].parameters() if p.ndim == 2}
    rates = []
    for _ in range(5):
        spent = done = 0.0
        for rows, columns in shapes:
            a = torch.randn(tokens, rows, device=lm.device).to(dtype)
            w = torch.randn(rows, columns, device=lm.device).to(dtype)
            began = now(lm)
            for _ in range(4):
                a @ w
            spent += now(lm) - began
            done += 4 * 2 * tokens * rows * columns
        rates.append(done / spent)
    return max(rates)


def reference_rows(lm, ids, count: int, batch: int, first: int = 0) -> tuple[torch.Tensor, float]:
    """Rows first…first + count of J at all layers as the reference has them: (L, count, D), and the seconds of passes.

    The forward pass of the replicated prompt is in the seconds by the share of its rows that are asked for.
    """
    valid = torch.zeros(len(ids), dtype=torch.bool, device=lm.device)
    valid[SKIP:-1] = True
    states: list[torch.Tensor] = []
    hooks = [lm.runner.hook(0, lambda h: states.append(h.detach().requires_grad_()) or states[-1])]
    hooks += [lm.runner.hook(n, lambda h: states.append(h.view_as(h)) or states[-1]) for n in range(1, lm.n_layers + 1)]
    began = now(lm)
    with torch.enable_grad():
        lm.model(input_ids=torch.tensor([ids] * batch, device=lm.device), use_cache=False)
    forward = now(lm) - began
    for hook in hooks:
        hook.remove()
    rows, began = [], now(lm)
    for at in range(first, first + count, batch):
        cotangents = torch.zeros_like(states[-1])
        for n in range(batch):
            cotangents[n, valid, at + n] = 1
        gradients = torch.autograd.grad(states[-1], states[:-1], cotangents, retain_graph=True)
        rows.append(torch.stack([g[:, valid].mean(1) for g in gradients]))
    return torch.cat(rows, 1), now(lm) - began + forward * count / lm.hidden_size


def our_rows(lm, run, ids, count: int, first: int = 0) -> tuple[torch.Tensor, float]:
    """The same rows, ours, and the seconds, in which the run of the prompt is by the share of its rows, too."""
    counted = torch.arange(len(ids)) >= SKIP
    z = torch.zeros(count, lm.hidden_size, device=lm.device, dtype=lm.dtype)
    z[torch.arange(count), first + torch.arange(count)] = 1
    began = now(lm)
    run.graphs.of_row(ids[:-1], SKIP)
    graph, began = now(lm) - began, now(lm)
    rows = run.rows_of(ids, counted, z)
    return rows, now(lm) - began - graph * (1 - count / lm.hidden_size)


def empty_run(lm, corpus):
    settings = {"target_layer": lm.n_layers, "rule": "gradient", "targets": "later"}
    total = torch.zeros(2, lm.n_layers, lm.hidden_size, lm.hidden_size, device=lm.device)
    return make_run(lm, corpus, JacobianSums(total, [0, 0], settings), (0, 1), Group())


def speed(lm, corpus, args) -> dict:
    run = empty_run(lm, corpus)
    ids = next(iter(corpus.batches(None, 1))).ids[0].tolist()
    count = args.cotangents - args.cotangents % args.dim_batch
    # the first row is measured in all ways, once for a run
    our_rows(lm, run, ids, 8)
    theirs, ours, apart = [], [], 0.0
    for _ in range(args.repeats):
        a, seconds = reference_rows(lm, ids, count, args.dim_batch)
        theirs.append(seconds)
        b, seconds = our_rows(lm, run, ids, count)
        ours.append(seconds)
        apart = max(apart, float((a - b).norm() / a.norm()))
    low = run.graphs.low
    most = LOW_GAP if low or lm.dtype != torch.float32 else 1e-3
    assert apart < most, f"the two ways differ by {apart:.2g}"
    rate = machine_rate(lm, run.graphs.together, low or lm.dtype)
    tokens = args.length - 1 - (SKIP if run.graphs.cached else 0)
    work = 2 * products_in_blocks(lm) * tokens * count
    scale = lm.hidden_size / count
    return {
        "reference_s_a_prompt": statistics.median(theirs) * scale,
        "ours_s_a_prompt": statistics.median(ours) * scale,
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "difference": apart,
        "products": str(low or lm.dtype).removeprefix("torch."),
        "machine_gflops": rate / 1e9,
        "ours_of_machine": work / statistics.median(ours) / rate,
        "cotangents": count,
    }


def agreement(lm, corpus, args) -> list[dict]:
    text, held = corpus.split(0.1)
    run = empty_run(lm, text)
    measures = JacobianMeasures.read(lm, held, LayerOwners(lm.n_layers, Group(), Group()))
    rows = [batch for _, batch in zip(range(args.prompts), text.batches(None, 1), strict=False)]
    began, each, seconds = now(lm), [], []
    for batch in rows:
        each.append(run.rows_of(batch.ids[0].tolist(), batch.counted[0]).cpu())
        seconds.append(now(lm) - began)
        print(f"prompt {len(each)}: {seconds[-1]:.0f} s", flush=True)
        if seconds[-1] > args.minutes * 60:
            break
    if len(each) < 4:
        return []
    lines = []
    n = 2
    with torch.no_grad():
        held_out = measures.held_out_jacobians(run.rows_of, 0)
        while n <= len(each) // 2:
            first, second = (torch.stack(each[h:n:2]).mean(0) for h in (0, 1))
            mean, long = torch.stack(each[:n]).mean(0), torch.stack(each[n:]).mean(0)
            drawn, what = shrunk(first, second, mean, measures.regression(len(mean)), held_out)
            line = {"prompts": n, "long": len(each) - n, "seconds": seconds[n - 1]}
            for name, matrices in (("plain", mean), ("shrunk", drawn)):
                e = halves_agreement(measures.measure, padded(matrices, lm), padded(long, lm), 128)
                line[name] = {m: [round(x.value, 4) for x in e[m]] for m in e}
            line["layers_shrunk"] = sum(row["weight"] > 0 for row in what)
            lines.append(line)
            n *= 2
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--dim-batch", type=int, default=8, help="rows of a pass of the reference's way")
    parser.add_argument("--cotangents", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument(
        "--length", type=int, default=128, help="tokens of a prompt, of which the first 16 are left out"
    )
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    lm = ls.load(args.model, **{k: v for k, v in (("device", args.device), ("dtype", args.dtype)) if v})
    corpus = Corpus.open(lm, args.data, length=args.length, skip=SKIP)
    with without_weight_gradients(lm):
        fast = speed(lm, corpus, args)
    print(
        f"{args.model}: {fast['reference_s_a_prompt']:.0f} s a prompt the reference's way, "
        f"{fast['ours_s_a_prompt']:.0f} s ours (ratio {fast['ratio']:.2f}); ours makes "
        f"{fast['ours_of_machine']:.0%} of this machine's {fast['machine_gflops']:.0f} GFLOP/s of such products "
        f"in {fast['products']}; rows differ by {fast['difference']:.2g} of their size"
    )
    lines = agreement(lm, corpus, args) if args.prompts else []
    for line in lines:
        chosen = sorted({0, lm.n_layers // 4, lm.n_layers // 2, 3 * lm.n_layers // 4, lm.n_layers - 1})
        plain, drawn = (line[name]["cosine"] for name in ("plain", "shrunk"))
        values = "  ".join(f"{n}: {plain[n]:.3f} → {drawn[n]:.3f}" for n in chosen)
        print(f"{line['prompts']} prompts ({line['seconds']:.0f} s) against {line['long']}, plain → shrunk:  {values}")
    print(json.dumps({"machine": timing.machine(), "speed": fast, "agreement": lines}))


if __name__ == "__main__":
    main()
