"""Worlds of the LIBERO suites, by the same interface as every other.

LIBERO's environment builds the scene and judges the goal; stepping, views and drawing are this package's own. Its
package is imported piecemeal: its ``envs/__init__`` pulls in gym and vectorised environments that nothing here needs.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import SimulationError
from m2distill_policy.observation import Observation
from m2distill_policy.sim.arm_env import CAMERAS, ArmEnv
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.libero import files as libero_files
from m2distill_policy.sim.libero.files import libero_tasks
from m2distill_policy.sim.rendering import Renderer
from m2distill_policy.sim.seeds import is_demonstration_seed
from m2distill_policy.sim.visuals import is_visual_only, visual_model, visual_profile

_log = logging.getLogger(__name__)

#: LIBERO lets a scene settle for this many idle control steps after it was put into an initial state.
_SETTLE_STEPS = 5
#: An object counts as lifted this far (m) above where it was after settling.
_LIFT_HEIGHT = 0.04
_PLACEMENT_ATTEMPTS = 50
#: Standard deviation (rad) of the arm's initial joint angles: robosuite's own.
_JOINT_NOISE = 0.02


def _import_libero() -> Any:
    """LIBERO's table of problems (name -> environment class), with its home-folder questions answered beforehand."""
    choose_gl()
    if "libero.libero.envs.problems" in sys.modules:
        return sys.modules["libero.libero.envs.bddl_base_domain"].TASK_MAPPING
    folder = libero_files.package_folder()
    assets = libero_files.assets_folder()
    # Importing LIBERO asks on standard input unless its configuration exists; give it one of its own, kept nowhere.
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
                f"LIBERO cannot be imported ({error}); install what the simulator needs: "
                "pip install -r requirements/sim.txt && pip install --no-deps -r requirements/sim-nodeps.txt"
            ) from error
        finally:
            if before is None:
                del os.environ["LIBERO_CONFIG_PATH"]
            else:
                os.environ["LIBERO_CONFIG_PATH"] = before
    return sys.modules["libero.libero.envs.bddl_base_domain"].TASK_MAPPING


@dataclass(frozen=True)
class Slide:
    """A drawer: its body, the unit vector (3,) along which it opens, and how far it is open (m)."""

    body: int
    outwards: NDArray[np.float64]
    open: float


