"""The ``m2distill`` command: find the subcommand, import only that one, and print errors as one line.

Exit codes: 0 success; 1 a check failed; 2 an error in the arguments, in a file or on the machine; 3 training diverged;
130 stopped by Ctrl-C; 143 stopped by SIGTERM; 141 the reader of the output closed the pipe. ``--debug`` shows the
traceback.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from m2distill_policy import __version__
from m2distill_policy.arguments import Parser, program
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.errors import M2DistillError, closest, printable, shorten
from m2distill_policy.installation import missing_package
from m2distill_policy.storage import disk_full_error
from m2distill_policy.streams import flush_or_discard

#: Subcommand -> the roles whose packages it needs. Roles are named as the files in ``requirements/``.
ROLES: dict[str, tuple[str, ...]] = {
    "demos": ("robot", "sim"),
    "import-bag": ("robot", "train"),
    "plan": ("robot", "train", "sim"),
    "config": ("robot", "train"),
    "train": ("robot", "train", "sim"),
    "ablate": ("robot", "train", "sim"),
    "sweep": ("robot", "train", "sim"),
    "export": ("robot", "train"),
    "sign": ("robot",),
    "evaluate": ("robot", "sim"),
    "serve": ("robot",),
    "sim": ("robot", "sim"),
    "viewpoint": ("robot",),
    "demo": ("robot", "train", "sim"),
    "report": ("robot", "train", "sim"),
    "tasks": ("robot",),
    "info": ("robot", "train"),
    "doctor": ("robot",),
}
#: Subcommands that, after they were stopped, continue if the same command is given again.
RESUMABLE = frozenset({"demos", "import-bag", "train", "ablate", "sweep", "evaluate", "demo"})

#: Errors that a wrong path from the user causes, at the place in the code that first uses the path.
_WRONG_PLACE = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
#: Parts of the error messages of libraries if there is not enough memory.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m2distill``.

    Args:
        argv: The command-line arguments (default: the arguments of this process).

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    # --debug is removed before parsing, so that it is accepted both before and after the subcommand.
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    words = [word for i, word in enumerate(given) if i >= end or word != "--debug"]
    _start_logging(debug)
    if not words:
        _parser(None)[0].print_help()
        return 0
    name = next((word for word in words if not word.startswith("-")), None)
    try:
        if name is not None and name not in SUMMARIES:
            raise M2DistillError(
                f"unknown command '{name}'; allowed are {', '.join(SUMMARIES)}{closest(name, SUMMARIES)}"
            )
        top, command = _parser(name)
        _, unknown = top.parse_known_args(words[: words.index(name)] if name else words)
        top.require_known(unknown)
        if command is None:
            top.error("a command is missing")
        args = command.parse_in_any_order(words[words.index(name or "") + 1 :])
        code = args.run(args)
        sys.stdout.flush()
        if not isinstance(code, int):
            raise TypeError(f"m2distill {name}: run() returned {code!r}, not an exit code")
        return code
    except M2DistillError as error:
        code = _say(error, str(error), debug)
        if code > 128:  # stopped by a signal
            _say_how_to_continue(name or "", given)
        return code
    except BrokenPipeError:
        # The reader of the output (head, less) has closed the pipe.
        flush_or_discard()
        return 141
    except OSError as error:
        full = disk_full_error(error)
        if full is not None:
            return _say(error, str(full), debug)
        if not (isinstance(error, _WRONG_PLACE) and error.filename):
            raise
        return _say(error, f"{error.filename}: {error.strerror}; give another path, or fix this one", debug)
    except (MemoryError, RuntimeError) as error:
        short = no_memory(error)
        if short is None:
            raise
        return _say(error, short, debug)
    except ImportError as error:
        message = missing_dependency(error, name or "")
        if message is None:
            raise
        return _say(error, message, debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("m2distill: stopped by Ctrl-C", file=sys.stderr)
        _say_how_to_continue(name or "", given)
        return 130


def _say_how_to_continue(name: str, words: Sequence[str]) -> None:
    """Print the command that continues or repeats a stopped subcommand, which is the same command again."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        print("finished work is kept; to continue, give the same torchrun command again", file=sys.stderr)
        return
    what = "finished work is kept; to continue" if name in RESUMABLE else "to start again"
    print(f"{what}: {printable(shlex.join([*program(), *words]))}", file=sys.stderr)


def no_memory(error: BaseException) -> str | None:
    """Return a message if ``error`` means that there was not enough memory, else None.

    torch, ONNX Runtime and OpenCV raise their own errors, which can only be recognised by their text.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text.lower() for words in _NO_MEMORY):
        return None
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "an allocation failed")
    return (
        f"this machine has not enough memory ({shorten(reason)}); use a smaller optim.batch, network or image_size, or "
        "fewer processes"
    )


def missing_dependency(error: ImportError, command: str) -> str | None:
    """Return a message with the install command for the package missing in ``error``; None for an unknown package."""
    package = (error.name or "").partition(".")[0]
    if package == "rclpy":
        return f"'m2distill {command}' needs ROS 2; source it first: source /opt/ros/<distribution>/setup.bash"
    if command not in ROLES:
        return None
    advice = missing_package(package, ROLES[command])
    return None if advice is None else f"'m2distill {command}' {advice}"


def load_command(name: str) -> ModuleType:
    """Import the module of a subcommand.

    Raises:
        M2DistillError: This installation does not contain the subcommand.
    """
    module = f"m2distill_policy.commands.{name.replace('-', '_')}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise M2DistillError(f"the command '{name}' is not part of this installation") from error


def _parser(selected: str | None) -> tuple[Parser, Parser | None]:
    """Return the parser of ``m2distill`` and the parser of the selected subcommand (None without one).

    Only the module of that subcommand is imported. Of the other subcommands, the help shows one line each.
    """
    parser = Parser(
        prog="m2distill",
        description="Train a robot policy on one task after another, export it, and run it on a robot or in "
        "simulation.",
        epilog="examples:\n  m2distill doctor\n  m2distill tasks\n\n'm2distill <command> --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"m2distill {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, and debug messages")
    subparsers = parser.add_subparsers(dest="command", metavar="<command>", title="commands")
    for name, summary in SUMMARIES.items():
        if name == selected:
            load_command(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser, None if selected is None else subparsers.choices[selected]


class _OneLine(logging.Formatter):
    """Formatter that writes a record as one line of printable characters. A traceback follows unchanged."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _start_logging(debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Messages below a warning are shown only for this project's packages, because an HTTP client logs every request.
    for package in ("m2distill_policy", "training"):
        logging.getLogger(package).setLevel(logging.DEBUG if debug else logging.INFO)


def _say(error: BaseException, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f"m2distill: {printable(message)}", file=sys.stderr)
    return error.exit_code if isinstance(error, M2DistillError) else M2DistillError.exit_code
