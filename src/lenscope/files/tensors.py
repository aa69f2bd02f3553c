"""Files of tensors, by their ending: safetensors, or what `torch.save` wrote.

Knows: which reader a file needs, that it must hold a dictionary. Does not know: what the tensors are for.
"""

from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.files.pickles import read_pickle
from lenscope.files.untrusted import read_safetensors

ENDINGS = (".pt", ".pth", ".safetensors")


def read_tensors(path: Path) -> dict[Any, Any]:
    """A dictionary of tensors and plain values, on the CPU wherever they were saved from; no code in a file is run.

    Raises LenscopeError for a file that is damaged, or holds no dictionary.
    """
    content: Any = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(content, dict):
        raise LenscopeError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content
