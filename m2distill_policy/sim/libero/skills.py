"""The skills of a hand: fetch, place, pull, push and turn. Their targets depend on the present scene.

The only memory of the skills is the number of steps without progress. So a policy can predict the action from images
and joint positions, and a dropped object is picked up again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.experts.motion import DOWN, Target
from m2distill_policy.sim.libero.grasps import TIP, UNDERSIDE, Grasp
from m2distill_policy.sim.libero.shapes import Shapes
from m2distill_policy.sim.osc import rotation_from_vector, vector_from_rotation

#: Slope of the approach: distance along the axis of the grasp, for each m of distance of the hand from this axis.
_FUNNEL = 5.0
#: Distance (m) from the axis of a grasp below which the hand counts as on the axis.
_STRAIGHT_ENOUGH = 0.003
#: Largest distance (m) and angle (rad) from the grasp at which the fingers start to close; then the same for fingers
#: that are closing already.
_NEAR, _NEAR_ANGLE = 0.008, 0.12
_STILL_NEAR, _STILL_NEAR_ANGLE = 0.045, 0.35
#: Distance (m) between the fingers below which they count as closing.
_CLOSING_WIDTH = 0.070
#: Number of steps (1/20 s) after which fingers that grasped nothing open again.
_CLOSING_TIMEOUT = 25
#: Horizontal distance (m) from the base below which the noise does not push the hand, because the arm would stay
#: folded.
_TOO_NEAR_BASE = 0.42
#: Half the width (m) of the hand along the axis of the fingers, and its clearance (m) above objects that it passes.
_HAND = 0.105
_CLEARANCE = 0.03


@dataclass(frozen=True)
class MotionStyle:
    """The motion style of a demonstrator, which differs between episodes.

    Attributes:
        speed: Largest translation, in action units.
        hover: Height above a grasp at which the hand approaches, in m.
        lift: Additional height at which an object is carried, in m.
    """

    speed: float = 0.9
    hover: float = 0.10
    lift: float = 0.0

    @classmethod
    def sample(cls, rng: np.random.Generator) -> MotionStyle:
        """Sample a motion style."""
        return cls(float(rng.uniform(0.75, 0.95)), float(rng.uniform(0.08, 0.12)), float(rng.uniform(0.0, 0.03)))


class ProgressTimeout:
    """Timeout that passes when a distance has not become smaller for a number of steps.

    Args:
        steps: Number of steps.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._best, self._waiting = np.inf, 0

    def update(self, distance: float) -> bool:
        """Add the distance (m) of this step, and return whether the timeout has passed. If it has, it starts again."""
        if distance < self._best - 0.005:
            self._best, self._waiting = distance, 0
        self._waiting += 1
        if self._waiting > self._steps:
            self._best, self._waiting = np.inf, 0
            return True
        return False


