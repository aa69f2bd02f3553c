"""The one exception for mistakes a user can mend.

Knows: that its message names the value, the valid range and the remedy, in one line.
Does not know: who raises it, or how it is shown.
"""


class LenscopeError(ValueError):
    """A mistake that you can mend. Its one line names the value, what would be valid, and what to do instead."""
