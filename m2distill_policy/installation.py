"""How this package was installed, where its files are, and the command that installs missing packages."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from m2distill_policy import pins

#: ``clone``: used from the source tree, also if pip installed it with ``--editable``. ``colcon``: part of a built ROS 2
#: workspace that is sourced. ``pip``: everything else.
Kind = Literal["clone", "pip", "colcon"]

#: Role -> the top-level modules that it needs. A role whose modules can all be found is installed.
ROLE_MODULES: dict[str, tuple[str, ...]] = {
    "robot": ("numpy", "yaml", "cv2", "cyclonedds", "onnxruntime", "ruckig", "cryptography"),
    "train": (
        *("torch", "onnx", "safetensors", "h5py", "transformers", "tokenizers", "tqdm", "tensorboard", "matplotlib"),
        *("rosbags", "optuna", "sklearn"),
    ),
    "sim": (
        *("mujoco", "robosuite", "libero", "bddl", "h5py", "tqdm", "imageio", "imageio_ffmpeg", "fast_simplification"),
        *("threadpoolctl", "gymnasium", "numba", "scipy", "PIL", "termcolor", "matplotlib", "cloudpickle", "easydict"),
        "future",
    ),
}
if sys.version_info < (3, 11):
    ROLE_MODULES["robot"] += ("tomli",)

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
    # In the source tree, the file is next to the package. pip and colcon install it below a parent folder of the
    # package or, with Debian's Python, below the prefix.
    places = [_PACKAGE.parent, *(p / "share" / _PACKAGE.name for p in (*_PACKAGE.parents, Path(sys.prefix)))]
    return next((place / name for place in places if (place / name).exists()), None)


def requirement_files(role: str) -> tuple[str, ...]:
    """Return the names of the files in ``requirements/`` that a role needs on this machine.

    Args:
        role: ``robot``, ``robot-gpu``, ``train``, ``sim``, ``ray`` or ``dev``.

    Returns:
        One file name. A second one, if there is one, has to be installed with ``pip install --no-deps``.
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


def missing_modules(role: str) -> list[str]:
    """Return the modules of a role that are not installed. Nothing is imported, because importing torch is slow."""
    # Only 'm2distill serve' and 'm2distill sim' need cyclonedds. A robot with ROS 2 does not use these commands.
    unneeded = ("cyclonedds",) if requirement_files(role) == ("robot-ros.txt",) else ()
    return [m for m in ROLE_MODULES[role] if m not in unneeded and importlib.util.find_spec(m) is None]


def missing_package(module: str, roles: Sequence[str]) -> str | None:
    """Return the end of an error message that names a missing package and the command that installs it.

    Args:
        module: Top-level module that cannot be imported.
        roles: The roles that are needed. The command leaves out roles that are installed already.

    Returns:
        A phrase that begins with "needs"; None if no role contains the module. In that case its absence is a bug.
    """
    owners = [role for role, modules in ROLE_MODULES.items() if module in modules]
    if not owners:
        return None
    wanted = [role for role in roles if missing_modules(role)] or [role for role in roles if role in owners]
    if not set(wanted) & set(owners):
        wanted.append(owners[0])
    return f"needs the package '{module}', which is not installed; install it: {install_command(*wanted)}"


def install_command(*roles: str) -> str:
    """Return the shell command that installs the packages of ``roles``, for this kind of installation.

    If ``make venv`` made the virtual environment, the command is ``make venv``. Otherwise it is a pip command.

    Args:
        roles: Names of roles, as in :func:`requirement_files`. ``robot-gpu`` replaces ``robot``.
    """
    made_for = Path(sys.prefix) / ".roles"
    if kind() == "clone" and made_for.is_file():
        wanted = list(dict.fromkeys((*made_for.read_text(encoding="utf-8").split(), *roles)))
        if "robot-gpu" in wanted:
            wanted = [role for role in wanted if role != "robot"]
        folder = Path(sys.prefix)
        where = "" if folder == _PACKAGE.parent / ".venv" else f" VENV={shlex.quote(str(folder))}"
        return f"make -C {shlex.quote(str(_PACKAGE.parent))} venv{where} ROLES='{' '.join(wanted)}'"
    folder_of_lists = find_file("requirements")
    if folder_of_lists is None:
        return "reinstall m2distill_policy: this installation has no requirements/ folder"
    files = [requirement_files(role) for role in roles]
    command = f"{shlex.quote(sys.executable)} -m pip uninstall --yes onnxruntime && " if "robot-gpu" in roles else ""
    command += _pip(folder_of_lists, [names[0] for names in files])
    without_dependencies = [names[1] for names in files if len(names) > 1]
    if without_dependencies:
        command += " && " + _pip(folder_of_lists, without_dependencies, "--no-deps")
    return command


def reinstall_command(name: str) -> str:
    """Return the shell command that installs one package again, without its dependencies.

    Args:
        name: Name of the distribution, such as ``cyclonedds``. The command installs the version in ``requirements/``,
            or the installed version if ``requirements/`` has none.
    """
    folder = find_file("requirements")
    files = sorted(folder.glob("*.txt")) if folder is not None else []
    versions = {pin: version for file in files for pin, relation, version in pins.read_pins(file) if relation == "=="}
    version = versions.get(name) or pins.installed_version(name)
    wanted = name if version is None else f"{name}=={version}"
    return shlex.join([sys.executable, "-m", "pip", "install", "--force-reinstall", "--no-deps", wanted])


def _pip(folder: Path, files: list[str], *options: str) -> str:
    words = [sys.executable, "-m", "pip", "install", *options]
    for file in files:
        words += ["-r", str(folder / file)]
    return shlex.join(words)
