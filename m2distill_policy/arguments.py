"""What the subcommands of ``m2distill`` share: their parser, settings as ``key=value``, files and bundles by name."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from m2distill_policy.bundle_files import bundle_folder
from m2distill_policy.errors import closest, printable
from m2distill_policy.installation import PRETRAINED, find_file

#: Value of ``memory.episodes`` in the two training profiles that :func:`train_command` uses.
MEMORY_EPISODES = 5


class HelpFormatter(argparse.HelpFormatter):
    """Help formatter that wraps one-line texts and keeps the line breaks of multi-line texts, such as examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Parser of a subcommand. It accepts options and other arguments in any order.

    An unknown option is an error that names the closest known one, below the usage of the subcommand.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})

    def parse_in_any_order(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the command-line arguments that follow the subcommand."""
        # argparse does not support "--" in an intermixed line.
        parse = self.parse_known_args if "--" in words else self.parse_known_intermixed_args
        parsed, unknown = parse(words)
        self.require_known(unknown)
        return parsed

    def require_known(self, unknown: Sequence[str]) -> None:
        """If there are unknown arguments, exit with an error that names the first one, preferably an option."""
        if not unknown:
            return
        # Words that follow an unknown option may be its values, so the option is named first.
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        if not word.startswith("-"):
            self.error(f"unexpected argument '{word}'")
        known = [option for action in self._actions for option in action.option_strings]
        name = word.partition("=")[0]
        self.error(f"unknown option '{name}'{closest(name, known)}")

    def error(self, message: str) -> NoReturn:
        """Print the usage, then ``message`` in one line of printable characters, and exit with code 2."""
        super().error(printable(message))


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``overrides``: any number of ``key=value``, anywhere on the command line."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings to change, such as optim.steps=600; anywhere on the line",
    )


def installed_file(folder: str, suffix: str) -> Callable[[str], Path]:
    """Return a ``type`` for argparse that accepts a path, or the name of a file that is installed with this package.

    Args:
        folder: Folder of the installed files in the source tree, such as ``config/arms``.
        suffix: Suffix of their names, such as ``.yaml``.

    Returns:
        A function that returns the path of an existing file for ``path/to/file.yaml``, ``config/arms/name.yaml`` (from
        any working directory) and ``name``. Other text is returned as a path; reading that file later fails.
    """

    def find(text: str) -> Path:
        if text and not Path(text).exists() and not Path(text).is_absolute():
            for name in (text, f"{folder}/{text}", f"{folder}/{text}{suffix}"):
                found = find_file(name)
                if found is not None and found.is_file():
                    return found
        return Path(text)

    return find


#: The ``type`` of ``--config`` of the commands that train.
training_config = installed_file("config", ".toml")
#: The ``type`` of ``--config`` of the commands that drive an arm.
arm_config = installed_file("config/arms", ".yaml")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add ``BUNDLE``, which may be left out: see :func:`find_bundle`."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=Path,
        nargs="?",
        help="folder of a bundle, or of a run (its last bundle); default: the pretrained policy for the tabletop suite",
    )


def find_bundle(path: Path | None) -> Path:
    """Return the bundle's folder for the path of a bundle or run, and print on standard error which one was chosen.

    Args:
        path: Folder of a bundle or of a run. None: the pretrained bundle that ships with the package.

    Raises:
        BundleError: ``path`` is a run that has no bundle yet.
    """
    if path is None:
        print(
            "no bundle given: using the pretrained policy, which was trained on the simulated tabletop only",
            file=sys.stderr,
        )
        return PRETRAINED
    bundle = bundle_folder(path)
    if bundle != path:
        print(f"using the run's last bundle: {printable(str(bundle))}", file=sys.stderr)
    return bundle


def program() -> list[str]:
    """Return the command that starts this program again from the same folder: ``m2distill`` if it is in ``PATH``."""
    started = Path(sys.argv[0])
    if started.resolve() == Path(__file__).resolve().parent / "__main__.py":
        return [sys.executable, "-m", "m2distill_policy"]
    found = shutil.which("m2distill")
    if started.name != "m2distill" or (found is not None and Path(found).resolve() == started.resolve()):
        return ["m2distill"]
    return [str(started)]


def say_next(*words: object) -> None:
    """Print the command that a user would type next, to standard error.

    Args:
        words: The subcommand and its arguments, without ``m2distill``.
    """
    print(f"next: {printable(shlex.join([*program(), *map(str, words)]))}", file=sys.stderr)


def train_command(folder: Path, suite: str, tasks: Sequence[int], episodes: int, size: int) -> list[str]:
    """Return the arguments of the ``m2distill`` command that trains on demonstrations.

    Args:
        folder: Folder of the demonstration files.
        suite: Suite of the demonstrations, or ``files`` for recordings of your own.
        tasks: Numbers of the tasks in the suite; for ``files``, numbers of the files sorted by name.
        episodes: Number of demonstrations of each task.
        size: Height and width of the images in pixels.
    """
    profile = "libero_small" if suite.startswith("libero") else "tiny"
    words = ["train", "--config", profile, "--data", str(folder), "--out", "runs/first", f"suite={suite}"]
    words += [f"tasks=[{','.join(map(str, tasks))}]", f"episodes={episodes}", f"image_size={size}"]
    if episodes < MEMORY_EPISODES:
        words.append(f"memory.episodes={episodes}")
    if suite == "files":
        words.append("evaluation.rollouts=0")
    return words
