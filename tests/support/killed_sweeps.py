"""A sweep that is killed (kill -9) at random moments and run again, beside one that is not: the same files to the byte.

Knows: `lenscope sweep` as a process, parts as files that come. Does not know: what is in them.

    python tests/support/killed_sweeps.py --kills 20              # a tiny model
    python tests/support/killed_sweeps.py --spec SPEC.yaml --kills 5
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = [f"{who} {what} {where}" for who in ("The cat", "A dog", "This test") for what in ("sat", "is") for where in
           ("on the mat", "in Paris", "of France", "in the capital", "here", "on a test", "in the city")]  # fmt: skip


def tiny_spec(folder: Path) -> Path:
    """A spec of a tiny model: 1,600 rows in 40 parts, of every method and control."""
    from saved_models import save_model

    spec = {
        "model": save_model(folder),
        "sources": {"prompts": PROMPTS},
        "targets": ["identity"],
        "methods": ["predict", {"generate": 4}, "lens"],
        "controls": ["unpatched", "random", "other-source"],
        "rows_per_part": 40,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return path


def command(spec: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "lenscope", "sweep", str(spec), "-o", str(folder), "--json"]


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*.parquet")) if (folder / "parts").is_dir() else []


def killed_runs(spec: Path, folder: Path, whole: Path, kills: int, seed: int, seconds: float) -> list[int]:
    """Start the sweep again and again, kill it at random moments, then let it end; how many parts there were each time.

    One kill in four comes at any time after the start, so that it meets imports, the manifest, checks of parts.
    """
    draw, total = random.Random(seed), len(parts(whole))
    moments = sorted(draw.randrange(total) for _ in range(kills))
    reached = []
    for moment in moments:
        process = subprocess.Popen(command(spec, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        early = time.monotonic() + draw.uniform(0, seconds) if draw.random() < 0.25 else None
        while process.poll() is None and (early is None or time.monotonic() < early):
            if early is None and len(parts(folder)) >= moment:
                time.sleep(draw.uniform(0, 0.5))
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            reached.append(len(parts(folder)))
        process.wait()
    subprocess.run(command(spec, folder), check=True, stdout=subprocess.DEVNULL)
    return reached


def compared(one: Path, other: Path) -> str:
    """Whether two folders have the same parts, to the byte, and nothing else."""
    names = [{path.name for path in (folder / "parts").iterdir()} for folder in (one, other)]
    if names[0] != names[1]:
        return f"other files: {sorted(names[0] ^ names[1])[:4]}"
    different = [
        name for name in names[0] if (one / "parts" / name).read_bytes() != (other / "parts" / name).read_bytes()
    ]
    return f"{len(different)} parts differ" if different else "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    spec = arguments.spec or tiny_spec(folder)
    whole, killed = folder / "whole", folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    began = time.monotonic()
    done = json.loads(subprocess.run(command(spec, whole), check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.monotonic() - began
    sys.stdout.write(f"unbroken: {done['rows']:,} rows in {done['parts']} parts, {seconds:.0f} s\n")
    sys.stdout.flush()
    reached = killed_runs(spec, killed, whole, arguments.kills, arguments.seed, min(seconds, 20))
    sys.stdout.write(f"killed {len(reached)} times, with {reached} parts there: {compared(whole, killed)}\n")
    if compared(whole, killed) != "equal":
        sys.exit(1)


if __name__ == "__main__":
    main()
