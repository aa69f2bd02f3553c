"""Errors of loading a model's files, of which there are a hundred kinds, as one line each.

Knows: what transformers and accelerate say while they load. Does not know: where models come from (loading.py), why a
model is refused that could be loaded (refusals.py).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import logging as transformers_logging

from lenscope.errors import LenscopeError
from lenscope.models import refusals


@contextmanager
def plain_errors(source: str, what: str) -> Iterator[None]:
    """Within the block whatever goes wrong becomes one LenscopeError about `source`, with the cause as __cause__."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # what waits elsewhere was asked to
    placing = logging.getLogger("accelerate.big_modeling")
    level = placing.level
    placing.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    except LenscopeError:
        raise
    except MemoryError as error:
        raise LenscopeError(
            f"{source}: does not fit into memory; give a smaller dtype, or device_map='auto'"
        ) from error
    except Exception as error:
        refusals.require_own_code(source, error)
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else reason[:299] + "…"
        raise LenscopeError(f"{source}: {what}: {reason or type(error).__name__}") from error
    finally:
        placing.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
