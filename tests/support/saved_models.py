"""Tiny models in folders, as a command line names them.

Knows: where a model and its tokenizer go. Does not know: lenscope.
"""

from pathlib import Path

import tiny


def save_model(folder: Path, name: str = "tiny-llama", seed: int = 0, context: int | None = None) -> str:
    """Save a tiny llama and its tokenizer as the folder `name`; with a context of its own where one is given."""
    model = tiny.model("llama", seed=seed)
    if context is not None:
        model.config.max_position_embeddings = context
    model.save_pretrained(folder / name)
    tiny.tokenizer().save_pretrained(folder / name)
    return str(folder / name)
