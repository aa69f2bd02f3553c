"""Models whose blocks alone are used: checkpoints that were saved without a head, or without their last norm.

Knows: which weights are read after the last block, and that only these may be missing from the files.
Does not know: what the states of the last block are used for.
"""

import os
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from lenscope.errors import LenscopeError
from lenscope.models import refusals
from lenscope.models.language_model import LM
from lenscope.models.loading import TOLD
from lenscope.models.loading_errors import plain_errors


def load_body(folder: str | os.PathLike[str], **options: Any) -> LM:
    """Load a folder as `load` does, where weights after the last block may be missing: its states are right.

    What is missing there is drawn at random, so its logits mean nothing. `options` go to transformers'
    `from_pretrained`. Raises LenscopeError as `load` does, for any other weight that is missing, and for what is no
    folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise LenscopeError(f"{path}: no such folder")
    where: dict[str, Any] = {"trust_remote_code": False}
    with plain_errors(str(path), "cannot be loaded as a language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **where, **options, **TOLD)
        refusals.require_tokenizer(str(path))
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    model, info = loaded
    lm = LM(model, tokenizer, path.name, str(path.resolve()))
    behind = tuple(f"{name}." for name, _ in lm.runner.anatomy.tail)
    needed = {**info, "missing_keys": [key for key in info["missing_keys"] if not key.startswith(behind)]}
    lm.unused = refusals.require_whole(str(path), model, needed)
    return lm
