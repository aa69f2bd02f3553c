"""The one exception for mistakes a user can mend.

Knows: that its message names the value, the valid range and the remedy, in one line.
Does not know: who raises it, or how it is shown.
"""


class LenscopeError(ValueError):
    """A user's mistake, said in one line: the value, what would be valid, what to do instead."""
