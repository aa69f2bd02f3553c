"""What a number came from: versions, model, weights, dtype, attention backend, readout.

Knows: what a reader needs to make a number again. Does not know: what was computed, what makes a model (identity.py).
"""

from datetime import UTC, datetime
from typing import Any

import torch
import transformers

from lenscope._version import __version__
from lenscope.models.identity import glanced
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name


def provenance(lm: LM) -> dict[str, Any]:
    """Everything a reader needs to make the same numbers again, as JSON values."""
    # another thread's run may have put its own attention in place of the model's
    with lm.lock:
        attention = getattr(lm.model.config.get_text_config(), "_attn_implementation", None)
    return {
        "lenscope": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": lm.name,
        "source": lm.source,
        "revision": lm.revision,
        **({"adapter": lm.adapter} if lm.adapter else {}),
        **glanced(lm.model),
        "dtype": dtype_name(lm.dtype),
        "device": str(lm.device),
        "attention": attention,
        "readout": lm.runner.readout.description,
        "readout_deviation": lm.runner.verified.deviation,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
