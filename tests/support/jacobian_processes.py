"""What each of several processes does in a fit of a Jacobian lens: plain, and with the model's weights split.

Started by tests as a script with a folder, which gets the lens.
"""

import sys
from pathlib import Path

from small_fits import documents, make

from lenscope.distributed.sharding import sharded
from lenscope.fitting.jacobian_lens import fit_jacobian_lens

# five rows of each half: one process has a row less
HOW = {"tokens": 320, "length": 32, "skip": 4}


def fit_here(folder, split=False):
    lm = make()
    if not split:
        return fit_jacobian_lens(lm, documents(), folder=folder, **HOW)
    with sharded(lm):
        return fit_jacobian_lens(lm, documents(), folder=folder, **HOW)


if __name__ == "__main__":
    fit_here(Path(sys.argv[-1]), "split" in sys.argv)
