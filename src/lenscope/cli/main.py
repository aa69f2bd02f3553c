"""The command line from its very start to its exit status: every failure is one line on stderr.

Knows: exit codes, interruptions, streams that fail, which commands there are. Does not know: what a command does.
Commands are imported only when all of this is in place, for that takes a while and may be interrupted; and what is
heavy only when a command needs it, so that --help answers at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from lenscope.cli import streams
from lenscope.cli.streams import silence, tell

if TYPE_CHECKING:
    from typer import Typer

INTERRUPTED = 130
# shells whose commands can be completed
SHELLS = ("bash", "zsh", "fish", "pwsh", "powershell")
# set by a shell that asks what may stand at the cursor, in the script that --show-completion prints
COMPLETING = "_LENSCOPE_COMPLETE"


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
        with streams.usable(), streams.quiet_unless_first():
            status = _guarded(sys.argv[1:] if arguments is None else list(arguments), pressed)
    except KeyboardInterrupt:
        tell("interrupted")
        status = INTERRUPTED
    finally:
        if mine:
            # nothing is left that an interruption could ask to be told
            signal.signal(signal.SIGINT, signal.SIG_DFL if arguments is None else signal.default_int_handler)
    sys.exit(status)


def command_line() -> "Typer":
    """Return the commands by name, with what --help says of them."""
    import typer

    from lenscope._version import __version__
    from lenscope.cli.ask import ask_command
    from lenscope.cli.attribute import attribute_command
    from lenscope.cli.causal import causal_command
    from lenscope.cli.check import check_command
    from lenscope.cli.demo import demo_command
    from lenscope.cli.detect import detect_commands
    from lenscope.cli.detect_evaluate import evaluate_detectors_command
    from lenscope.cli.evaluate import evaluate_command
    from lenscope.cli.export import export_command
    from lenscope.cli.fit import fit_command
    from lenscope.cli.fit_verbaliser import fit_verbaliser_command
    from lenscope.cli.lens import lens_command
    from lenscope.cli.merge import merge_command
    from lenscope.cli.patch import patch_command
    from lenscope.cli.plan import plan_command
    from lenscope.cli.push import push_command
    from lenscope.cli.reproduce import reproduce_command
    from lenscope.cli.serve import serve_command
    from lenscope.cli.swap import swap_command
    from lenscope.cli.sweep import sweep_command

    app = typer.Typer(
        name="lenscope",
        help="Read what the hidden states of language models say.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.command("lens")(lens_command)
    app.command("patch")(patch_command)
    app.command("ask")(ask_command)
    app.command("attribute")(attribute_command)
    app.command("sweep")(sweep_command)
    app.command("check")(check_command)
    app.command("fit")(fit_command)
    app.command("fit-verbaliser")(fit_verbaliser_command)
    app.command("merge")(merge_command)
    app.command("eval")(evaluate_command)
    app.command("export")(export_command)
    app.command("push")(push_command)
    app.command("causal")(causal_command)
    app.command("swap")(swap_command)
    app.command("reproduce")(reproduce_command)
    app.command("plan")(plan_command)
    app.command("demo")(demo_command)
    app.command("serve")(serve_command)
    if all(c.name != "evaluate" for c in detect_commands.registered_commands):
        detect_commands.command("evaluate")(evaluate_detectors_command)
    app.add_typer(detect_commands)

    @app.callback(invoke_without_command=True)
    def version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
        if version:
            streams.say(f"lenscope {__version__}")
            raise typer.Exit

    return app


def _guarded(arguments: list[str], pressed: threading.Event) -> int:
    try:
        try:
            status = _run_command(arguments)
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
        if streams.several_processes() and _other_ended(error):
            return _failed("another process of this run ended, and this one with it")
        raise


def _run_command(arguments: list[str]) -> int:
    for text in arguments:
        if any("\ud800" <= c <= "\udfff" for c in text):
            shown = text.encode("ascii", "backslashreplace").decode("ascii")
            return _failed(f"the argument {shown}: is no text in the terminal's encoding; name it in UTF-8")
    import typer

    from lenscope.cli.terminal import Stopped
    from lenscope.errors import LenscopeError

    try:
        command = typer.main.get_command(command_line())
        if completing := os.environ.get(COMPLETING):
            from typer.completion import shell_complete

            return shell_complete(command, {}, "lenscope", COMPLETING, completing)
        for option in {"--install-completion", "--show-completion"} & {*arguments[:1]}:
            _require_shell(option)
        with command.make_context("lenscope", arguments or ["--help"]) as context:
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


def _require_shell(option: str) -> None:
    """Raise LenscopeError for an option about the shell that started this process, where it is none of SHELLS."""
    import shellingham

    from lenscope.errors import LenscopeError

    try:
        shell = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        shell = "no shell that is known"
    if shell not in SHELLS:
        raise LenscopeError(f"{option}: was started from {shell}; run it in {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")


def _unwritten(error: OSError | None) -> int:
    """The status for a stdout that failed: none of its own where the reader of a pipe has seen enough."""
    if error is None or isinstance(error, BrokenPipeError):
        return 0
    return _failed(f"the output cannot be written ({error.strerror or error})")


def _failed(line: str) -> int:
    if not streams.several_processes():
        tell(line)
        return 2
    # of several processes that fail the first one to do so says why
    from lenscope.distributed.processes import fails_first

    if fails_first():
        tell(line, everyone=True)
    return 2


def _other_ended(error: Exception) -> bool:
    """Whether torch says that another process, which this one waits for, has gone."""
    return type(error).__name__.startswith("Dist") or "onnection closed by peer" in str(error)


def _out_of_memory(error: Exception) -> bool:
    """Whether torch says so, which has no exception of its own for the processor's memory."""
    message = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in message or "out of memory" in message)
