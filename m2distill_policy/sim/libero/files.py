"""Find LIBERO's package and scenes, and read its tasks and initial states without importing its benchmark module.

LIBERO's benchmark module imports torch, asks a question on standard input if a file is missing in the home folder, and
unpickles the initial states. Here, the list of tasks is read as a Python literal. The initial states are read from the
opcodes of the pickle, and only one sequence of opcodes is accepted. Nothing in the files is executed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.installation import install_command, reinstall_command
from m2distill_policy.sim.env import Task

#: Largest number of control steps of a rollout, as in LIBERO.
HORIZON = 600

#: The opcodes that torch.save writes for one float64 matrix. Every file of the four suites has this form.
_MATRIX = [
    *("PROTO", "GLOBAL", "BINPUT", "GLOBAL", "BINPUT", "BININT1", "TUPLE1", "BINPUT"),
    *("GLOBAL", "BINPUT", "BINUNICODE", "BINPUT", "BINUNICODE", "BINPUT", "TUPLE2", "BINPUT"),
    *("REDUCE", "BINPUT", "TUPLE3", "BINPUT", "REDUCE", "BINPUT", "MARK", "BININT1"),
    *("INT", "INT", "TUPLE2", "BINPUT", "GLOBAL", "BINPUT", "BINUNICODE", "BINPUT"),
    *("NEWFALSE", "NEWTRUE", "TUPLE3", "BINPUT", "REDUCE", "BINPUT", "MARK", "BININT1"),
    *("BINUNICODE", "BINPUT", "NONE", "NONE", "NONE", "BININT", "BININT", "BININT1"),
    *("TUPLE", "BINPUT", "BUILD", "NEWFALSE", "BINGET", "BINUNICODE", "BINPUT", "BINGET"),
    *("TUPLE2", "BINPUT", "REDUCE", "BINPUT", "TUPLE", "BINPUT", "BUILD", "STOP"),
]


def package_folder() -> Path:
    """Return the folder ``libero/libero`` of the installed package.

    Raises:
        SimulationError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    locations = [] if spec is None else list(spec.submodule_search_locations or [])
    for location in locations:
        folder = Path(location) / "libero"
        if (folder / "bddl_files").is_dir():
            return folder
    raise SimulationError(f"LIBERO is not installed; install it: {install_command('sim')}")


def assets_folder() -> Path:
    """Return the folder with the meshes and textures of LIBERO's scenes. Nothing is downloaded.

    If the environment variable ``M2DISTILL_LIBERO_ASSETS`` is set, it names the folder. Otherwise it is
    ``shared/libero_assets`` next to the repository if that exists, or else ``assets`` in LIBERO's package.

    Raises:
        SimulationError: There is no such folder.
    """
    named = os.environ.get("M2DISTILL_LIBERO_ASSETS")
    if named:
        if (Path(named) / "scenes").is_dir():
            return Path(named)
        raise SimulationError(
            f"M2DISTILL_LIBERO_ASSETS is {named}, which has no folder 'scenes'; set it to LIBERO's folder 'assets'"
        )
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "libero_assets"
    for folder in (beside, package_folder() / "assets"):
        if (folder / "scenes").is_dir():
            return folder
    raise SimulationError(
        "LIBERO's scenes were not found; get the folder 'libero/libero/assets' of "
        "github.com/Lifelong-Robot-Learning/LIBERO and set M2DISTILL_LIBERO_ASSETS to it"
    )


def libero_tasks(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a LIBERO suite in its standard order (order 0).

    Raises:
        SimulationError: LIBERO is not installed, or has no such suite.
    """
    file = package_folder() / "benchmark" / "libero_suite_task_map.py"
    try:
        tree = ast.parse(file.read_text())
    except (OSError, SyntaxError) as error:
        raise SimulationError(f"LIBERO's list of tasks cannot be read from {file}: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = ast.literal_eval(node.value).get(suite)
            if names is not None:
                return tuple(_task(suite, index, name) for index, name in enumerate(names))
    raise SimulationError(f"LIBERO's list of tasks in {file} has no suite '{suite}'")


def _task(suite: str, index: int, name: str) -> Task:
    text = name
    if name[0].isupper():  # in LIBERO-10, names begin with the scene: KITCHEN_SCENE3_turn_on_the_stove
        text = name.split("SCENE", 1)[1].split("_", 1)[1]
    return Task(suite, index, name, text.replace("_", " "), HORIZON, targets=_targets(suite, name))


def _targets(suite: str, name: str) -> tuple[str, ...]:
    """Return the names of the objects of interest, from the task's BDDL file."""
    text = bddl_file(suite, name).read_text()
    return tuple(text.partition("(:obj_of_interest")[2].partition(")")[0].split())


def bddl_file(suite: str, name: str) -> Path:
    """Return the path of the BDDL file that describes the scene and goal of a task.

    Raises:
        SimulationError: The file is missing.
    """
    file = package_folder() / "bddl_files" / suite / f"{name}.bddl"
    if not file.is_file():
        raise SimulationError(
            f"LIBERO's task file {file} is missing; install it again: {reinstall_command('hf-libero')}"
        )
    return file


def initial_states(task: Task) -> NDArray[np.float64]:
    """Return LIBERO's initial states of a task: flattened MuJoCo states (n, S).

    Raises:
        SimulationError: The file cannot be read.
    """
    file = package_folder() / "init_files" / task.suite / f"{task.name}.pruned_init"
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
            return read_matrix(archive.read(name))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise SimulationError(f"LIBERO's initial states cannot be read from {file}: {error}") from error


def read_matrix(content: bytes) -> NDArray[np.float64]:
    """Return the float64 matrix in a pickle of the known form. Nothing is executed.

    Raises:
        ValueError: The pickle has another form.
    """
    operations: list[tuple[str, Any]] = [(code.name, argument) for code, argument, _ in pickletools.genops(content)]
    names = [name for name, _ in operations]
    shape_at = _MATRIX.index("INT")
    for place in (shape_at, shape_at + 1):
        if len(names) > place and names[place] in ("BININT1", "BININT2", "BININT"):
            names[place] = "INT"
    if names != _MATRIX:
        raise ValueError("it is not the pickle of one float64 matrix")
    rows, columns = int(operations[shape_at][1]), int(operations[shape_at + 1][1])
    strings = [argument for name, argument in operations if name == "BINUNICODE"]
    if strings[2:4] != ["f8", "<"]:
        raise ValueError(f"its numbers are '{strings[3]}{strings[2]}'; little-endian float64 is wanted")
    return np.frombuffer(strings[4].encode("latin1"), dtype="<f8").reshape(rows, columns).copy()
