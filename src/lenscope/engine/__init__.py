"""Many patched rows of one model run fast, each as if it ran alone."""

from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.sweep import generate, predict

__all__ = ["PatchedRows", "generate", "predict"]
