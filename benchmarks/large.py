"""A model larger than memory on a small machine: `lens --stream` and `fit --recipe ridge --stream`, with peak memory.

    python benchmarks/large.py --folder /disk/large            # GPT-NeoX-20B's shape, 41 GB in bfloat16
    python benchmarks/large.py --folder /disk/large --blocks 11 --keep

makes a checkpoint of random weights with that shape, block by block, then runs the commands as a user would, and
watches each process. Needs the built-in model, whose tokenizer it takes, and as much free disk as the weights and a
lens have. Weights are random numbers that are drawn once and turned anew for each block.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import lenscope as ls

# tokens of a prompt, and how many prompts share a reading
PROMPT_WORDS, PROMPTS = 24, 16
BLOCKS_PER_FILE = 2


def main() -> None:
    """Make what is missing of the checkpoint, run the commands, print a table."""
    args = parsed()
    folder = Path(args.folder)
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "config.json").exists():
        began = time.perf_counter()
        make_checkpoint(checkpoint, args)
        print(f"made {size(checkpoint) / 1e9:.1f} GB in {time.perf_counter() - began:.0f} s", flush=True)
    (folder / "prompts.txt").write_text("\n".join(prompts()), encoding="utf-8")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents()), encoding="utf-8")
    lens = ["lens", "-m", checkpoint, "--stream", "-f", folder / "prompts.txt", "--json"]
    fit = [
        "fit",
        "-m",
        checkpoint,
        "--stream",
        "--recipe",
        "ridge",
        "--tokens",
        args.tokens,
        "-d",
        folder / "text.jsonl",
    ]
    fit += ["--length", args.length, "-o", folder / "lens", "--json"]
    runs = {"lens": lens, "fit": fit, "lens --lens": [*lens, "--lens", folder / "lens"]}
    rows = []
    for name in args.only or runs:
        rows.append((name, *watched([sys.executable, "-m", "lenscope", *map(str, runs[name])], folder / "out.json")))
        print("\n".join(table(args, rows)), flush=True)
    if not args.keep:
        shutil.rmtree(folder)


def parsed() -> argparse.Namespace:
    """What is asked for; the defaults are GPT-NeoX-20B's shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the checkpoint and results go")
    parser.add_argument("--blocks", type=int, default=44)
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--inner", type=int, default=24576)
    parser.add_argument("--vocab", type=int, default=50432)
    parser.add_argument("--tokens", default="4k", help="of the fit")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row of the fit")
    parser.add_argument("--only", nargs="*", choices=("lens", "fit", "lens --lens"), help="which commands run")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint and the lens there")
    return parser.parse_args()


def make_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """Random weights of the shape, in files of a few blocks each, so that no more of them are in memory."""
    config = GPTNeoXConfig(
        hidden_size=args.width, num_hidden_layers=args.blocks, num_attention_heads=args.heads, vocab_size=args.vocab,
        intermediate_size=args.inner, max_position_embeddings=2048, rotary_pct=0.25, dtype="bfloat16",
        tie_word_embeddings=False, use_parallel_residual=True, hidden_act="gelu_fast", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPTNeoXForCausalLM(config).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def weight(name: str, number: int) -> torch.Tensor:
        shape = tuple(shapes[name])
        if shape not in known:
            known[shape] = torch.randn(shape, generator=draw).bfloat16()
        # a turn of one long row: rows and columns are others in every block
        turned = known[shape].flatten().roll((number + 1) * 104_729 % known[shape].numel()).view(shape)
        if len(shape) == 1:
            return turned.mul(0.1).add("norm.weight" in name or "layernorm.weight" in name).bfloat16()
        return turned if "embed_in" in name else turned.mul_((4 if "embed_out" in name else 0.8) / shape[1] ** 0.5)

    names = list(shapes)
    inside = [[n for n in names if f".layers.{block}." in n] for block in range(args.blocks)]
    parts = [[*chain(*inside[at : at + BLOCKS_PER_FILE])] for at in range(0, args.blocks, BLOCKS_PER_FILE)]
    parts.append([n for n in names if ".layers." not in n])
    where = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file({n: weight(n, names.index(n)) for n in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    ls.load().tokenizer.save_pretrained(folder)
    config.architectures = ["GPTNeoXForCausalLM"]
    config.save_pretrained(folder)


def documents() -> list[str]:
    """Paragraphs of Python's own manual."""
    parts = [p.strip() for text in topics.values() for p in text.split("\n\n")]
    return [" ".join(p.split()) for p in dict.fromkeys(parts) if len(p) >= 200]


def prompts() -> list[str]:
    """The beginnings of some of the documents."""
    every = documents()
    step = len(every) // PROMPTS
    return [" ".join(d.split()[:PROMPT_WORDS]) for d in every[::step][:PROMPTS]]


def watched(command: list[str], output: Path) -> tuple[float, float, float, str]:
    """Run a command to its end: seconds, peak anonymous and peak resident memory in GB, and its last line on stderr."""
    began, anonymous, resident = time.perf_counter(), 0, 0
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            except OSError:
                break
            seen = dict(line.split(":", 1) for line in status.splitlines())
            if "RssAnon" in seen:
                anonymous = max(anonymous, int(seen["RssAnon"].split()[0]))
                resident = max(resident, int(seen["VmHWM"].split()[0]))
            time.sleep(0.2)
        process.wait()
    told = output.with_suffix(".err").read_text(encoding="utf-8", errors="replace").strip()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{told}")
    return time.perf_counter() - began, anonymous / 2**20, resident / 2**20, told.rpartition("\n")[2]


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(args: argparse.Namespace, rows: list[tuple[str, float, float, float, str]]) -> list[str]:
    """The runs so far as a table in markdown."""
    config = json.loads((Path(args.folder) / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    on_disk = size(Path(args.folder) / "checkpoint") / 1e9
    lines = [
        f"{config['num_hidden_layers']} blocks, D {config['hidden_size']}, {on_disk:.1f} GB on disk, "
        f"{torch.get_num_threads()} threads, fit of {args.tokens} tokens in rows of {args.length}",
        "",
        "| command | seconds | peak anonymous memory, GiB | peak resident memory, GiB | |",
        "|---|---|---|---|---|",
    ]
    return lines + [f"| {n} | {s:.0f} | {a:.1f} | {r:.1f} | {told} |" for n, s, a, r, told in rows]


if __name__ == "__main__":
    main()
