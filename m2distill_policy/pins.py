"""What ``requirements/`` pins, against what is installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

#: Beside the package in a checkout; in the share folder of an installation.
_PLACES = ("requirements", "share/m2distill_policy/requirements")
_LINE = re.compile(r"([A-Za-z0-9._-]+)\s*(==|<)\s*([^\s;]+)\s*(?:;\s*python_version\s*(<|>=)\s*\"([0-9.]+)\")?")
#: Distributions that install the same modules: the one installed last overwrites the other.
_RIVALS = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
)


def requirements_folder() -> Path | None:
    """The folder with the requirements of each role; None where this installation lacks it."""
    here = Path(__file__).resolve()
    for parent in [*here.parents, Path(sys.prefix)]:
        for place in _PLACES:
            if (parent / place / "robot-common.txt").is_file():
                return parent / place
    return None


def pins_of(file: Path) -> list[tuple[str, str, str]]:
    """(distribution, '==' or '<', version) for each line of ``file`` that is for this Python, and of files it names."""
    return list(_pins(file))


def _pins(file: Path) -> Iterator[tuple[str, str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from _pins(file.parent / text[3:].strip())
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            continue
        name, relation, version, side, python = found.groups()
        if python is not None and (sys.version_info[:2] < _numbers(python)) != (side == "<"):
            continue
        yield name, relation, version


def mismatches(file: Path) -> list[str]:
    """What is installed otherwise than ``file`` pins it, one phrase each; empty where all is as pinned.

    A build's own suffix ("+cpu") does not count.
    """
    found = []
    for name, relation, wanted in pins_of(file):
        installed = installed_version(name)
        if installed is None:
            found.append(f"{name} is not installed, wanted {relation}{wanted}")
        elif relation == "==" and installed.partition("+")[0] != wanted:
            found.append(f"{name} is {installed}, wanted {wanted}")
        elif relation == "<" and _numbers(installed) >= _numbers(wanted):
            found.append(f"{name} is {installed}, wanted below {wanted}")
        for rivals in _RIVALS:
            if name in rivals and installed is not None:
                others = [other for other in rivals if other != name and installed_version(other) is not None]
                found += [f"{other} is installed beside {name}, whose files it overwrites" for other in others]
    return found


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
