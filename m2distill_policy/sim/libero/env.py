"""The environments of the LIBERO suites.

LIBERO's own environment builds the scene and checks the goal. This package does the stepping and the rendering.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import SimulationError
from m2distill_policy.installation import install_command
from m2distill_policy.observation import Observation
from m2distill_policy.sim.arm_env import CAMERAS, ArmEnv
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.libero import files as libero_files
from m2distill_policy.sim.libero.build import PLACEMENT_ATTEMPTS, build_libero_env, seeded_numpy
from m2distill_policy.sim.libero.files import libero_tasks
from m2distill_policy.sim.rendering import Renderer
from m2distill_policy.sim.seeds import is_demonstration_seed
from m2distill_policy.sim.visuals import visual_model, visual_profile

#: Number of control steps without motion after a reset, in which the scene settles, as in LIBERO.
_SETTLE_STEPS = 5
#: Height (m) above its settled position from which an object counts as lifted.
_LIFT_HEIGHT = 0.04
#: Standard deviation (rad) of the arm's initial joint angles, as in robosuite.
_JOINT_NOISE = 0.02


@dataclass(frozen=True)
class Slide:
    """A drawer.

    Attributes:
        body: Index of the drawer's body in the MuJoCo model.
        outwards: Unit vector (3,) along which the drawer opens, world frame.
        open: Distance by which the drawer is open, in m.
    """

    body: int
    outwards: NDArray[np.float64]
    open: float


class LiberoEnv(ArmEnv):
    """An environment of a LIBERO suite, see :class:`m2distill_policy.sim.env.SimEnv`.

    ``reset(seed)`` uses LIBERO's initial state number ``seed`` modulo 50 and lets the scene settle, as LIBERO does. For
    a demonstration seed, it samples a new state instead, so that no demonstration begins in a state that evaluation
    uses.

    Args:
        task: The task.
        size: Height and width of the views in pixels.
        visuals: Visual profile.
    """

    def __init__(self, task: Task, *, size: int = 128, visuals: str = "fast") -> None:
        profile = visual_profile(visuals)
        self._initial_states = libero_files.initial_states(task)
        self._libero = build_libero_env(task)
        env = self._libero
        env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
        model, data = env.sim.model._model, env.sim.data._data
        if self._initial_states.shape[1] != 1 + model.nq + model.nv:
            raise SimulationError(
                f"the initial states of '{task.name}' have {self._initial_states.shape[1]} numbers, but its scene has "
                f"{1 + model.nq + model.nv}; install the pinned versions: {install_command('sim')}"
            )
        xml = env.m2distill_xml
        visual = visual_model(xml, profile)
        # The positions of fixtures are in the model, not in the state.
        visual.body_pos[:] = model.body_pos
        visual.body_quat[:] = model.body_quat
        renderer = Renderer(visual, profile, sites=True)
        fov = {name: float(model.cam_fovy[model.camera(camera).id]) for name, camera in CAMERAS.items()}
        contract = libero_contract(size, fov_agentview=fov["agentview_rgb"], fov_hand=fov["eye_in_hand_rgb"])
        super().__init__(task, contract, model, data, renderer, xml)
        self.home = np.array(env.robots[0].init_qpos, dtype=np.float64)
        self._goals = self._known_goals()
        self._heights: dict[str, float] = {}
        self._achieved: list[str] = []
        self._lifted: list[str] = []

    def _known_goals(self) -> dict[str, Any]:
        """Return task -> goal for the tasks of the suite whose objects are all in this scene.

        Only the goals of these tasks can be checked here.
        """
        parse = sys.modules["libero.libero.envs.bddl_utils"].robosuite_parse_problem
        goals: dict[str, Any] = {}
        for task in libero_tasks(self.task.suite):
            parsed = parse(str(libero_files.bddl_file(task.suite, task.name)))
            is_same_scene = parsed["problem_name"] == self._libero.parsed_problem["problem_name"]
            if is_same_scene and all(
                name in self._libero.object_states_dict for state in parsed["goal_state"] for name in state[1:]
            ):
                goals[task.name] = parsed["goal_state"]
        own = self._libero.parsed_problem["goal_state"]
        # The ten tasks of libero_spatial have equal goals in different scenes. Other tasks with the goal of this task
        # are left out, because reaching the goal here does not mean that they were done.
        return {self.task.name: own} | {name: goal for name, goal in goals.items() if goal != own}

    def reset_state(self, seed: int) -> None:
        """Sample an initial state as :meth:`reset` does, without rendering."""
        if seed < 0:
            raise SimulationError(f"seed is {seed}; use 0 or more")
        if is_demonstration_seed(seed):
            self._begin(self._sample_state(seed))
        else:
            self._begin(self._initial_states[seed % len(self._initial_states)])
        for _ in range(_SETTLE_STEPS):
            self.advance(np.zeros(7))
        self._steps = 0
        self._reset_tracking()

    def _sample_state(self, seed: int) -> NDArray[np.float64]:
        """Sample a flattened MuJoCo state with LIBERO's own samplers. Fixtures are not moved."""
        from robosuite.utils.errors import RandomizationError

        rng = np.random.default_rng([79, seed])
        for _ in range(PLACEMENT_ATTEMPTS):
            self._mujoco.mj_resetData(self.model, self.data)
            try:
                with seeded_numpy(int(rng.integers(2**32))), self._fixtures_at_origin() as fixtures:
                    placed = self._sample_placements(fixtures)
            except RandomizationError:
                continue
            for name, (position, quaternion, model) in placed.items():
                if name not in fixtures:
                    self._libero.sim.data.set_joint_qpos(model.joints[-1], np.concatenate([position, quaternion]))
            self.data.qpos[self._qpos] = self.home + rng.normal(0.0, _JOINT_NOISE, 7)
            return self.state()
        raise SimulationError(
            f"LIBERO found no place for the objects of '{self.task.name}' in {PLACEMENT_ATTEMPTS} attempts"
        )

    @contextlib.contextmanager
    def _fixtures_at_origin(self) -> Iterator[dict[str, tuple[Any, Any]]]:
        """Move the fixtures to the origin while the context is open, and give their real poses.

        This is needed because LIBERO's samplers add the pose of a fixture to positions that they read from the
        simulation.
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
        """Sample joint positions of fixtures and poses of objects, as LIBERO's ``_reset_internal`` does.

        Args:
            fixtures: Name -> real position and quaternion of each fixture.

        Returns:
            Name -> position, quaternion and model of each object.
        """
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
        """Set the scene to a flattened MuJoCo state, without letting it settle, and return the observation."""
        self._begin(state)
        return self.observe()

    def _begin(self, state: NDArray[np.float64]) -> None:
        # In robosuite the gripper starts in the middle of its range.
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
        """Return whether LIBERO's goal of this task is reached now."""
        return self._holds(self._goals[self.task.name])

    def _holds(self, goal: Any) -> bool:
        return all(bool(self._libero._eval_predicate(state)) for state in goal)

    def achieved(self) -> tuple[str, ...]:
        """Return the names of the tasks of the suite whose goal was reached since the reset.

        Tasks with objects that are not in this scene cannot be checked and are left out.
        """
        return tuple(self._achieved)

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were raised by 4 cm or more since the reset."""
        return tuple(self._lifted)

    # ---- for experts ------------------------------------------------------------------------------------------

    @property
    def goal(self) -> list[list[str]]:
        """The conditions of the goal, each a list: predicate, object and, for some, place. All must be true."""
        goal: list[list[str]] = self._goals[self.task.name]
        return goal

    def holds(self, part: list[str]) -> bool:
        """Return whether one condition of the goal is true now."""
        return bool(self._libero._eval_predicate(part))

    def object_body(self, name: str) -> int:
        """Return the index of the body of an object or fixture in the MuJoCo model."""
        return int(self._libero.obj_body_id[name])

    def place_position(self, place: str) -> NDArray[np.float64]:
        """Return the position (3,) of a place in m, world frame: the origin of an object or the centre of a region."""
        if place in self._libero.obj_body_id:
            return np.array(self.data.xpos[self._libero.obj_body_id[place]])
        return np.array(self.data.site(place).xpos)

    def is_surface_region(self, place: str) -> bool:
        """Return whether a place is a region of the table or floor itself."""
        state = self._libero.object_states_dict.get(place)
        return getattr(state, "object_state_type", "") == "site" and state.parent_name not in self._libero.obj_body_id

    def slide_of(self, place: str) -> Slide | None:
        """Return the drawer that a region belongs to, or None."""
        joints = getattr(self._libero.object_sites_dict.get(place), "joints", None) or []
        for joint in map(self.model.joint, joints):
            if joint.type[0] == self._mujoco.mjtJoint.mjJNT_SLIDE:
                low, high = joint.range
                sign = -1.0 if -low > high else 1.0
                axis = self.data.xaxis[joint.id]
                return Slide(int(joint.bodyid[0]), sign * axis, sign * float(self.data.qpos[joint.qposadr[0]]))
        return None

    def hinge_of(self, name: str) -> tuple[int, NDArray[np.float64], float]:
        """Return the knob of a fixture.

        Returns:
            Index of the knob's body, a point (3,) on its axis in m (world frame), and the sign of the rotation that
            switches it on.
        """
        for joint in map(self.model.joint, self._libero.get_object(name).joints):
            if joint.type[0] == self._mujoco.mjtJoint.mjJNT_HINGE:
                low, high = joint.range
                return int(joint.bodyid[0]), np.array(self.data.xanchor[joint.id]), -1.0 if -low > high else 1.0
        raise SimulationError(f"'{name}' of task '{self.task.name}' has no hinge; this is a bug in the expert")

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
        """Return the observation of the present state. A stove that is on glows in the images."""
        self._update_markers()
        return super().observe()

    def views(self, state: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.uint8]]:
        """Render the views of a flattened MuJoCo state. The state of the simulation does not change."""
        now = self.data.qpos.copy()
        self.data.qpos[:] = np.asarray(state, dtype=np.float64)[1 : 1 + self.model.nq]
        self._libero._post_process()
        self._update_markers()
        self.data.qpos[:] = now
        self._libero._post_process()
        return super().views(state)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return an upright RGB image (height, width, 3) of a view of the contract or a camera of the scene."""
        self._update_markers()
        return super().render(camera, height, width)

    def _update_markers(self) -> None:
        """Copy the colours of LIBERO's markers, such as a stove's glow, to the rendered model.

        Negative opacities become 0: robosuite hides the markers of the hand with a negative opacity.
        """
        self._renderer.model.site_rgba[:] = np.maximum(self.model.site_rgba, 0.0)

    def close(self) -> None:
        """Free the renderer and LIBERO's environment."""
        super().close()
        self._libero.close()
