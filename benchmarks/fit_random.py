"""How fast a machine fits tuned lenses of random models of real shapes: tokens a second, and the share of its ceiling.

Random weights cost what trained ones cost; the lens itself says nothing. The ceiling is the machine's largest product
of square matrices, measured first; the share is that of the multiplications a fit cannot do without (the model's
forward pass, translators, drawn columns, Muon's polynomials, moments) in the time that it took for them. Made for an
accelerator; --shape tiny tries it anywhere.

    python benchmarks/fit_random.py --shape 1b 7b --device cuda --tokens 200000
"""

import argparse
from typing import Any

import timing
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lenscope as ls
from lenscope.fitting.recipes import RECIPES

# hidden size, MLP, layers, heads, key-value heads, vocabulary
SHAPES = {
    "tiny": (64, 128, 4, 4, 2, 4096),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "7b": (4096, 14_336, 32, 32, 8, 128_256),
}


def build(shape: str, device: str, dtype: torch.dtype) -> ls.LM:
    size, mlp, layers, heads, few, vocab = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=size, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=few, vocab_size=vocab, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    return ls.load((model, None))


def ceiling(device: str, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a large product."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = timing.in_turn({"product": timing.clock(lambda: a @ b, device=device)}, 9)
    return 2 * n**3 / timing.spread(times["product"]).middle


def needed(lm: ls.LM, report: dict) -> float:
    """Multiplications and additions that a fit cannot do without."""
    recipe, plan = RECIPES["muon"], report["schedule"]
    size, layers, tokens, steps = lm.hidden_size, lm.n_layers, report["tokens"], report["steps"]
    inside = sum(p.numel() for block in lm.runner.anatomy.blocks for p in block.parameters())
    forward = 2 * inside * tokens
    columns = min(recipe.columns or lm.vocab_size, lm.vocab_size)
    stepped = tokens - (plan["warm"] - 1) * plan["block"] * plan["length"]
    gradients = layers * stepped * (2 * 2 * size * columns + 2 * 2 * size * size)
    muon = steps * layers * 4 * 3 * 2 * size**3
    moments = layers * plan["warm"] * plan["block"] * plan["length"] * 2 * 2 * size * size
    return forward + gradients + muon + moments


COLUMNS: timing.Columns = {
    "shape": ("", 8, ""),
    "tokens_per_s": ("tokens/s", 10, ".0f"),
    "reading_per_s": ("reading/s", 12, ".0f"),
    "of_ceiling": ("of the ceiling", 16, ".2f"),
    "peak_mb": ("peak MB above the model", 26, ".0f"),
}


def fitted(shape: str, top: float, args: argparse.Namespace) -> dict[str, Any]:
    """What a fit of a model of this shape took."""
    lm = build(shape, args.device, getattr(torch, args.dtype))
    draw = torch.Generator().manual_seed(0)
    rows = -(-int(args.tokens * 1.3) // args.length)
    text = torch.randint(10, lm.vocab_size, (rows, args.length - 1), generator=draw).tolist()
    reports: list[dict[str, Any]] = []
    peak_mb = timing.peak_above(
        lambda: reports.append(ls.fit(lm, text, tokens=args.tokens, length=args.length, room=args.room).report),
        args.device,
    )
    report = reports[0]
    spent, tokens = report["spent"], report["tokens"]
    fitting = sum(spent.get(work, 0.0) for work in ("reading", "closed form", "steps"))
    return {
        "shape": shape,
        "tokens_per_s": tokens / fitting,
        "reading_per_s": tokens / spent["reading"],
        "of_ceiling": needed(lm, report) / fitting / top,
        "peak_mb": peak_mb,
        "spent": spent,
        "tokens": tokens,
    }


def main() -> None:
    parser = timing.options(__doc__, repeats=None, model=False)
    parser.add_argument("--shape", nargs="+", default=["1b", "7b"], choices=sorted(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--room", type=int, default=8 << 30, help="bytes of states of a block")
    args = parser.parse_args()
    timing.print_machine()
    top = ceiling(args.device, getattr(torch, args.dtype))
    print(f"{args.device}: {top / 1e12:.2f} TFLOP/s in products of {args.dtype}")
    timing.print_heading(COLUMNS)
    results = []
    for shape in args.shape:
        results.append(fitted(shape, top, args))
        timing.print_row(COLUMNS, results[-1])
    timing.print_closing("fit_random", results, device=args.device, ceiling=top)


if __name__ == "__main__":
    main()
