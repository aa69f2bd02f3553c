"""How long work tells how far it is.

Knows: the one signature. Does not know: what is shown.
"""

from collections.abc import Callable

# called with how much is done and how much there is, in the unit that the caller names
Progress = Callable[[int, int], None]
