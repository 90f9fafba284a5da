"""Scripted experts for the suite ``tabletop``.

An expert has no memory: its action is a function of the scene as it is, so that what it does can be read from the
views and joints, a dropped object is picked up again, and a policy with a short history can imitate it. It sees the
objects' true positions, which a policy never does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.osc import vector_from_rotation
from m2distill_policy.sim.tabletop.scene import BIN_CENTER, BIN_HALF, TABLE_TOP, THINGS, Thing
from m2distill_policy.sim.tabletop.world import TabletopWorld

#: The grip site's rotation when the hand points straight down with its fingers along y.
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])

#: Set-point ahead of the arm for a distance to go; the arm then closes in without overshoot.
_GAIN = 1.5
_TURN_GAIN = 0.8
#: Largest size of the translation action: brisk, with room for a policy's corrections within [-1, 1].
_TOP = 0.95

#: Height (m) over the grasp at which the hand comes in, and how steeply it sinks as the distance shrinks.
_HOVER = 0.11
_FUNNEL = 2.2
#: Distances (m) at which the fingers may close, and stay closed.
_NEAR = 0.010
_STILL_NEAR = 0.022
#: Grip height (m over the table) for carrying over whatever else stands there, and for letting go in the bin.
_CARRY = 0.14
_RELEASE = 0.085
#: Grip height (m over the table) from which a push meets nothing that stands there.
_FREE = 0.10


@dataclass(frozen=True)
class Noise:
    """Disturbance of the executed action, drawn an episode: the label stays clean, so demonstrations show recovery.

    translation, rotation: standard deviation in action units; correlation: share kept from step to step.
    push: translation action of a push, which for 3 to 8 steps stands in the place of the expert's action and sends the
    hand anywhere; first_push, push_rate: chance of one at the first step and at any later one, while the open hand is
    high over the table. Without pushes the way that the arm has come gives the target away: a network learns to go on
    as it began, and nothing makes it look which object was named ("copycat", de Haan et al. 2019,
    https://arxiv.org/abs/1905.11979; disturbed demonstrations, Laskey et al. 2017, https://arxiv.org/abs/1703.09327).
    """

    translation: float = 0.18
    rotation: float = 0.04
    correlation: float = 0.6
    push: float = 0.8
    first_push: float = 0.6
    push_rate: float = 0.06

    def scaled(self, factor: float) -> Noise:
        """The same kind of disturbance, ``factor`` times as strong."""
        return replace(
            self,
            translation=self.translation * factor,
            rotation=self.rotation * factor,
            push=min(1.0, self.push * factor),
        )


class NoiseSource:
    """What is executed instead of the expert's action: first-order correlated noise on it, and pushes; from a seed."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self._rng = np.random.default_rng([77, seed])
        # Some episodes are nearly clean, others rough.
        strength = self._rng.uniform(0.2, 1.2)
        self._scale = strength * np.array([noise.translation] * 3 + [noise.rotation] * 3)
        self._noise = noise
        self._value = np.zeros(6)
        self._chance = noise.first_push
        self._push, self._push_steps = np.zeros(3), 0

    def disturb(self, action: NDArray[np.float64], free: bool) -> NDArray[np.float64]:
        """The next executed action (7,) in [-1, 1]; ``free``: the hand may be pushed here."""
        fresh = self._rng.normal(size=6) * self._scale
        kept = self._noise.correlation
        self._value = kept * self._value + np.sqrt(1.0 - kept**2) * fresh
        begins = self._rng.random() < self._chance
        self._chance = self._noise.push_rate
        if begins and self._push_steps == 0:
            angle = self._rng.uniform(0, 2 * np.pi)
            self._push = self._noise.push * np.array([np.cos(angle), np.sin(angle), self._rng.uniform(-0.2, 0.4)])
            self._push_steps = int(self._rng.integers(3, 9))
        executed = action.copy()
        if self._push_steps > 0:
            self._push_steps -= 1
            if free:
                executed[:3] = self._push
        executed[:6] = np.clip(executed[:6] + self._value, -1.0, 1.0)
        return executed


def expert_action(world: TabletopWorld) -> NDArray[np.float64]:
    """What the expert of ``world.task`` does now: (7,) in [-1, 1]."""
    thing = _thing(world.task.targets[0])
    grip, rotation = world.grip_pose()
    target = world.positions()[thing.name]
    carried = _grasped(world, thing, grip, target)
    if not carried:
        goal, gripper = _fetch(world, thing, grip, target)
    elif world.task.kind == "lift":
        goal, gripper = grip + np.array([0.0, 0.0, 0.05]), 1.0
    else:
        goal, gripper = _carry(grip)
    action = np.zeros(7)
    action[:3] = _limit(_GAIN * (goal - grip) / world.contract.action.translation_scale, _TOP)
    turn = vector_from_rotation(_DOWN @ rotation.T)
    action[3:6] = _limit(_TURN_GAIN * turn / world.contract.action.rotation_scale, 0.5)
    action[6] = gripper
    return action


def _thing(name: str) -> Thing:
    for thing in THINGS:
        if thing.name == name:
            return thing
    raise SimulationError(f"no expert knows the object '{name}'; known are {[t.name for t in THINGS]}")


def _grasped(world: TabletopWorld, thing: Thing, grip: NDArray[np.float64], target: NDArray[np.float64]) -> bool:
    """Whether the fingers have arrived at the object's sides with the object between them."""
    offset = thing.grasp - thing.rest
    between = float(np.linalg.norm(target[:2] - grip[:2])) < 0.03 and abs(grip[2] - target[2] - offset) < 0.03
    return (
        between
        and thing.name in world.held()
        and world.gripper_width() < 2 * thing.half_width + 0.006
        and world.fingers_still()
    )


def _fetch(
    world: TabletopWorld, thing: Thing, grip: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Come in over the object, sink in a funnel, close."""
    low = target[2] + thing.grasp - thing.rest
    distance = float(np.linalg.norm(target[:2] - grip[:2]))
    closing = world.gripper_width() < 0.074
    near = _STILL_NEAR if closing else _NEAR
    if distance < near and abs(grip[2] - low) < near:
        return np.array([target[0], target[1], low]), 1.0
    height = low + min(_HOVER, _FUNNEL * max(0.0, distance - 0.008))
    return np.array([target[0], target[1], height]), -1.0


def _carry(grip: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Up, across once high enough, down over the bin, and open."""
    to_bin = np.array(BIN_CENTER) - grip[:2]
    distance = float(np.linalg.norm(to_bin))
    height = grip[2] - TABLE_TOP
    if distance < 0.5 * BIN_HALF:
        goal = np.array([BIN_CENTER[0], BIN_CENTER[1], TABLE_TOP + _RELEASE - 0.02])
        return goal, -1.0 if height < _RELEASE + 0.01 else 1.0
    # Across only as far as the height allows: the object leaves its neighbours from above.
    free = float(np.clip((height - 0.08) / (_CARRY - 0.03 - 0.08), 0.0, 1.0))
    lower = max(_RELEASE, min(_CARRY, _RELEASE + 0.9 * (distance - 0.03)))
    goal = np.array(
        [
            grip[0] + free * to_bin[0],
            grip[1] + free * to_bin[1],
            TABLE_TOP + (_CARRY + 0.01 if free < 1.0 and distance > 0.1 else lower),
        ]
    )
    return goal, 1.0


def _limit(vector: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """Shorten ``vector`` to a length of at most ``top``."""
    length = float(np.linalg.norm(vector))
    return vector if length <= top else np.asarray(vector * (top / length))


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
    world: TabletopWorld,
    seed: int,
    *,
    noise: Noise | None = None,
    told: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Run:
    """One episode of ``world.task`` from ``seed``, ended by success or the task's horizon. Nothing is drawn.

    told: what reaches the arm of an action (7,), where that is not the action itself.
    """
    world.reset_state(seed)
    source = NoiseSource(noise, seed) if noise is not None else None
    states, actions, executed, poses, readings, robot = [], [], [], [], [], []
    success = False
    for _ in range(world.task.horizon):
        action = expert_action(world)
        reading = world.proprioception()
        position, rotation = world.grip_pose()
        free = action[6] < 0 and position[2] - TABLE_TOP > _FREE
        done = source.disturb(action, free) if source is not None else action
        done = told(done) if told is not None else done
        states.append(world.state())
        poses.append(world.end_effector())
        readings.append(reading)
        robot.append(np.concatenate([reading["gripper_states"], position, _quaternion(rotation)]))
        actions.append(action)
        executed.append(done)
        world.advance(done)
        if world.success():
            success = True
            break
    return Run(
        np.array(states),
        np.array(actions),
        np.array(executed),
        np.array(poses),
        {name: np.stack([reading[name] for reading in readings]) for name in readings[0]},
        np.array(robot),
        success,
    )


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x, y, z, w) of a rotation matrix."""
    vector = vector_from_rotation(rotation)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 0 else vector
    return np.concatenate([np.sin(angle / 2) * axis, [np.cos(angle / 2)]])