class LiberoEnv(ArmEnv):
    """One task of a LIBERO suite. See :class:`m2distill_policy.sim.env.World`.

    ``reset(seed)`` takes LIBERO's initial state ``seed`` modulo their count (50), and lets it settle as LIBERO does.
    Seeds of demonstrations draw a fresh one instead, so that no demonstration begins where a policy is measured.
    """

    def __init__(self, task: Task, *, size: int = 128, visuals: str = "fast") -> None:
        problems = _import_libero()
        profile = visual_profile(visuals)
        self._initial_states = libero_files.initial_states(task)
        self._libero = _build(problems, task)
        env = self._libero
        env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
        model, data = env.sim.model._model, env.sim.data._data
        if self._initial_states.shape[1] != 1 + model.nq + model.nv:
            raise SimulationError(
                f"the initial states of '{task.name}' have {self._initial_states.shape[1]} numbers, its scene has "
                f"{1 + model.nq + model.nv}; hf-libero 0.1.4 and robosuite 1.4.0 belong together"
            )
        xml = env.m2distill_xml
        drawn = visual_model(xml, profile)
        # Fixtures are placed in the model, not in the state.
        drawn.body_pos[:] = model.body_pos
        drawn.body_quat[:] = model.body_quat
        renderer = Renderer(drawn, profile, sites=True)
        fov = {name: float(model.cam_fovy[model.camera(camera).id]) for name, camera in CAMERAS.items()}
        contract = libero_contract(size, fov_agentview=fov["agentview_rgb"], fov_hand=fov["eye_in_hand_rgb"])
        super().__init__(task, contract, model, data, renderer, xml)
        self.home = np.array(env.robots[0].init_qpos, dtype=np.float64)
        self._goals = self._known_goals()
        self._heights: dict[str, float] = {}
        self._achieved: list[str] = []
        self._lifted: list[str] = []

    def _known_goals(self) -> dict[str, Any]:
        """Goals of the suite's tasks that this scene can judge, because it holds every object they name."""
        parse = sys.modules["libero.libero.envs.bddl_utils"].robosuite_parse_problem
        goals: dict[str, Any] = {}
        for task in libero_tasks(self.task.suite):
            parsed = parse(str(libero_files.bddl_file(task.suite, task.name)))
            same = parsed["problem_name"] == self._libero.parsed_problem["problem_name"]
            if same and all(
                name in self._libero.object_states_dict for state in parsed["goal_state"] for name in state[1:]
            ):
                goals[task.name] = parsed["goal_state"]
        own = self._libero.parsed_problem["goal_state"]
        # libero_spatial says the same goal of ten scenes: one that equals this task's own is not another task's.
        return {self.task.name: own} | {name: goal for name, goal in goals.items() if goal != own}

    def reset_state(self, seed: int) -> None:
        """LIBERO's initial state number ``seed`` modulo their count, or for a demonstration's seed one drawn as LIBERO
        draws them; settled. Stamp 0.0, nothing drawn."""
        if seed < 0:
            raise SimulationError(f"a seed is a whole number from 0 on; got {seed}")
        if is_demonstration_seed(seed):
            self._begin(self._sample_state(seed))
        else:
            self._begin(self._initial_states[seed % len(self._initial_states)])
        for _ in range(_SETTLE_STEPS):
            self.advance(np.zeros(7))
        self._steps = 0
        self._reset_tracking()

    def _sample_state(self, seed: int) -> NDArray[np.float64]:
        """A flattened state with every object where LIBERO's samplers put it; fixtures stay where they are."""
        from robosuite.utils.errors import RandomizationError

        rng = np.random.default_rng([79, seed])
        for _ in range(_PLACEMENT_ATTEMPTS):
            self._mujoco.mj_resetData(self.model, self.data)
            try:
                with _seeded_numpy(int(rng.integers(2**32))), self._fixtures_at_origin() as fixtures:
                    placed = self._sample_placements(fixtures)
            except RandomizationError:
                continue
            for thing, (position, quaternion, model) in placed.items():
                if thing not in fixtures:
                    self._libero.sim.data.set_joint_qpos(model.joints[-1], np.concatenate([position, quaternion]))
            self.data.qpos[self._qpos] = self.home + rng.normal(0.0, _JOINT_NOISE, 7)
            return self.state()
        raise SimulationError(
            f"LIBERO found no room for the objects of '{self.task.name}' in {_PLACEMENT_ATTEMPTS} attempts"
        )

    @contextlib.contextmanager
    def _fixtures_at_origin(self) -> Iterator[dict[str, tuple[Any, Any]]]:
        """The poses of the fixtures, which stand at the origin meanwhile.

        LIBERO's samplers add a fixture's pose to what they read from the simulation.
        """
        model, env = self.model, self._libero
        bodies = {n: env.obj_body_id[n] for n in env.fixtures_dict if n in env.obj_body_id}
        poses = {n: (model.body_pos[b].copy(), model.body_quat[b].copy()) for n, b in bodies.items()}
        try:
            for body in bodies.values():
                model.body_pos[body], model.body_quat[body] = 0.0, (1.0, 0.0, 0.0, 0.0)
            yield poses
        finally:
            for name, body in bodies.items():
                model.body_pos[body], model.body_quat[body] = poses[name]

    def _sample_placements(self, fixtures: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any, Any]]:
        """What LIBERO's ``_reset_internal`` draws: name -> position, quaternion, model; and drawers that begin open."""
        env = self._libero
        for sampler in env.object_property_initializers:
            env.object_states_dict[sampler.name].set_joint(sampler.sample())
        self._mujoco.mj_forward(self.model, self.data)
        placed = env.placement_initializer.sample()
        placed |= {name: (*pose, placed[name][2]) for name, pose in fixtures.items() if name in placed}
        placed = env.conditional_placement_initializer.sample(env.sim, placed)
        found: dict[str, tuple[Any, Any, Any]] = env.conditional_placement_on_objects_initializer.sample(placed)
        return found

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Return to a flattened MuJoCo state, without settling."""
        self._begin(state)
        return self.observe()

    def _begin(self, state: NDArray[np.float64]) -> None:
        # robosuite's gripper starts in the middle of its range.
        self._restore(state, self.home, np.zeros(2))
        self._libero._post_process()
        self._reset_tracking()

    def _reset_tracking(self) -> None:
        self._heights = {name: self._height(name) for name in self._libero.objects_dict}
        self._achieved.clear()
        self._lifted.clear()

    def _height(self, name: str) -> float:
        return float(self.data.xpos[self._libero.obj_body_id[name], 2])

    def success(self) -> bool:
        """Whether LIBERO's goal of this task holds now."""
        return self._holds(self._goals[self.task.name])

    def _holds(self, goal: Any) -> bool:
        return all(bool(self._libero._eval_predicate(state)) for state in goal)

    def achieved(self) -> tuple[str, ...]:
        """Names of the suite's tasks that this scene can judge and whose goal has been reached since reset."""
        return tuple(self._achieved)

    def lifted(self) -> tuple[str, ...]:
        """Names of the objects that were raised by 4 cm or more since reset."""
        return tuple(self._lifted)

    # ---- for experts ------------------------------------------------------------------------------------------

    @property
    def goal(self) -> list[list[str]]:
        """The parts of this task's goal, all of which have to hold: predicate, what, and where."""
        goal: list[list[str]] = self._goals[self.task.name]
        return goal

    def holds(self, part: list[str]) -> bool:
        """Whether one part of the goal holds now."""
        return bool(self._libero._eval_predicate(part))

    def object_body(self, name: str) -> int:
        """The body of an object or fixture."""
        return int(self._libero.obj_body_id[name])

    def place_position(self, place: str) -> NDArray[np.float64]:
        """Where a place is (3,) m: an object's origin, or a region's middle."""
        if place in self._libero.obj_body_id:
            return np.array(self.data.xpos[self._libero.obj_body_id[place]])
        return np.array(self.data.site(place).xpos)

    def is_surface_region(self, place: str) -> bool:
        """Whether a place is a marked area of the table or floor itself."""
        state = self._libero.object_states_dict.get(place)
        return getattr(state, "object_state_type", "") == "site" and state.parent_name not in self._libero.obj_body_id

    def slide_of(self, place: str) -> Slide | None:
        """What a region slides with: a drawer; None for one that stays where it is."""
        joints = getattr(self._libero.object_sites_dict.get(place), "joints", None) or []
        for joint in map(self.model.joint, joints):
            if joint.type[0] == self._mujoco.mjtJoint.mjJNT_SLIDE:
                low, high = joint.range
                sign = -1.0 if -low > high else 1.0
                axis = self.data.xaxis[joint.id]
                return Slide(int(joint.bodyid[0]), sign * axis, sign * float(self.data.qpos[joint.qposadr[0]]))
        return None

    def hinge_of(self, name: str) -> tuple[int, NDArray[np.float64], float]:
        """The body of a fixture's knob, where its axis is (3,) m, and in which sense it turns on (1 or -1)."""
        for joint in map(self.model.joint, self._libero.get_object(name).joints):
            if joint.type[0] == self._mujoco.mjtJoint.mjJNT_HINGE:
                low, high = joint.range
                return int(joint.bodyid[0]), np.array(self.data.xanchor[joint.id]), -1.0 if -low > high else 1.0
        raise SimulationError(f"'{name}' of task '{self.task.name}' has nothing that turns")

    def _after_step(self) -> None:
        self._mujoco.mj_kinematics(self.model, self.data)
        self._libero._post_process()
        for name, start in self._heights.items():
            if name not in self._lifted and self._height(name) >= start + _LIFT_HEIGHT:
                self._lifted.append(name)
        for name, goal in self._goals.items():
            if name not in self._achieved and self._holds(goal):
                self._achieved.append(name)

    def observe(self) -> Observation:
        """What the views and joints say now; a stove that is on glows."""
        self._update_markers()
        return super().observe()

    def views(self, state: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.uint8]]:
        """What the contract's views show in a flattened state; the simulation itself stays where it is."""
        now = self.data.qpos.copy()
        self.data.qpos[:] = np.asarray(state, dtype=np.float64)[1 : 1 + self.model.nq]
        self._libero._post_process()
        self._update_markers()
        self.data.qpos[:] = now
        self._libero._post_process()
        return super().views(state)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """An upright RGB picture (height, width, 3); ``camera`` is a view of the contract or a camera of the scene."""
        self._update_markers()
        return super().render(camera, height, width)

    def _update_markers(self) -> None:
        """Draw the markers that LIBERO shows now: a stove's glow. robosuite hides the hand's by a negative opacity."""
        self._renderer.model.site_rgba[:] = np.maximum(self.model.site_rgba, 0.0)

    def close(self) -> None:
        """Free the renderer and LIBERO's environment."""
        super().close()
        self._libero.close()