class Hand:
    """The skills in one environment with one motion style.

    Args:
        env: The environment.
        shapes: Collision shapes of the environment.
        style: The motion style.
    """

    def __init__(self, env: ArmEnv, shapes: Shapes, style: MotionStyle) -> None:
        self._env, self._shapes, self._style = env, shapes, style
        #: Number of steps for which the fingers have been closing, and whether they closed around nothing.
        self._closing, self._missed = 0, False

    def distance_from_base(self) -> float:
        """Return the horizontal distance of the hand from the base in m."""
        return float(np.linalg.norm(self._env.end_effector()[:2]))

    def retract(self) -> Target:
        """Move the open hand back towards the base, without turning it."""
        grip, rotation = self._env.grip_pose()
        back = self._env.base_position()[:2] - grip[:2]
        step = 0.06 * back / max(1e-6, float(np.linalg.norm(back)))
        return Target(np.array([*(grip[:2] + step), grip[2]]), rotation, -1.0, self._style.speed, noise_reduction=0.5)

    def pop_missed_grasp(self) -> bool:
        """Return whether the fingers closed around nothing since the last call."""
        missed, self._missed = self._missed, False
        return missed

    def holds(self, geoms: NDArray[np.int64]) -> bool:
        """Return whether both fingers touch ``geoms`` and have stopped."""
        held = all(self._shapes.touched_by_fingers(geoms)) and self._env.fingers_stopped()
        if held:
            self._closing = 0
        return held

    def distance_to(self, grasp: Grasp) -> float:
        """Return the distance of the hand from a grasp in m, where one radian counts as 0.1 m."""
        grip, rotation = self._env.grip_pose()
        angle = float(np.linalg.norm(vector_from_rotation(grasp.rotation @ rotation.T)))
        return float(np.linalg.norm(grip - grasp.position)) + 0.1 * angle

    def fetch(self, grasp: Grasp, geoms: NDArray[np.int64]) -> Target:
        """Approach a grasp and close the fingers around ``geoms``."""
        grip, rotation = self._env.grip_pose()
        angle = float(np.linalg.norm(vector_from_rotation(grasp.rotation @ rotation.T)))
        away = grip - grasp.position
        closing = self._env.gripper_width() < _CLOSING_WIDTH
        near, near_angle = (_STILL_NEAR, _STILL_NEAR_ANGLE) if closing else (_NEAR, _NEAR_ANGLE)
        if self._is_retrying(float(np.linalg.norm(away))):
            return Target(grip - 0.04 * grasp.approach, grasp.rotation, -1.0, speed=0.6, noise_reduction=0.7)
        if float(np.linalg.norm(away)) < near and angle < near_angle:
            self._closing += 1
            # The object may move when a finger touches it. So a hand that is closing does not follow the grasp.
            return Target(grip if closing else grasp.position, grasp.rotation, 1.0, speed=0.5, noise_reduction=0.9)
        aside = float(np.linalg.norm(away - grasp.approach * (away @ grasp.approach)))
        narrow = _FUNNEL * max(0.0, aside - _STRAIGHT_ENOUGH) + 0.3 * max(0.0, angle - 0.1)
        if self._env.gripper_width() < 0.06:  # still opening
            narrow = max(narrow, 0.05)
        goal = grasp.position - grasp.approach * min(self._style.hover, narrow)
        return self._move(goal, grasp.rotation, -1.0, ignored=geoms if aside < 0.12 else geoms[:0])

    def _is_retrying(self, away: float) -> bool:
        """Return whether the hand must move back for a new try, because the fingers closed around nothing."""
        if self._closing > _CLOSING_TIMEOUT and away < 0.06:
            self._missed = True
            return True
        if self._closing > _CLOSING_TIMEOUT or away > 0.06:
            self._closing = 0
        return False

    def retreat(self, grasp: Grasp) -> Target:
        """Release the object and move back along the approach direction of ``grasp``."""
        grip, _ = self._env.grip_pose()
        away = grip - grasp.position
        aside = away - grasp.approach * (away @ grasp.approach)
        return Target(
            grip - 0.06 * grasp.approach - aside, grasp.rotation, -1.0, self._style.speed, noise_reduction=0.5
        )

    def point_down_over(self, place: NDArray[np.float64]) -> Target:
        """Move the open hand above the position ``place`` (3,) and turn it to point straight down."""
        return Target(place + np.array([0.0, 0.0, 0.05]), DOWN, -1.0, self._style.speed, 0.8, noise_reduction=0.5)

    def place(
        self,
        geoms: NDArray[np.int64],
        body: NDArray[np.float64],
        goal: NDArray[np.float64],
        rotation: NDArray[np.float64],
    ) -> Target:
        """Carry the grasped object to a position above the goal, lower it and release it.

        Args:
            geoms: Geoms of the object.
            body: Position (3,) of the object's body in m, world frame.
            goal: Goal (2,) in m, world frame.
            rotation: Rotation (3, 3) of the hand when it grasped the object, so that the object stays upright.
        """
        grip, _ = self._env.grip_pose()
        shapes = self._shapes
        low, _ = shapes.boxes(geoms)
        hang = float(grip[2] - low[:, 2].min())
        to_go = goal - body[:2]
        distance = float(np.linalg.norm(to_go))
        end = np.array([*(grip[:2] + to_go), grip[2]])
        surface = shapes.highest_on_way(np.array([*goal, 0.0]), np.array([*goal, 0.0]), 0.015, geoms)
        across = rotation[:, 0] * (_HAND - 0.02)
        around = max(shapes.highest_on_way(end - across, end + across, 0.03, geoms), surface)
        lowest = max(surface + hang - 0.003, around - UNDERSIDE + 0.008)
        if distance < 0.012 and grip[2] < lowest + 0.006:
            return Target(np.array([*end[:2], lowest]), rotation, -1.0, speed=0.4, noise_reduction=0.8)
        if distance < 0.03:
            height = lowest + _FUNNEL * max(0.0, distance - 0.006)
            return Target(np.array([*end[:2], height - 0.004]), rotation, 1.0, speed=0.6, noise_reduction=0.8)
        away = shapes.direction_from_under(geoms, 0.01)
        if away is not None:  # first move out from under the other object, just above the surface
            height = shapes.support_height(geoms) + hang + 0.012
            return Target(np.array([*(grip[:2] + 0.04 * away), height]), rotation, 1.0, speed=0.6, noise_reduction=0.8)
        over = shapes.highest_on_way(grip, end, 0.07, geoms)
        safe = max(over + hang + _CLEARANCE, over - UNDERSIDE + _CLEARANCE, lowest + 0.03) + self._style.lift
        return self._move_over(end[:2], safe, rotation, 1.0)

    def pull(self, direction: NDArray[np.float64], rotation: NDArray[np.float64]) -> Target:
        """Pull the grasped object along ``direction`` (3,)."""
        grip, _ = self._env.grip_pose()
        return Target(grip + 0.05 * direction, rotation, 1.0, speed=self._style.speed, noise_reduction=0.7)

    def turn(self, pivot: NDArray[np.float64], angle: float, rotation: NDArray[np.float64]) -> Target:
        """Turn the grasped object by ``angle`` (rad) about the vertical axis through ``pivot`` (3,)."""
        grip, _ = self._env.grip_pose()
        swing = rotation_from_vector(np.array([0.0, 0.0, angle]))
        goal = pivot + swing @ (grip - pivot)
        return Target(goal, swing @ rotation, 1.0, speed=self._style.speed, turn=0.9, noise_reduction=0.8)

    def push(self, geoms: NDArray[np.int64], body: NDArray[np.float64], goal: NDArray[np.float64]) -> Target:
        """Push a dish from ``body`` (3,) to ``goal`` (2,), with the closed fingers inside its rim."""
        grip, _ = self._env.grip_pose()
        low, _ = self._shapes.boxes(geoms)
        to_go = goal - body[:2]
        ahead = to_go / max(1e-6, float(np.linalg.norm(to_go)))
        start = body[:2] + 0.02 * ahead
        height = float(low[:, 2].min()) + 0.008 + TIP
        inside = float(np.linalg.norm(grip[:2] - body[:2])) < 0.05 and grip[2] < height + 0.012
        if inside:
            # Press down a little, so that the fingers do not slip over the rim.
            return Target(
                np.array([*(grip[:2] + 0.03 * ahead), height - 0.015]), DOWN, 1.0, speed=0.6, noise_reduction=0.8
            )
        aside = float(np.linalg.norm(grip[:2] - start))
        above = height + min(self._style.hover, _FUNNEL * max(0.0, aside - 0.008))
        return self._move(np.array([*start, above]), DOWN, 1.0, ignored=geoms)

    def _move(
        self, goal: NDArray[np.float64], rotation: NDArray[np.float64], gripper: float, ignored: NDArray[np.int64]
    ) -> Target:
        """Move an empty hand above the objects on the path, and then to ``goal``."""
        grip, _ = self._env.grip_pose()
        distance = float(np.linalg.norm(goal[:2] - grip[:2]))
        over = self._shapes.highest_on_way(grip, goal, 0.08, ignored)
        safe = max(over + TIP + _CLEARANCE, goal[2])
        is_high = bool(grip[2] > over + 0.06)
        can_push = gripper < 0 and is_high and distance > 0.1 and self.distance_from_base() > _TOO_NEAR_BASE
        if distance < 0.08 or grip[2] > safe - 0.01:
            # Descend only as fast as the distance shrinks.
            height = max(goal[2], min(safe, goal[2] + 1.2 * max(0.0, distance - 0.02))) if distance > 0.02 else goal[2]
            target = np.array([goal[0], goal[1], height])
            return Target(target, rotation, gripper, self._style.speed, 0.8, can_push, 0.8 if distance < 0.06 else 0.0)
        return self._move_over(goal[:2], safe, rotation, gripper, can_push)

    def _move_over(
        self,
        goal: NDArray[np.float64],
        safe: float,
        rotation: NDArray[np.float64],
        gripper: float,
        can_push: bool = False,
    ) -> Target:
        """Move up to height ``safe``, and meanwhile towards ``goal`` (2,) as far as the present height allows."""
        grip, _ = self._env.grip_pose()
        share = float(np.clip(1.0 - (safe - grip[2]) / 0.04, 0.0, 1.0))
        spot = grip[:2] + share * (goal - grip[:2])
        noise_reduction = 0.5 if gripper > 0 else 0.0
        return Target(
            np.array([*spot, safe + 0.005]), rotation, gripper, self._style.speed, 0.8, can_push, noise_reduction
        )
