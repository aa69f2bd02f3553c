"""The command line from its very start to its exit status: every failure is one line on stderr.

Knows: exit codes, interruptions, streams that fail. Does not know: any command (commands.py), which is imported only
when all of this is in place, for that takes a while and may be interrupted.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from lenscope.cli import streams
from lenscope.cli.streams import silence, tell

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    mine = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if mine:
            signal.signal(signal.SIGINT, press)
        with streams.usable():
            status = _guarded(sys.argv[1:] if arguments is None else list(arguments), pressed)
    except KeyboardInterrupt:
        tell("interrupted")
        status = INTERRUPTED
    finally:
        if mine:
            # nothing is left that an interruption could ask to be told
            signal.signal(signal.SIGINT, signal.SIG_DFL if arguments is None else signal.default_int_handler)
    sys.exit(status)


def _guarded(arguments: list[str], pressed: threading.Event) -> int:
    try:
        try:
            status = _run(arguments)
        finally:
            streams.flush()
        return _unwritten(streams.failure()) or status
    except KeyboardInterrupt:
        raise
    except MemoryError as error:
        return _failed(f"out of memory{f' ({error})' if str(error) else ''}: give less at once, or a smaller model")
    except OSError as error:
        if error.filename is None:  # a stream, and what is left for it would fail once more
            silence(sys.stdout)
            return _unwritten(error)
        return _failed(f"{error.filename}: cannot be read or written ({error.strerror or error})")
    except Exception as error:
        if pressed.is_set():  # a library took the interruption for a failure of its own
            raise KeyboardInterrupt from error
        if _out_of_memory(error):
            return _failed(f"out of memory ({error}): give less at once, or a smaller model")
        raise


def _run(arguments: list[str]) -> int:
    for text in arguments:
        if any("\ud800" <= c <= "\udfff" for c in text):
            shown = text.encode("ascii", "backslashreplace").decode("ascii")
            return _failed(f"the argument {shown}: is no text in the terminal's encoding; name it in UTF-8")
    import typer

    from lenscope.cli.commands import app
    from lenscope.cli.options import Stopped
    from lenscope.errors import LenscopeError

    try:
        command = typer.main.get_command(app)
        with command.make_context("lenscope", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as left:
        return left.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except LenscopeError as error:
        return _failed(str(error))
    except typer.TyperException as error:
        return _failed(f"{error.format_message()} (see --help)")
    except Stopped as stop:
        tell(str(stop))
        return INTERRUPTED


def _unwritten(error: OSError | None) -> int:
    """The status for a stdout that failed: none of its own where the reader of a pipe has seen enough."""
    if error is None or isinstance(error, BrokenPipeError):
        return 0
    return _failed(f"the output cannot be written ({error.strerror or error})")


def _failed(line: str) -> int:
    tell(line)
    return 2


def _out_of_memory(error: Exception) -> bool:
    """Whether torch says so, which has no exception of its own for the processor's memory."""
    told = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in told or "out of memory" in told)
