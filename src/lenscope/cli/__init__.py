"""The command line: one file for each command.

Knows: options, exit codes, stdout and stderr. Does not know: how anything is computed.
"""

from lenscope.cli.main import main

__all__ = ["main"]
