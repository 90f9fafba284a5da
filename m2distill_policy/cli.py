"""The ``m2distill`` command: finds the subcommand, imports that one alone, and turns errors into one sentence.

Exit codes: 0 done; 1 the command ran and says no (a failed check); 2 a mistake in what was asked, in a file or on the
machine, said in one sentence on standard error; 130 stopped by Ctrl-C. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from m2distill_policy import __version__
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.errors import M2DistillError, closest, printable, shorten
from m2distill_policy.installation import install_command
from m2distill_policy.storage import no_room
from m2distill_policy.streams import give_up_what_cannot_be_written

#: The roles whose packages a subcommand needs, as ``requirements/`` and ``make venv ROLES=...`` name them.
ROLES: dict[str, tuple[str, ...]] = {
    "demos": ("robot", "sim"),
    "import-bag": ("robot", "train"),
    "plan": ("robot", "train", "sim"),
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
    "doctor": ("robot",),
}

#: Top-level modules that ``requirements/`` brings: the absence of one is a role that is not installed, not a bug.
_ROBOT = ("numpy", "yaml", "tomli", "cv2", "cyclonedds", "onnxruntime", "ruckig", "cryptography")
_TRAIN = ("torch", "onnx", "safetensors", "h5py", "transformers", "tokenizers", "tqdm", "tensorboard", "matplotlib")
_TRAIN_MORE = ("rosbags", "optuna", "sklearn")
_SIM = ("robosuite", "mujoco", "libero", "bddl", "numba", "scipy", "PIL", "imageio", "imageio_ffmpeg", "termcolor")
_SIM_MORE = ("fast_simplification", "threadpoolctl", "easydict", "cloudpickle", "gymnasium", "future")
#: What a path that was given can be wrong in, wherever it is first noticed.
_WRONG_PLACE = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
#: What libraries say where memory is short.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc")
INSTALLABLE = frozenset((*_ROBOT, *_TRAIN, *_TRAIN_MORE, *_SIM, *_SIM_MORE))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m2distill`` with ``argv`` (default: the process's arguments) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Taken out by hand, so that it is understood on either side of the subcommand.
    own = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:own]
    words = [word for i, word in enumerate(words) if i >= own or word != "--debug"]
    _start_logging(debug)
    name = next((word for word in words if not word.startswith("-")), None)
    if not words:
        _parser(None).print_help()
        return 0
    try:
        if name is not None and name not in SUMMARIES:
            raise M2DistillError(f"no command '{name}'; allowed are {', '.join(SUMMARIES)}{closest(name, SUMMARIES)}")
        args = _parser(name).parse_args(words)
        code = args.run(args)
        sys.stdout.flush()
        if not isinstance(code, int):
            raise TypeError(f"m2distill {name}: run() returned {code!r}, not an exit code")
        return code
    except M2DistillError as error:
        return _say(error, str(error), debug)
    except BrokenPipeError:
        # The reader (head, less) has gone.
        give_up_what_cannot_be_written()
        return 141
    except OSError as error:
        full = no_room(error)
        if full is not None:
            return _say(error, str(full), debug)
        if not (isinstance(error, _WRONG_PLACE) and error.filename):
            raise
        return _say(error, f"{error.filename}: {error.strerror}; give another path, or mend that one", debug)
    except (MemoryError, RuntimeError) as error:
        short = no_memory(error)
        if short is None:
            raise
        return _say(error, short, debug)
    except ImportError as error:
        sentence = missing_dependency(error, name or "")
        if sentence is None:
            raise
        return _say(error, sentence, debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("stopped; run again to resume", file=sys.stderr)
        return 130


def no_memory(error: BaseException) -> str | None:
    """What to say where ``error`` came of memory that was not there; None where it did not.

    torch, ONNX Runtime and OpenCV say it by their own errors, in words.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text.lower() for words in _NO_MEMORY):
        return None
    said = next((line.strip() for line in text.splitlines() if line.strip()), "no more could be had")
    return (
        f"the memory of this machine is too small ({shorten(said)}); ask for less at once, such as a smaller "
        "optim.batch, network or image_size, or fewer processes"
    )


def missing_dependency(error: ImportError, command: str) -> str | None:
    """The sentence that says how to get the package whose absence raised ``error``; None for one that is not known."""
    package = (error.name or "").partition(".")[0]
    if package == "rclpy":
        return f"'m2distill {command}' needs ROS 2; source it first: source /opt/ros/<distribution>/setup.bash"
    if package not in INSTALLABLE or command not in ROLES:
        return None
    roles = ROLES[command]
    return (
        f"'m2distill {command}' needs the package '{package}', which is not installed; install the packages of the "
        f"role{'s' if len(roles) > 1 else ''} {', '.join(roles)}: {install_command(*roles)}"
    )


def load_command(name: str) -> ModuleType:
    """Import the module of one subcommand; raises :class:`M2DistillError` where this installation lacks it."""
    module = f"m2distill_policy.commands.{name.replace('-', '_')}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise M2DistillError(f"the command '{name}' is not part of this installation") from error


def _parser(selected: str | None) -> argparse.ArgumentParser:
    """The top-level parser. Only the selected subcommand's module is imported; the others are lines in the help."""
    parser = _Parser(
        prog="m2distill",
        description="Lifelong imitation learning: demonstrations, training, export, a served policy, a robot.",
        epilog="example:\n  m2distill doctor\n\n'm2distill <command> --help' explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"m2distill {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, and debug messages")
    subparsers = parser.add_subparsers(dest="command", metavar="<command>", required=True, title="commands")
    for name, summary in SUMMARIES.items():
        if name == selected:
            load_command(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser, and parsers of subcommands, whose errors repeat words of the command line in one line."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _OneLine(logging.Formatter):
    """A record in one line, in which every character can be seen; a traceback below it is as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _start_logging(debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Only our own rooms speak below a warning: an HTTP client's every request is nobody's news.
    for room in ("m2distill_policy", "training"):
        logging.getLogger(room).setLevel(logging.DEBUG if debug else logging.INFO)


def _say(error: BaseException, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f"m2distill: {printable(sentence)}", file=sys.stderr)
    return error.exit_code if isinstance(error, M2DistillError) else M2DistillError.exit_code
