"""The commands that are killed: their arguments on a tiny model, and what of what they leave must be equal.

Knows: folders of commands, which numbers are times. Does not know: how a process is killed (killing.py).
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from killing import Command
from safetensors import safe_open
from saved_models import save_model

import lenscope as ls

TEXT = "the cat sat on a mat in this capital city of France and Paris is it while tests of tokens go on"
# of what is saved: when and how fast it was made, and where
TIMES = {"seconds", "spent", "created", "weights", "sha256", "processes"}


def write_documents(path: Path, documents: int = 200, words: int = 60) -> Path:
    """A JSON Lines file of random sentences."""
    draw = Random(0)
    path.write_text(
        "\n".join(json.dumps({"text": " ".join(draw.choices(TEXT.split(), k=words))}) for _ in range(documents))
    )
    return path


def without_times(value: Any) -> Any:
    """JSON values without what differs between two equal runs."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def folder_of_weights(folder: Path) -> dict[str, Any]:
    """The config and every tensor's bytes of a folder that write_folder wrote, without times; of no other files."""
    config = json.loads((folder / "config.json").read_text())
    files = [p.name for p in folder.iterdir() if p.name not in ("config.json", config["weights"])]
    contents: dict[str, Any] = {"config": without_times(config), "other files": files}
    with safe_open(folder / config["weights"], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dictionary
            tensor = file.get_tensor(name)
            contents[name] = (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().numpy().tobytes())
    return contents


def json_result(path: Path) -> dict[str, Any]:
    """A result that was saved as JSON, without times, and the names of what lies beside it."""
    return {
        "result": without_times(json.loads(path.read_text())),
        "other files": sorted(p.name for p in path.parent.iterdir() if p != path),
    }


def small_blocks() -> None:
    """A fit reads 8 rows at a time, and leaves a checkpoint after each block of them."""
    from lenscope.fitting.tuned_lens import fit

    assert fit.__kwdefaults__ is not None
    fit.__kwdefaults__["room"] = 1


def commands(place: Path) -> dict[str, Command]:
    """The commands by name, with their model and text below a folder."""
    model, text = save_model(place), str(write_documents(place / "text.jsonl"))
    # what is imported here is not imported in each life
    ls.load(model)
    assert all((ls.fit, ls.evaluate))
    common = ["-m", model, "-d", text, "--length", "32"]
    return {
        "fit": Command(
            "fit",
            lambda folder: ["fit", *common, "--tokens", "6000", "-o", str(folder)],
            folder_of_weights,
            lambda folder: (folder / "checkpoint" / "config.json").exists(),
            small_blocks,
        )
    }
