"""How this package was installed, where its files are, and the command that installs missing packages."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Literal

from m2distill_policy import pins

#: ``clone``: the source tree, also when pip installed it with ``--editable``. ``colcon``: a built ROS 2 workspace that
#: is sourced. ``pip``: everything else.
Kind = Literal["clone", "pip", "colcon"]

_PACKAGE = Path(__file__).resolve().parent

#: The bundle that ships with the package: a small policy for three tasks of the tabletop suite. ``make pretrained``
#: rebuilds it.
PRETRAINED = _PACKAGE / "pretrained" / "tabletop"
_RESOURCE = "share/ament_index/resource_index/packages/m2distill_policy"


def kind() -> Kind:
    """Return how this package was installed."""
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        # pip installs the resource file too, below the prefix of its Python.
        if Path(prefix, _RESOURCE).is_file() and Path(prefix).resolve() != Path(sys.prefix).resolve():
            return "colcon"
    root = _PACKAGE.parent
    return "clone" if (root / "setup.py").is_file() and (root / "Makefile").is_file() else "pip"


def find_file(name: str) -> Path | None:
    """Return the path of a file or folder that belongs to the installation, or None if it is not there.

    Args:
        name: Path in the source tree, such as ``config/tiny.toml`` or ``requirements``.
    """
    # In the source tree beside the package; otherwise where pip and colcon install it: below a parent of the package
    # or, on Debian's Python, below the prefix.
    places = [_PACKAGE.parent, *(p / "share" / _PACKAGE.name for p in (*_PACKAGE.parents, Path(sys.prefix)))]
    return next((place / name for place in places if (place / name).exists()), None)


def requirement_files(role: str) -> tuple[str, ...]:
    """Return the names of the files in ``requirements/`` that a role needs on this machine.

    Args:
        role: ``robot``, ``train``, ``sim``, ``ray`` or ``dev``.

    Returns:
        One name, or two if the second has to be installed with ``pip install --no-deps``.
    """
    if role == "sim":
        return ("sim.txt", "sim-nodeps.txt")
    if role != "robot":
        return (f"{role}.txt",)
    if pins.installed_version("onnxruntime-gpu") is not None:
        return ("robot-gpu.txt",)
    if os.environ.get("ROS_DISTRO") and os.environ.get("AMENT_PREFIX_PATH"):
        return ("robot-ros.txt",)  # NumPy and cv2 come from ROS 2
    return ("robot.txt",)


def install_command(*roles: str) -> str:
    """Return the shell command that installs the packages of ``roles``, for this kind of installation.

    A virtual environment that ``make venv`` made is updated by ``make venv``; every other Python by pip.
    """
    made_for = Path(sys.prefix) / ".roles"
    if kind() == "clone" and made_for.is_file():
        wanted = made_for.read_text(encoding="utf-8").split()
        wanted += [role for role in roles if role not in wanted and not (role == "robot" and "robot-gpu" in wanted)]
        folder = Path(sys.prefix)
        where = "" if folder == _PACKAGE.parent / ".venv" else f" VENV={shlex.quote(str(folder))}"
        return f"make -C {shlex.quote(str(_PACKAGE.parent))} venv{where} ROLES='{' '.join(wanted)}'"
    folder_of_lists = find_file("requirements")
    if folder_of_lists is None:
        return "reinstall m2distill_policy: this installation has no requirements/ folder"
    files = [requirement_files(role) for role in roles]
    command = _pip(folder_of_lists, [names[0] for names in files])
    without_dependencies = [names[1] for names in files if len(names) > 1]
    if without_dependencies:
        command += " && " + _pip(folder_of_lists, without_dependencies, "--no-deps")
    return command


def _pip(folder: Path, files: list[str], *options: str) -> str:
    words = [sys.executable, "-m", "pip", "install", *options]
    for file in files:
        words += ["-r", str(folder / file)]
    return shlex.join(words)
