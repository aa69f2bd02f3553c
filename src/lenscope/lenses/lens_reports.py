"""What the report of a fitted lens says of how well it reads: KL from the model on held-out text, layer by layer.

Knows: the form of such reports, and where a provenance keeps it. Does not know: lenses, how they are measured.
"""

from typing import Any

import numpy as np

# the key of a provenance under which stands how well its lens read held-out text: nats for each layer
HELD_OUT = "held_out_kl"


def held_out_kl(rows: Any) -> dict[str, list[Any]] | None:
    """Give the KL on held-out text that the rows of a lens's report have, in nats; None where they have none.

    {"layers": the layers, "kl": of the lens, "logit_lens": of the logit lens there}. Reports come from files, so
    whatever has not this form says nothing.
    """
    try:
        measured = [(int(row["layer"]), float(row["kl"]), float(row["kl_logit_lens"])) for row in rows]
    except (TypeError, KeyError, ValueError):
        return None
    if not measured or not np.isfinite(measured).all():
        return None
    layers, kl, logit_lens = zip(*measured, strict=True)
    return {"layers": list(layers), "kl": list(kl), "logit_lens": list(logit_lens)}
