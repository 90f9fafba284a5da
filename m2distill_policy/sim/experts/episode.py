"""One episode of a world's task by its expert, simulated without drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.experts.motion import Target, towards
from m2distill_policy.sim.experts.noise import Noise, NoiseSource
from m2distill_policy.sim.osc import vector_from_rotation


class ExpertLostError(SimulationError):
    """The expert sees no way to go on from here; the attempt has failed."""


class Expert(Protocol):
    """Does the task of one world, from the scene as it truly is, which a policy never sees."""

    def target(self) -> Target:
        """Where the hand should go now. Raises :class:`ExpertLostError`."""


@dataclass(frozen=True)
class Run:
    """One episode of L steps, before drawing. What is at index t is from before action t.

    states (L, S); actions (L, 7) the expert's own; executed (L, 7) with the disturbance; ee (L, 6) m, rad, base frame;
    proprioception: group -> (L, n) float32; robot_states (L, 9): fingers, grip position, grip quaternion (x, y, z, w).
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
    *,
    noise: Noise | None = None,
    told: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Run:
    """One episode of ``world.task`` from ``seed``, ended by success, an expert at a loss, or the task's horizon.

    Nothing is drawn.

    told: what reaches the arm of an action (7,), where that is not the action itself.
    """
    from m2distill_policy.sim.suites import make_expert

    env.reset_state(seed)
    expert = make_expert(env, seed)
    source = NoiseSource(noise, seed) if noise is not None else None
    states, actions, executed, poses, readings, robot = [], [], [], [], [], []
    success = False
    for _ in range(env.task.horizon):
        try:
            target = expert.target()
        except ExpertLostError:
            break
        position, rotation = env.grip_pose()
        action = towards(target, position, rotation, env.contract.action)
        reading = env.proprioception()
        done = source.disturb(action, target.free, 1.0 - target.care) if source is not None else action
        done = told(done) if told is not None else done
        states.append(env.state())
        poses.append(env.end_effector())
        readings.append(reading)
        robot.append(np.concatenate([reading["gripper_states"], position, _quaternion(rotation)]))
        actions.append(action)
        executed.append(done)
        env.advance(done)
        if env.success():
            success = True
            break
    return Run(
        np.array(states),
        np.array(actions),
        np.array(executed),
        np.array(poses),
        {name: np.stack([reading[name] for reading in readings]) for name in (readings[0] if readings else {})},
        np.array(robot),
        success,
    )


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x, y, z, w) of a rotation matrix."""
    vector = vector_from_rotation(rotation)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 0 else vector
    return np.concatenate([np.sin(angle / 2) * axis, [np.cos(angle / 2)]])
