"""The commands that are killed: their arguments on a tiny model, and what of what they leave must be equal.

Knows: folders of commands, which numbers are times. Does not know: how a process is killed (killing.py).
"""

import json
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from killing import Command
from safetensors import safe_open
from saved_models import save_model
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import lenscope as ls
from lenscope.cli.main import command_line

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


def frequent_checkpoints() -> None:
    """An evaluation leaves a checkpoint after every batch."""
    from lenscope.lenses import evaluation_checkpoints

    evaluation_checkpoints.PAUSE, evaluation_checkpoints.SHARE = 0.0, float("inf")


def commands(place: Path) -> dict[str, Command]:
    """The commands by name, with their model and text below a folder."""
    # in a process of its own: torch's pools of threads do not outlive a fork
    save = get_context("fork").Process(target=save_model, args=(place,))
    save.start()
    save.join()
    model, text = str(place / "tiny-llama"), str(write_documents(place / "text.jsonl"))
    # what is imported and made here is not in each life
    command_line()
    get_checkpoint_conversion_mapping("llama")
    assert all((ls.fit, ls.evaluate, ls.load, AutoModelForCausalLM, LlamaForCausalLM))
    common = ["-m", model, "-d", text, "--length", "32"]
    return {
        "fit": Command(
            "fit",
            lambda folder: ["fit", *common, "--tokens", "4000", "-o", str(folder)],
            folder_of_weights,
            lambda folder: (folder / "checkpoint" / "config.json").exists(),
            small_blocks,
        ),
        "eval": Command(
            "eval",
            lambda folder: ["eval", *common, "--tokens", "6000", "-o", str(folder / "e.json")],
            lambda folder: json_result(folder / "e.json"),
            lambda folder: (folder / "e.json.partial" / "checkpoint" / "config.json").exists(),
            frequent_checkpoints,
        ),
    }
