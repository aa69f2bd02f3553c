"""How long a causal basis takes and what energies it reaches, beside one L-BFGS search per vector.

The baseline is the published way (Belrose et al. 2023; tuned-lens 0.2): vector by vector, started from the left
singular vectors of the translated unembedding, L-BFGS with a strong Wolfe search, at most 100 evaluations, each of
which makes all logits of all states again. `--same-energies` lets the baseline use lenscope's energies, whose values
are equal, so that what it reaches can be had in minutes.

    python benchmarks/causal.py --lens LENS --data corpus.jsonl.gz --layers 3 15 26 --k 8
"""

import argparse
import json
import time

import torch

import lenscope as ls
from lenscope.directions.causal_basis import causal_basis
from lenscope.directions.energy import GeneralEnergy, Site, energies, wide_readout
from lenscope.lenses.lens import Lens
from lenscope.measures.sampled_kl import SampledKL
from lenscope.text.row_states import row_states


def baseline(site: Site, energy, k: int) -> tuple[torch.Tensor, int]:
    head = site.lens.lm.readout.head(torch.arange(site.lens.lm.vocab_size))
    assert head is not None
    assert site.factors is not None
    translated = (head[0].detach().float() @ site.factors[0][:, :-1]).double()
    starts = torch.linalg.eigh(translated.T @ translated)[1].flip(1)[:, :k].T.float()
    found, calls = starts[:0], 0
    for start in starts:
        v, more = climbed(energy, start, found)
        found, calls = torch.cat([found, v[None]]), calls + more
    return found, calls


def climbed(energy, start: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, int]:
    """One direction orthogonal to those found, and how many evaluations it took."""
    w = (start - found.T @ (found @ start)).requires_grad_()
    climb = torch.optim.LBFGS([w], max_iter=100, max_eval=100, tolerance_change=1e-4, line_search_fn="strong_wolfe")
    calls, first = 0, 0.0

    def now() -> torch.Tensor:
        v = w.detach() - found.T @ (found @ w.detach())
        return v / v.norm()

    def step() -> float:
        nonlocal calls, first
        calls += 1
        v = now()
        value, pull = energy(v)
        first = first or max(value, 1e-30)
        pull = pull - (pull @ v) * v
        w.grad = -(pull - found.T @ (found @ pull)) / (first * w.detach().norm())
        return -value / first

    climb.step(step)
    return now(), calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lens")
    parser.add_argument("--data")
    parser.add_argument("--layers", nargs="+", type=int, default=[15])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--same-energies", action="store_true")
    args = parser.parse_args()
    lm = ls.load(args.model)
    f = None if args.lens is None else ls.load_lens(args.lens, lm)
    rows = list(ls.Corpus.open(lm, args.data, length=128).batches(args.tokens, 4))
    readout = wide_readout(lm)
    for layer in args.layers:
        began = time.perf_counter()
        ours = causal_basis(lm, rows, f, [layer], k=args.k)
        seconds = time.perf_counter() - began
        h = torch.cat([run.states[0][run.counted] for run in row_states(lm, rows, [layer])]).float()
        began = time.perf_counter()
        site = Site(Lens(lm, f), readout, layer, h, args.k, 0)
        plain = GeneralEnergy(site, SampledKL(lm, torch.ones(lm.vocab_size), None, 0))
        found, calls = baseline(site, site.energy(None) if args.same_energies else plain, args.k)
        theirs = time.perf_counter() - began
        once = time.perf_counter()
        plain(found[0])
        once = time.perf_counter() - once
        ablated = torch.stack([h - ((h - h.mean(0)) @ v)[:, None] * v for v in found])
        reached = energies(site.lens, readout, h, ablated, layer).mean(1).sort(descending=True).values
        told = {
            "layer": layer, "states": len(h), "k": args.k, "seconds": seconds, "baseline seconds": theirs,
            "baseline used lenscope's energies": args.same_energies, "baseline evaluations": calls,
            "seconds of a plain evaluation": once, "first": [float(ours.energies[0, 0]), float(reached[0])],
            "sum": [float(ours.energies.sum()), float(reached.sum())],
        }  # fmt: skip
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}), flush=True)


if __name__ == "__main__":
    main()
