"""Build a LIBERO scene with LIBERO's own environment.

Only the needed parts of LIBERO's package are imported, because its ``envs/__init__`` imports gym and vectorised
environments.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m2distill_policy.errors import SimulationError
from m2distill_policy.installation import install_command
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.libero import files as libero_files
from m2distill_policy.sim.visuals import is_visual_only

_log = logging.getLogger(__name__)

#: Largest number of times that LIBERO may try to place the objects of a scene.
PLACEMENT_ATTEMPTS = 50


def build_libero_env(task: Task) -> Any:
    """Build LIBERO's environment of a task, without a renderer. The fixtures are at the same places in every call.

    Raises:
        SimulationError: LIBERO is not installed, or its scene cannot be built.
    """
    problems = _import_libero()
    import robosuite
    from robosuite.utils.errors import RandomizationError

    bddl = str(libero_files.bddl_file(task.suite, task.name))
    problem = sys.modules["libero.libero.envs.bddl_utils"].get_problem_info(bddl)["problem_name"]
    for attempt in range(PLACEMENT_ATTEMPTS):
        with seeded_numpy(attempt):
            try:
                return _hiding_missing_visuals(problems[problem])(
                    bddl_file_name=bddl,
                    robots=["Panda"],
                    controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                    initialization_noise=None,
                    has_renderer=False,
                    has_offscreen_renderer=False,
                    use_camera_obs=False,
                    control_freq=20,
                    ignore_done=True,
                )
            except RandomizationError:
                continue
            except (OSError, ValueError) as error:  # a file of the scene is missing or damaged
                raise SimulationError(
                    f"LIBERO's scene of '{task.name}' cannot be built: {error}; get the complete folder "
                    "'libero/libero/assets' of github.com/Lifelong-Robot-Learning/LIBERO and set "
                    "M2DISTILL_LIBERO_ASSETS to it"
                ) from error
    raise SimulationError(f"LIBERO found no place for the objects of '{task.name}' in {PLACEMENT_ATTEMPTS} attempts")


def _import_libero() -> Any:
    """Import LIBERO, and return a mapping: name of the problem -> environment class."""
    choose_gl()
    if "libero.libero.envs.problems" in sys.modules:
        return sys.modules["libero.libero.envs.bddl_base_domain"].TASK_MAPPING
    folder = libero_files.package_folder()
    assets = libero_files.assets_folder()
    # Without a configuration file, LIBERO asks questions on standard input. So a temporary file is made for it.
    with tempfile.TemporaryDirectory(prefix="m2distill_libero_") as config:
        places = {
            name: str(folder / sub) for name, sub in (("bddl_files", "bddl_files"), ("init_states", "init_files"))
        }
        places |= {"benchmark_root": str(folder), "datasets": str(folder.parent / "datasets"), "assets": str(assets)}
        Path(config, "config.yaml").write_text("".join(f"{name}: '{place}'\n" for name, place in places.items()))
        before = os.environ.get("LIBERO_CONFIG_PATH")
        os.environ["LIBERO_CONFIG_PATH"] = config
        try:
            package: Any = importlib.import_module("libero.libero")
            package._assets_path_cache = str(assets)
            envs = types.ModuleType("libero.libero.envs")
            envs.__path__ = [str(folder / "envs")]
            sys.modules["libero.libero.envs"] = envs
            importlib.import_module("libero.libero.envs.problems")
        except ImportError as error:
            raise SimulationError(
                f"LIBERO cannot be imported ({error}); install the simulator's packages: {install_command('sim')}"
            ) from error
        finally:
            if before is None:
                del os.environ["LIBERO_CONFIG_PATH"]
            else:
                os.environ["LIBERO_CONFIG_PATH"] = before
    return sys.modules["libero.libero.envs.bddl_base_domain"].TASK_MAPPING


def _hiding_missing_visuals(problem: Any) -> Any:
    """Return a subclass of LIBERO's environment class that hides visual meshes whose file is missing."""

    def build_scene(self: Any, xml_string: str | None = None) -> None:
        self.m2distill_xml = hide_missing_visuals(xml_string or self.model.get_xml())
        problem._initialize_sim(self, self.m2distill_xml)

    # The subclass has the same name, because LIBERO compares the name with the task's file.
    return type(problem.__name__, (problem,), {"_initialize_sim": build_scene})


def hide_missing_visuals(xml: str) -> str:
    """Return the MJCF without the visual meshes whose file is missing. A warning names each of them.

    A collision mesh whose file is missing is kept, so that MuJoCo reports an error. Without the mesh the physics would
    differ.
    """
    root = ElementTree.fromstring(xml)
    assets = root.find("asset")
    absent = {
        mesh.get("name"): mesh
        for mesh in ([] if assets is None else assets.iter("mesh"))
        if mesh.get("file") and not Path(str(mesh.get("file"))).exists()
    }
    for name, mesh in absent.items():
        users = [geom for geom in root.iter("geom") if geom.get("mesh") == name]
        if assets is None or not all(is_visual_only(geom) for geom in users):
            continue
        _log.warning("LIBERO's scene has no file %s; the mesh is not rendered (physics is unchanged)", mesh.get("file"))
        assets.remove(mesh)
        for geom in users:  # robosuite looks up geoms by name, so the geoms must exist
            for attribute in ("mesh", "material"):
                geom.attrib.pop(attribute, None)
            geom.attrib.update(type="sphere", size="0.0001", rgba="0 0 0 0")
    return ElementTree.tostring(root, encoding="unicode")


@contextlib.contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global random generator, which LIBERO uses to place objects, and restore its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
