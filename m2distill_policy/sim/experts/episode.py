"""Run one episode of a task with its scripted expert, without rendering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.experts.motion import Target, action_towards
from m2distill_policy.sim.experts.noise import Noise, NoiseSource
from m2distill_policy.sim.osc import vector_from_rotation


class ExpertLostError(SimulationError):
    """The expert cannot continue from this state. The attempt has failed."""


class Expert(Protocol):
    """A scripted expert, which does the task of one environment. Unlike a policy, it knows the state of the scene."""

    def target(self) -> Target:
        """Return the pose to which the hand should move now, and the gripper command.

        Raises:
            ExpertLostError: The expert cannot continue from this state.
        """


@dataclass(frozen=True)
class ExpertRun:
    """One episode of L steps, before rendering. Entry t of each array is the state before action t, or action t.

    Attributes:
        states: Flattened MuJoCo states (L, S).
        actions: Actions (L, 7) of the expert, in [-1, 1].
        executed: Executed actions (L, 7), with noise and disturbances.
        ee: End-effector poses (L, 6): position in m and rotation vector in rad, base frame.
        proprioception: Name of the group -> joint positions (L, n), float32.
        robot_states: Finger positions in m, grip position in m and grip quaternion (x, y, z, w), (L, 9).
        success: Whether the task was done.
    """

    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    executed: NDArray[np.float64]
    ee: NDArray[np.float64]
    proprioception: dict[str, NDArray[np.float32]]
    robot_states: NDArray[np.float64]
    success: bool


def run_expert(
    env: ArmEnv,
    seed: int,
    make_expert: Callable[[ArmEnv, int], Expert],
    *,
    noise: Noise | None = None,
    disturb_action: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> ExpertRun:
    """Run one episode. It ends at success, when the expert cannot continue, or at the task's horizon.

    Args:
        env: The environment.
        seed: Seed of the initial state, the expert's motion style and the noise.
        make_expert: Function that makes the expert of an environment that was just reset.
        noise: Noise on the executed actions, or None.
        disturb_action: Function that returns the action (7,) that the arm executes instead of a given action, or None.

    Returns:
        The episode.
    """
    env.reset_state(seed)
    expert = make_expert(env, seed)
    source = NoiseSource(noise, seed) if noise is not None else None
    states, actions, executed, poses, proprioception, robot = [], [], [], [], [], []
    success = False
    for _ in range(env.task.horizon):
        try:
            target = expert.target()
        except ExpertLostError:
            break
        position, rotation = env.grip_pose()
        action = action_towards(target, position, rotation, env.contract.action)
        joints = env.proprioception()
        done = source.disturb(action, target.can_push, 1.0 - target.noise_reduction) if source is not None else action
        done = disturb_action(done) if disturb_action is not None else done
        states.append(env.state())
        poses.append(env.end_effector())
        proprioception.append(joints)
        robot.append(np.concatenate([joints["gripper_states"], position, _quaternion(rotation)]))
        actions.append(action)
        executed.append(done)
        env.advance(done)
        if env.success():
            success = True
            break
    groups = proprioception[0] if proprioception else {}
    return ExpertRun(
        np.array(states),
        np.array(actions),
        np.array(executed),
        np.array(poses),
        {name: np.stack([step[name] for step in proprioception]) for name in groups},
        np.array(robot),
        success,
    )


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quaternion (x, y, z, w) of a rotation matrix."""
    vector = vector_from_rotation(rotation)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 0 else vector
    return np.concatenate([np.sin(angle / 2) * axis, [np.cos(angle / 2)]])
