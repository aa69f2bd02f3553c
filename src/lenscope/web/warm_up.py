"""What a model's thread does before anyone asks: everything once, so that the first to ask does not wait for it.

Knows: which requests make a model measure what it measures once. Does not know: threads, queues, HTTP.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lenscope.web.endpoint_table import ENDPOINTS
from lenscope.web.served import LOGIT_LENS, Served

PROMPT = {"text": "one two three"}
TARGET = {"text": "one: 1, two: 2, x"}


def steps_before(served: Served, model: int) -> list[Callable[[], None]]:
    """Small requests to a model of a server, as functions that run them: of the model that is read every kind."""
    last = served.models[model].lm.n_layers
    state = {"prompt": PROMPT, "layer": 1, "position": -1}
    asked: dict[str, Any] = {
        "explanation": {**state, "target": TARGET, "model": model, "layers": sorted({1, last}), "max_new_tokens": 2}
    }
    if model == 0:
        asked |= {
            "trajectory": {"prompt": PROMPT, "lens": LOGIT_LENS},
            "generation": {"prompt": PROMPT, "lens": LOGIT_LENS, "max_new_tokens": 2},
            "steering": {"prompt": PROMPT, "layer": 1, "strength": 1.0, "vector": {"plus": state}, "max_new_tokens": 2},
            "grid": {"prompt": PROMPT, "position": -1, "target": TARGET, "source_layers": [0, 1], "target_layers": [1]},
        }
    return [partial(_run_once, served, name, request) for name, request in asked.items()]


def _run_once(served: Served, name: str, request: dict[str, Any]) -> None:
    endpoint = ENDPOINTS[name]
    endpoint.prepare(served, endpoint.request.model_validate(request))(_nowhere)


def _nowhere(name: str, data: Any) -> None:
    """Where events go that nobody reads."""