def _build(problems: Any, task: Task) -> Any:
    """LIBERO's environment of ``task``, without its renderer, with its fixtures always placed alike."""
    import robosuite
    from robosuite.utils.errors import RandomizationError

    bddl = str(libero_files.bddl_file(task.suite, task.name))
    problem = sys.modules["libero.libero.envs.bddl_utils"].get_problem_info(bddl)["problem_name"]
    for attempt in range(_PLACEMENT_ATTEMPTS):
        with _seeded_numpy(attempt):
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
                    f"LIBERO's scene of '{task.name}' cannot be built: {error}; get the whole folder "
                    "'libero/libero/assets' of github.com/Lifelong-Robot-Learning/LIBERO and set "
                    "M2DISTILL_LIBERO_ASSETS to it"
                ) from error
    raise SimulationError(f"LIBERO found no room for the objects of '{task.name}' in {_PLACEMENT_ATTEMPTS} attempts")


def _hiding_missing_visuals(problem: Any) -> Any:
    """LIBERO's environment class, able to build a scene some of whose looks are missing on disk."""

    def build_scene(self: Any, xml_string: str | None = None) -> None:
        self.m2distill_xml = hide_missing_visuals(xml_string or self.model.get_xml())
        problem._initialize_sim(self, self.m2distill_xml)

    # The class must keep its name: LIBERO compares it with the task's file.
    return type(problem.__name__, (problem,), {"_initialize_sim": build_scene})


def hide_missing_visuals(xml: str) -> str:
    """The MJCF with every mesh that is only seen and whose file is absent made invisible; each is told in the log.

    A mesh that something collides with is left for MuJoCo to refuse: without it the physics would be another's.
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
        _log.warning("LIBERO's scene lacks %s; it is not drawn (physics is unchanged)", mesh.get("file"))
        assets.remove(mesh)
        for geom in users:  # robosuite looks its geoms up by name, so they stay
            for attribute in ("mesh", "material"):
                geom.attrib.pop(attribute, None)
            geom.attrib.update(type="sphere", size="0.0001", rgba="0 0 0 0")
    return ElementTree.tostring(root, encoding="unicode")


@contextlib.contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    """Have numpy's global generator, with which LIBERO places objects, begin at ``seed``; leave it as it was found."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
