"""The environment of the suite ``tabletop``."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import SimulationError
from m2distill_policy.observation import Observation
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.osc import vector_from_rotation
from m2distill_policy.sim.rendering import Renderer
from m2distill_policy.sim.tabletop import scene, tasks
from m2distill_policy.sim.visuals import physics_xml, visual_model, visual_profile

#: robosuite's initial joint angles of the Panda. From these, the inverse kinematics of :data:`scene.HOME` starts.
_PANDA_POSE = (0.0, math.pi / 16.0, 0.0, -math.pi / 2.0 - math.pi / 3.0, 0.0, math.pi - 0.2, math.pi / 4)
#: Initial positions of the fingers: open. With a half-open gripper, a policy would have to learn one more state.
_OPEN_FINGERS = (0.04, -0.04)
_OPEN_SETPOINT = (1.0, -1.0)


@functools.lru_cache(maxsize=1)
def _scene_xml() -> str:
    return scene.build_xml()


class TabletopEnv(ArmEnv):
    """An environment of the suite ``tabletop``, see :class:`m2distill_policy.sim.env.SimEnv`.

    Args:
        task: The task.
        size: Height and width of the views in pixels.
        visuals: Visual profile.
    """

    def __init__(self, task: Task, *, size: int = 128, visuals: str = "fast") -> None:
        from m2distill_policy.sim.gl import choose_gl

        choose_gl()
        import mujoco

        xml = _scene_xml()
        profile = visual_profile(visuals)
        model = mujoco.MjModel.from_xml_string(physics_xml(xml))
        renderer = Renderer(visual_model(xml, profile), profile)
        contract = libero_contract(size, fov_agentview=scene.AGENTVIEW_FOV, fov_hand=scene.HAND_FOV)
        super().__init__(task, contract, model, mujoco.MjData(model), renderer, xml)
        names = [item.name for item in scene.OBJECTS]
        self._objects = {name: int(model.joint(f"{name}_joint0").qposadr[0]) for name in names}
        bodies = {int(model.joint(f"{name}_joint0").bodyid[0]): name for name in names}
        #: For :meth:`touched`: index of the object that each geom belongs to (-1: none), and whether it is a finger.
        self._geom_object = np.full(model.ngeom, -1)
        self._geom_finger = np.zeros(model.ngeom, dtype=bool)
        for geom in range(model.ngeom):
            body = int(model.geom_bodyid[geom])
            if body in bodies:
                self._geom_object[geom] = names.index(bodies[body])
            self._geom_finger[geom] = "finger" in model.body(body).name
        self._names = names
        self.home = self._solve_home()
        self._achieved: list[str] = []
        self._lifted: list[str] = []

    # ---- resetting --------------------------------------------------------------------------------------------

    def reset_state(self, seed: int) -> None:
        """Sample an initial state as :meth:`reset` does, without rendering."""
        if seed < 0:
            raise SimulationError(f"seed is {seed}; use 0 or more")
        layout = scene.sample_layout(seed)
        state = np.zeros(1 + self.model.nq + self.model.nv)
        qpos = state[1 : 1 + self.model.nq]
        qpos[self._qpos] = self.home + layout.joint_noise
        qpos[self._fingers] = _OPEN_FINGERS
        for item in scene.OBJECTS:
            x, y, yaw = layout.places[item.name]
            start = self._objects[item.name]
            qpos[start : start + 7] = (
                x,
                y,
                scene.TABLE_TOP + item.rest,
                math.cos(yaw / 2),
                0.0,
                0.0,
                math.sin(yaw / 2),
            )
        self._begin(state)

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Set the scene to a flattened MuJoCo state, and return the observation.

        A state contains the time, ``nq`` positions and ``nv`` velocities.
        """
        self._begin(state)
        return self.observe()

    def _begin(self, state: NDArray[np.float64]) -> None:
        values = np.asarray(state, dtype=np.float64)
        setpoint = np.array(_OPEN_SETPOINT)
        if values.shape == (1 + self.model.nq + self.model.nv,):
            # A state contains the positions of the fingers but not their set-points. So the set-points are taken to be
            # the positions.
            fingers = values[1:][self._fingers]
            setpoint = np.clip((fingers - self._finger_bias) / self._finger_weight, -1.0, 1.0)
        self._restore(values, self.home, setpoint)
        self._achieved.clear()
        self._lifted.clear()

    def _solve_home(self) -> NDArray[np.float64]:
        """Return joint angles (7,) in rad for which the grip site is at :data:`scene.HOME` and the hand points down.

        The method is damped least squares, as in Buss 2004, "Introduction to inverse kinematics".
        """
        mujoco, model, data = self._mujoco, self.model, self.data
        down = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
        q = np.array(_PANDA_POSE)
        jacobian = np.zeros((6, model.nv))
        for _ in range(200):
            data.qpos[self._qpos] = q
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            position, rotation = self._site_pose()
            error = np.concatenate([np.subtract(scene.HOME, position), vector_from_rotation(down @ rotation.T)])
            if float(np.linalg.norm(error)) < 1e-9:
                return q
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
            j = jacobian[:, self._dofs]
            q = q + j.T @ np.linalg.solve(j @ j.T + 1e-6 * np.eye(6), error)
        raise SimulationError(f"the arm cannot reach its start pose at {scene.HOME} m; this is a bug in the scene")

    def switch_task(self, task: Task) -> bool:
        """Switch to another task of the suite and return True; return False for other suites.

        This is possible because all tasks of the suite have the same scene.
        """
        if task.suite != self.task.suite:
            return False
        self.task = task
        return True

    # ---- goals ------------------------------------------------------------------------------------------------

    def positions(self) -> dict[str, NDArray[np.float64]]:
        """Return the position (3,) of each object in m, world frame."""
        return {name: self.data.qpos[start : start + 3].copy() for name, start in self._objects.items()}

    def touched(self) -> frozenset[str]:
        """Return the names of the objects that a finger touches."""
        n = self.data.ncon
        if n == 0:
            return frozenset()
        pairs = self.data.contact.geom[:n]
        found: set[str] = set()
        for a, b in ((0, 1), (1, 0)):
            touching = self._geom_object[pairs[self._geom_finger[pairs[:, a]], b]]
            found.update(self._names[i] for i in touching[touching >= 0])
        return frozenset(found)

    def success(self) -> bool:
        """Return whether the task is done now."""
        return tasks.is_reached(self.task, self.positions(), self.touched())

    def achieved(self) -> tuple[str, ...]:
        """Return the names of the suite's tasks whose goal was reached since the reset."""
        return tuple(self._achieved)

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were raised by 4 cm or more since the reset."""
        return tuple(self._lifted)

    def _after_step(self) -> None:
        positions = self.positions()
        for name, position in positions.items():
            if name not in self._lifted and tasks.is_lifted(name, position):
                self._lifted.append(name)
        for name in tasks.reached_tasks(positions, self.touched()):
            if name not in self._achieved:
                self._achieved.append(name)
