"""How long a causal basis takes and what energies it reaches, beside one L-BFGS search per vector.

The baseline is the published way (Belrose et al. 2023; tuned-lens 0.2): vector by vector, started from the left
singular vectors of the translated unembedding, L-BFGS with a strong Wolfe search, at most 100 evaluations, each of
which makes all logits of all states again. `--same-energies` lets the baseline use lenscope's energies, whose values
are equal, so that what it reaches can be had in minutes. Energies are in nats: the first direction's, and the sum.

    python benchmarks/causal.py --lens LENS --data corpus.jsonl.gz --layers 3 15 26 --k 8
"""

from typing import Any

import timing
import torch

import lenscope as ls
from lenscope.directions.causal_basis import causal_basis
from lenscope.directions.energy import GeneralEnergy, Site, energies, wide_readout
from lenscope.lenses.lens import Lens
from lenscope.measures.sampled_kl import SampledKL
from lenscope.text.row_states import row_states


def baseline(site: Site, energy, k: int) -> tuple[torch.Tensor, int]:
    head = site.lens.lm.runner.readout.head(torch.arange(site.lens.lm.vocab_size))
    assert head is not None
    assert site.factors is not None
    translated = (head[0].detach().float() @ site.factors[0][:, :-1]).double()
    starts = torch.linalg.eigh(translated.T @ translated)[1].flip(1)[:, :k].T.float()
    directions, calls = starts[:0], 0
    for start in starts:
        v, more = climbed(energy, start, directions)
        directions, calls = torch.cat([directions, v[None]]), calls + more
    return directions, calls


def climbed(energy, start: torch.Tensor, earlier: torch.Tensor) -> tuple[torch.Tensor, int]:
    """One direction orthogonal to the earlier ones, and how many evaluations it took."""
    w = (start - earlier.T @ (earlier @ start)).requires_grad_()
    climb = torch.optim.LBFGS([w], max_iter=100, max_eval=100, tolerance_change=1e-4, line_search_fn="strong_wolfe")
    calls, first = 0, 0.0

    def now() -> torch.Tensor:
        v = w.detach() - earlier.T @ (earlier @ w.detach())
        return v / v.norm()

    def step() -> float:
        nonlocal calls, first
        calls += 1
        v = now()
        value, pull = energy(v)
        first = first or max(value, 1e-30)
        pull = pull - (pull @ v) * v
        w.grad = -(pull - earlier.T @ (earlier @ pull)) / (first * w.detach().norm())
        return -value / first

    climb.step(step)
    return now(), calls


COLUMNS: timing.Columns = {
    "layer": ("layer", 6, "d"),
    "states": ("states", 8, "d"),
    "seconds": ("lenscope, s", 13, ".1f"),
    "baseline_seconds": ("baseline, s", 13, ".1f"),
    "ratio": ("×", 20, ".1f"),
    "first": ("first", 8, ".2f"),
    "baseline_first": ("baseline", 10, ".2f"),
    "sum": ("sum", 8, ".2f"),
    "baseline_sum": ("baseline", 10, ".2f"),
}


def compare(lm: ls.LM, f: Any, rows: list, layer: int, args: Any) -> dict[str, Any]:
    """Seconds and energies of both ways at a layer."""
    readout = wide_readout(lm)
    h = torch.cat([run.states[0][run.counted] for run in row_states(lm, rows, [layer])]).float()
    results: dict[str, Any] = {}

    def mine() -> None:
        results["lenscope"] = causal_basis(lm, rows, f, [layer], k=args.k).energies

    def published() -> None:
        site = Site(Lens(lm, f), readout, layer, h, args.k, 0)
        plain = GeneralEnergy(site, SampledKL(lm, torch.ones(lm.vocab_size), None, 0))
        energy = site.energy(None) if args.same_energies else plain
        results["baseline"], results["evaluations"] = baseline(site, energy, args.k)
        results["plain"], results["site"] = plain, site

    clocks = {"lenscope": timing.clock(mine), "baseline": timing.clock(published)}
    times = timing.in_turn(clocks, args.repeats)
    ours, directions = results["lenscope"], results["baseline"]
    ablated = torch.stack([h - ((h - h.mean(0)) @ v)[:, None] * v for v in directions])
    reached = energies(results["site"].lens, readout, h, ablated, layer).mean(1).sort(descending=True).values
    return {
        "layer": layer, "states": len(h), "k": args.k, "baseline_evaluations": results["evaluations"],
        "plain_evaluation_s": timing.clock(lambda: results["plain"](directions[0]))(),
        "seconds": timing.spread(times["lenscope"]).middle,
        "baseline_seconds": timing.spread(times["baseline"]).middle,
        "ratio": timing.paired(times["baseline"], times["lenscope"]),
        "first": float(ours[0, 0]), "baseline_first": float(reached[0]),
        "sum": float(ours.sum()), "baseline_sum": float(reached.sum()),
    }  # fmt: skip


def main() -> None:
    parser = timing.options(__doc__, repeats=1)
    parser.add_argument("--lens")
    parser.add_argument("--data", help="text as lenscope fit takes it; without any, what the model writes")
    parser.add_argument("--layers", nargs="+", type=int, default=[15])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--same-energies", action="store_true")
    args = parser.parse_args()
    lm = ls.load(args.model)
    f = None if args.lens is None else ls.load_lens(args.lens, lm)
    rows = list(ls.Corpus.open(lm, args.data, length=128).batches(args.tokens, 4))
    timing.print_machine()
    timing.print_heading(COLUMNS)
    results = []
    for layer in args.layers:
        results.append(compare(lm, f, rows, layer, args))
        timing.print_row(COLUMNS, results[-1])
    setting = {"model": args.model, "same_energies": args.same_energies}
    timing.print_closing("causal", results, **setting)


if __name__ == "__main__":
    main()
