"""Compare the installed packages with the versions in ``requirements/``. Needs the standard library only."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

#: Format of a requirement: a name, ``==`` or ``<``, a version, and at most one condition on Python's version. Only
#: dev.txt has conditions on the machine, and dev.txt is not compared.
_LINE = re.compile(r"([A-Za-z0-9._-]+)\s*(==|<)\s*([^\s;]+)\s*(?:;\s*python_version\s*(<|>=)\s*\"([0-9.]+)\")?")
#: Groups of distributions that install the same modules. The one that is installed last overwrites the others.
_CONFLICTING = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
)


def read_pins(file: Path) -> list[tuple[str, str, str]]:
    """Read the requirements of a file and of the files that it includes. Skip those for other Python versions.

    Args:
        file: A file of ``requirements/``.

    Returns:
        (distribution, ``==`` or ``<``, version) of each requirement, in the order of the file.
    """
    return list(_read(file))


def _read(file: Path) -> Iterator[tuple[str, str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from _read(file.parent / text[3:].strip())
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            continue
        name, relation, version, side, python = found.groups()
        if python is not None and (sys.version_info[:2] < _numbers(python)) != (side == "<"):
            continue
        yield name, relation, version


def find_mismatches(file: Path) -> list[str]:
    """Compare the installed packages with a file of ``requirements/``.

    Local version suffixes such as "+cpu" are ignored.

    Returns:
        One phrase for each difference; empty if all packages have the versions that the file asks for.
    """
    found = []
    for name, relation, wanted in read_pins(file):
        installed = installed_version(name)
        if installed is None:
            found.append(f"{name} is not installed, needs {relation}{wanted}")
        elif relation == "==" and installed.partition("+")[0] != wanted:
            found.append(f"{name} is {installed}, needs {wanted}")
        elif relation == "<" and _numbers(installed) >= _numbers(wanted):
            found.append(f"{name} is {installed}, needs a version below {wanted}")
        for group in _CONFLICTING:
            if name in group and installed is not None:
                others = [other for other in group if other != name and installed_version(other) is not None]
                found += [f"{other} is installed too and overwrites files of {name}" for other in others]
    return found


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
