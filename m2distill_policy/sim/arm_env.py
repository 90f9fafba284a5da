"""A Panda arm in a scene: the part of an environment that all suites share.

robosuite builds the models, and this module steps them. robosuite's own environments update every observable after
each of the 25 physics steps of a control step. Here, joints are read and views are rendered once per control step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import SimulationError
from m2distill_policy.observation import Observation
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.osc import (
    DRIVE_STIFFNESS,
    STIFFNESS,
    osc_torques,
    rotation_from_vector,
    vector_from_rotation,
)
from m2distill_policy.sim.rendering import Renderer

#: View of the contract -> camera of robosuite's models that shows it.
CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}

ARM_JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
GRIP_SITE = "gripper0_grip_site"
BASE_BODY = "robot0_base"

#: Distance that the gripper's set-point, in [-1, 1], moves in one physics step. The value is robosuite's
#: PandaGripper.speed.
_GRIPPER_SPEED = 0.01
#: Largest distance of the velocity drive's set-point from the arm, in m and rad. It is reached if a contact blocks the
#: arm.
_DRIVE_LEAD = (0.02, 0.15)


class ArmEnv:
    """Physics, controller and views of a scene with one Panda. Each suite has a subclass.

    See :class:`m2distill_policy.sim.env.SimEnv` for the interface.

    Args:
        task: The task.
        contract: The contract of the observations and actions.
        model: MuJoCo model of the physics. It may belong to another environment, such as LIBERO's.
        data: MuJoCo data of the model, shared with that environment if there is one.
        renderer: Renderer of the views.
        xml: MJCF of the scene.

    Raises:
        SimulationError: The rendered model, the period or the joints do not fit the physics model.
    """

    def __init__(self, task: Task, contract: Contract, model: Any, data: Any, renderer: Renderer, xml: str) -> None:
        import mujoco

        self._mujoco = mujoco
        self.task = task
        self.contract = contract
        self.model = model
        self.data = data
        self._renderer = renderer
        self._xml = xml
        if renderer.model.nq != model.nq:
            raise SimulationError(
                "the rendered model has other joints than the physics model; this is a bug in the visual profile"
            )
        self._substeps = round(contract.period / model.opt.timestep)
        if abs(self._substeps * model.opt.timestep - contract.period) > 1e-9:
            raise SimulationError(
                f"a control period of {contract.period} s is not a whole number of physics steps "
                f"of {model.opt.timestep} s"
            )
        self._qpos = np.array([model.joint(n).qposadr[0] for n in ARM_JOINTS])
        self._dofs = np.array([model.joint(n).dofadr[0] for n in ARM_JOINTS])
        self._fingers = np.array([model.joint(n).qposadr[0] for n in FINGER_JOINTS])
        self._finger_dofs = np.array([model.joint(n).dofadr[0] for n in FINGER_JOINTS])
        actuators = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}
        self._arm_actuators = np.array([actuators[model.joint(n).id] for n in ARM_JOINTS])
        self._left_actuator, self._right_actuator = (actuators[model.joint(n).id] for n in FINGER_JOINTS)
        self._torque_low = np.ascontiguousarray(model.actuator_ctrlrange[self._arm_actuators, 0])
        self._torque_high = np.ascontiguousarray(model.actuator_ctrlrange[self._arm_actuators, 1])
        finger_range = model.actuator_ctrlrange[[self._left_actuator, self._right_actuator]]
        self._finger_bias = finger_range.mean(axis=1)
        self._finger_weight = 0.5 * (finger_range[:, 1] - finger_range[:, 0])
        self._site = model.site(GRIP_SITE).id
        self._base = model.body(BASE_BODY).id
        self._posture = np.zeros(7)
        #: Joint angles (7,) in rad near which an episode begins. Set by the subclass.
        self.home = np.zeros(7)
        self._gripper = (0.0, 0.0)
        self._goal_rotation = np.eye(3)
        self._drive: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._steps = 0
        self._first_q, self._first_dof = int(self._qpos[0]), int(self._dofs[0])
        if np.any(np.diff(self._qpos) != 1) or np.any(np.diff(self._dofs) != 1):
            raise SimulationError("the arm's joints are not one after another in the scene; the controller needs that")
        # MuJoCo's arrays stay valid while ``data`` exists, so they are stored here. Looking them up 25 times a step
        # would take longer than the controller.
        self._ctrl, self._positions, self._velocities = data.ctrl, data.qpos, data.qvel
        self._bias = data.qfrc_bias
        self._site_position, self._site_rotation = data.site_xpos[self._site], data.site_xmat[self._site]
        self._jacobian = np.zeros((2, 3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))

    @property
    def arm_positions(self) -> NDArray[np.int64]:
        """Indices (7,) of the arm's joints in ``qpos``."""
        return self._qpos

    @property
    def arm_dofs(self) -> NDArray[np.int64]:
        """Indices (7,) of the arm's joints in ``qvel``."""
        return self._dofs

    @property
    def finger_positions(self) -> NDArray[np.int64]:
        """Indices (2,) of the fingers' joints in ``qpos``."""
        return self._fingers

    @property
    def grip_site(self) -> int:
        """Index of the site between the fingertips."""
        return int(self._site)

    @property
    def render_model(self) -> Any:
        """The MuJoCo model that is rendered. Cameras, lights and colours may be changed in it."""
        return self._renderer.model

    # ---- stepping ---------------------------------------------------------------------------------------------

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """Run one control period with a set-point delta (OSC drive).

        Args:
            action: The action (7,), clipped to [-1, 1].

        Raises:
            SimulationError: The action is not 7 finite numbers, or the physics becomes unstable.
        """
        self.advance(action)
        return self.observe()

    def advance(self, action: NDArray[np.floating[Any]]) -> None:
        """Run a control period as :meth:`step` does, without rendering."""
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (7,) or not np.all(np.isfinite(wanted)):
            raise SimulationError(f"the action has shape {wanted.shape} and is {wanted}; it must be 7 finite numbers")
        wanted = np.clip(wanted, -1.0, 1.0)
        self._drive = None
        self._mujoco.mj_fwdPosition(self.model, self.data)
        position, rotation = self._site_pose()
        goal_position = position + self.contract.action.translation_scale * wanted[:3]
        # As in robosuite, the last orientation goal stays while the action has no rotation.
        if np.any(np.abs(wanted[3:6]) > 0.0):
            turn = rotation_from_vector(self.contract.action.rotation_scale * wanted[3:6])
            self._goal_rotation = turn @ rotation
        no_velocity = np.zeros(6)
        for _ in range(self._substeps):
            self._substep(goal_position, self._goal_rotation, no_velocity, STIFFNESS, float(wanted[6]))
        self._finish()

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        """Run one control period with a velocity.

        The velocity is integrated to a set-point pose, which the arm follows with high stiffness. So the arm keeps its
        speed under load, as a velocity-driven arm does. The distance of the set-point from the arm is limited, as in
        the controller of a real arm.

        Args:
            twist: Velocity (6,) in m/s and rad/s, base frame.
            gripper: Gripper command: negative opens, positive closes, 0 keeps the set-point.

        Raises:
            SimulationError: A number is not finite, the twist has another shape, or the physics becomes unstable.
        """
        velocity = np.asarray(twist, dtype=np.float64)
        if velocity.shape != (6,) or not np.all(np.isfinite(velocity)) or not np.isfinite(gripper):
            raise SimulationError(
                f"the twist has shape {velocity.shape} and is {velocity}, and the gripper command is {gripper}; "
                "they must be 6 finite numbers and 1"
            )
        self._mujoco.mj_fwdPosition(self.model, self.data)
        position, rotation = self._site_pose()
        goal_position, goal_rotation = self._drive if self._drive is not None else (position, rotation)
        lead = goal_position - position
        distance = float(np.linalg.norm(lead))
        if distance > _DRIVE_LEAD[0]:
            goal_position = position + lead * (_DRIVE_LEAD[0] / distance)
        turn_lead = vector_from_rotation(goal_rotation @ rotation.T)
        angle = float(np.linalg.norm(turn_lead))
        if angle > _DRIVE_LEAD[1]:
            goal_rotation = rotation_from_vector(turn_lead * (_DRIVE_LEAD[1] / angle)) @ rotation
        dt = float(self.model.opt.timestep)
        turn = rotation_from_vector(velocity[3:] * dt)
        for _ in range(self._substeps):
            goal_position = goal_position + velocity[:3] * dt
            goal_rotation = turn @ goal_rotation
            self._substep(goal_position, goal_rotation, velocity, DRIVE_STIFFNESS, float(gripper))
        self._drive = (goal_position, goal_rotation)
        self._goal_rotation = goal_rotation
        self._finish()
        return self.observe()

    def _substep(
        self,
        goal_position: NDArray[np.float64],
        goal_rotation: NDArray[np.float64],
        goal_velocity: NDArray[np.float64],
        stiffness: float,
        gripper: float,
    ) -> None:
        """Do one physics step: compute positions and velocities, then torques, then integrate."""
        mujoco, model, data = self._mujoco, self.model, self.data
        mujoco.mj_step1(model, data)
        mujoco.mj_jacSite(model, data, self._jacobian[0], self._jacobian[1], self._site)
        mujoco.mj_fullM(model, self._mass, data.qM)
        self._ctrl[self._arm_actuators] = osc_torques(
            self._jacobian.reshape(6, -1),
            self._mass,
            self._bias,
            self._positions,
            self._velocities,
            self._first_q,
            self._first_dof,
            self._posture,
            self._site_position,
            self._site_rotation,
            goal_position,
            goal_rotation,
            goal_velocity,
            stiffness,
            self._torque_low,
            self._torque_high,
        )
        change = _GRIPPER_SPEED * ((gripper > 0.0) - (gripper < 0.0))
        left = min(1.0, max(-1.0, self._gripper[0] - change))
        right = min(1.0, max(-1.0, self._gripper[1] + change))
        self._gripper = (left, right)
        self._ctrl[self._left_actuator] = self._finger_bias[0] + self._finger_weight[0] * left
        self._ctrl[self._right_actuator] = self._finger_bias[1] + self._finger_weight[1] * right
        mujoco.mj_step2(model, data)

    def _finish(self) -> None:
        self._steps += 1
        if not np.all(np.isfinite(self.data.qpos)) or self.data.warning[self._mujoco.mjtWarning.mjWARN_BADQACC].number:
            raise SimulationError(
                f"the physics became unstable at control step {self._steps} of task '{self.task.name}'"
            )
        self._after_step()

    def _after_step(self) -> None:
        """Record which goals are reached. Called once in each control step, before the observation is made."""

    # ---- reading ----------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return the observation of the present state."""
        self._renderer.pose(self.data.qpos)
        images = {c.name: self._renderer.render(CAMERAS[c.name], c.height, c.width) for c in self.contract.cameras}
        return Observation(images, self.proprioception(), self._steps * self.contract.period)

    def views(self, state: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.uint8]]:
        """Render the views of a flattened MuJoCo state. The state of the simulation does not change."""
        self._renderer.pose(np.asarray(state, dtype=np.float64)[1 : 1 + self.model.nq])
        return {c.name: self._renderer.render(CAMERAS[c.name], c.height, c.width) for c in self.contract.cameras}

    def proprioception(self) -> dict[str, NDArray[np.float32]]:
        """Return ``joint_states`` (7,) in rad and ``gripper_states`` (2,) in m, float32."""
        return {
            "joint_states": self.data.qpos[self._qpos].astype(np.float32),
            "gripper_states": self.data.qpos[self._fingers].astype(np.float32),
        }

    def end_effector(self) -> NDArray[np.float64]:
        """Return the pose (6,) of the grip site: position in m and rotation vector in rad, base frame."""
        self._mujoco.mj_kinematics(self.model, self.data)
        position, rotation = self._site_pose()
        base = self.data.xmat[self._base].reshape(3, 3)
        return np.concatenate(
            [base.T @ (position - self.data.xpos[self._base]), vector_from_rotation(base.T @ rotation)]
        )

    def grip_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the position (3,) in m and rotation (3, 3) of the grip site, world frame."""
        self._mujoco.mj_kinematics(self.model, self.data)
        return self._site_pose()

    def base_position(self) -> NDArray[np.float64]:
        """Return the position (3,) of the robot's base in m, world frame."""
        return np.array(self.data.xpos[self._base])

    def gripper_width(self) -> float:
        """Return the distance between the fingers in m, 0 to 0.08."""
        left, right = self.data.qpos[self._fingers]
        return float(left - right)

    def fingers_stopped(self) -> bool:
        """Return whether both fingers are slower than 1 cm/s."""
        return bool(np.all(np.abs(self.data.qvel[self._finger_dofs]) < 0.01))

    def _site_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def state(self) -> NDArray[np.float64]:
        """Return robosuite's flattened state: time, joint positions and joint velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def model_xml(self) -> str:
        """Return the MJCF of the scene, as robosuite wrote it."""
        return self._xml

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return an upright RGB image (height, width, 3) of a view of the contract or a camera of the scene."""
        self._renderer.pose(self.data.qpos)
        return self._renderer.render(CAMERAS.get(camera, camera), height, width)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

    # ---- resetting and goals ----------------------------------------------------------------------------------

    def reset(self, seed: int) -> Observation:
        """Sample an initial state from ``seed`` alone and return the first observation (stamp 0.0)."""
        self.reset_state(seed)
        return self.observe()

    def switch_task(self, task: Task) -> bool:
        """Switch to another task and return True. Return False, and change nothing, if it needs another scene."""
        return task == self.task

    def reset_state(self, seed: int) -> None:
        """Sample an initial state as :meth:`reset` does, without rendering."""
        raise NotImplementedError

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        """Set the scene to a flattened MuJoCo state, and return the observation."""
        raise NotImplementedError

    def success(self) -> bool:
        """Return whether the task is done now."""
        raise NotImplementedError

    def achieved(self) -> tuple[str, ...]:
        """Return the names of the suite's tasks whose goal was reached since the reset."""
        raise NotImplementedError

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were raised by 4 cm or more since the reset."""
        raise NotImplementedError

    def _restore(
        self, state: NDArray[np.floating[Any]], posture: NDArray[np.float64], gripper: NDArray[np.float64]
    ) -> None:
        """Set the scene to ``state`` and reset the controller.

        Args:
            state: Flattened MuJoCo state: time, joint positions, joint velocities.
            posture: Joint angles (7,) in rad that the null space of the controller moves towards.
            gripper: Set-points (2,) of the fingers, in [-1, 1].
        """
        model, data = self.model, self.data
        values = np.asarray(state, dtype=np.float64)
        if values.shape != (1 + model.nq + model.nv,) or not np.all(np.isfinite(values)):
            raise SimulationError(
                f"the state has shape {values.shape}; a state of task '{self.task.name}' has {1 + model.nq + model.nv} "
                f"finite numbers (time, {model.nq} positions, {model.nv} velocities)"
            )
        self._mujoco.mj_resetData(model, data)
        data.time = values[0]
        data.qpos[:] = values[1 : 1 + model.nq]
        data.qvel[:] = values[1 + model.nq :]
        self._mujoco.mj_forward(model, data)
        self._posture = posture.copy()
        self._gripper = (float(gripper[0]), float(gripper[1]))
        _, self._goal_rotation = self._site_pose()
        self._drive = None
        self._steps = 0
