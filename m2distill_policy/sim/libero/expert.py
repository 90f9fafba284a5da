"""The scripted expert of LIBERO's suites. It reads the goal of a task and chooses the skills that reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.episode import ExpertLostError
from m2distill_policy.sim.experts.motion import Target
from m2distill_policy.sim.libero.env import LiberoEnv, Slide
from m2distill_policy.sim.libero.grasps import Grasp, GraspPlanner, grasps_from_above, pointing_down
from m2distill_policy.sim.libero.shapes import Shapes
from m2distill_policy.sim.libero.skills import Hand, MotionStyle, ProgressTimeout
from m2distill_policy.sim.osc import rotation_from_vector

#: Distance (m) that an object must have moved before its grasp is chosen again.
_MOVED = 0.02
#: Distance (m) to which a drawer is pulled open. LIBERO counts it as open from 0.14 m on.
_OPEN = 0.15
#: If the hand still faces a handle (cosine above the first value) and is farther from the base than the second value
#: (m), it moves back without turning.
_LIKE_HANDLE, _NEAR_BASE = 0.7, 0.55
#: Number of steps (1/20 s) without progress after which another grasp is tried.
_PROGRESS_TIMEOUT = 50
#: Number of steps for which the arm moves back towards its start after it made no progress.
_RECOVERY = 30
#: Distance (m) between the fingers below which they are closed around the ridge of a knob.
_ON_KNOB = 0.035
#: Distance (m) from the grasp of a knob up to which the hand still holds the knob.
_AT_KNOB = 0.02
#: Tilt (rad) of the hand for grasping the handle of a drawer; 0 would point straight down.
_HANDLE_TILT = np.deg2rad(80.0)


@dataclass(frozen=True)
class _Chosen:
    """The grasp that was chosen for a body.

    Attributes:
        grasp: The grasp in the frame of the body.
        rotation: Rotation (3, 3) of the hand in the grasp, world frame, when the grasp was chosen.
        at: Position (3,) of the body in m, world frame, when the grasp was chosen.
    """

    grasp: Grasp
    rotation: NDArray[np.float64]
    at: NDArray[np.float64]


class LiberoExpert:
    """The scripted expert of LIBERO's suites, see :class:`m2distill_policy.sim.experts.episode.Expert`.

    Args:
        env: The environment, which was just reset.
        seed: Seed of the motion style and of the random preferences among grasps.
    """

    def __init__(self, env: LiberoEnv, seed: int) -> None:
        self._env = env
        self._rng = np.random.default_rng([80, seed])
        self._shapes = Shapes(env.model, env.data)
        self._planner = GraspPlanner(env, self._shapes)
        self._hand = Hand(env, self._shapes, MotionStyle.sample(self._rng))
        #: Grasps that failed; and body -> chosen grasp.
        self._rejected: list[Grasp] = []
        self._chosen: dict[int, _Chosen] = {}
        #: Position at which the hand started, and number of steps for which it still moves back there.
        self._begin, self._recovering = env.grip_pose()[0], 0
        self._fetch_timeout, self._carry_timeout = (
            ProgressTimeout(_PROGRESS_TIMEOUT),
            ProgressTimeout(_PROGRESS_TIMEOUT),
        )

    def target(self) -> Target:
        """Return the target of the hand for the first condition of the goal that is not true yet."""
        goal = self._env.goal
        for part in goal:
            if not self._env.holds(part):
                return self._skill(part)
        return self._skill(goal[-1])

    def _skill(self, part: list[str]) -> Target:
        predicate, name = part[0], part[1]
        if predicate in ("in", "on"):
            return self._place(name, part[2])
        if predicate == "open":
            return self._open(name)
        if predicate == "turnon":
            return self._turn_on(name)
        raise SimulationError(
            f"there is no skill for '{' '.join(part)}' in the goal of '{self._env.task.name}'; "
            "there are skills for in, on, open and turnon"
        )

    def _place(self, name: str, place: str) -> Target:
        """Grasp object ``name`` and place it on or in ``place``. If ``place`` is a closed drawer, open it first."""
        env = self._env
        body = env.object_body(name)
        geoms = self._shapes.geoms_of(body)
        held = self._hand.holds(geoms)
        drawer = env.slide_of(place)
        if drawer is not None and not held:
            handle = self._handle(drawer)
            if drawer.open < _OPEN - 0.005:
                return self._open(place)
            grip, rotation = env.grip_pose()
            if rotation[2, 2] > -0.9 and float(np.linalg.norm(grip - handle.position)) < 0.12:
                return self._hand.retreat(handle)
            if rotation[:, 2] @ handle.approach > _LIKE_HANDLE and self._hand.distance_from_base() > _NEAR_BASE:
                return self._hand.retract()  # turning the hand down so far out would straighten the elbow and lock it
        goal = env.place_position(place)[:2]
        position = env.data.xpos[body]
        if env.is_surface_region(place):
            return self._hand.push(geoms, position, goal)
        if held:
            if self._carry_timeout.update(float(np.linalg.norm(goal - position[:2]))) and body in self._chosen:
                # The arm cannot reach the goal with a leaning hand. With an upright hand it reaches farther.
                self._chosen[body] = replace(self._chosen[body], rotation=pointing_down(env.grip_pose()[1][:, 0]))
            return self._hand.place(geoms, position, goal, self._upright(body))
        carry = np.array([*(goal - position[:2]), 0.05])
        grasp = self._grasp(body, geoms, carry)
        if self._recovering > 0:
            self._recovering -= 1
            return self._hand.point_down_over(self._begin)
        return self._hand.fetch(grasp, geoms)

    def _grasp(self, body: int, geoms: NDArray[np.int64], carry: NDArray[np.float64], *, lean: bool = True) -> Grasp:
        """Return the grasp of a body, in the world frame.

        The chosen grasp moves with the body. A new grasp is chosen after the body was moved, after a failed grasp, and
        if there is no progress.

        Args:
            body: Index of the body.
            geoms: Geoms of the body.
            carry: Displacement (3,) of the object after the grasp, in m, world frame.
            lean: Whether grasps with a leaning hand are allowed.
        """
        position = self._env.data.xpos[body].copy()
        rotation = self._env.data.xmat[body].reshape(3, 3).copy()
        chosen = self._chosen.get(body)
        failed = False
        if chosen is not None:
            grasp = chosen.grasp.seen_from(position, rotation)
            missed, late = self._hand.pop_missed_grasp(), self._fetch_timeout.update(self._hand.distance_to(grasp))
            failed = missed or late
            if late:
                self._recovering = _RECOVERY
            moved = float(np.linalg.norm(position - chosen.at)) > _MOVED
            if not failed and (not moved or any(self._shapes.touched_by_fingers(geoms))):
                return grasp
        grasps = grasps_from_above(self._shapes.points(geoms))
        if chosen is not None and failed:
            self._rejected.append(chosen.grasp)
        grasps = [
            candidate
            for candidate in grasps
            if not any(candidate.relative_to(position, rotation).is_like(old) for old in self._rejected)
        ]
        try:
            grasp = self._planner.best(grasps, geoms, carry, self._rng, lean=lean)
        except ExpertLostError:
            if chosen is None:
                raise
            return chosen.grasp.seen_from(position, rotation)  # the object is hard to grasp now, so retry the old grasp
        self._chosen[body] = _Chosen(grasp.relative_to(position, rotation), grasp.rotation, position)
        self._fetch_timeout = ProgressTimeout(_PROGRESS_TIMEOUT)
        return grasp

    def _upright(self, body: int) -> NDArray[np.float64]:
        """Return the rotation of the hand at which a body was grasped. With this rotation the body is upright."""
        if body in self._chosen:
            return self._chosen[body].rotation
        _, rotation = self._env.grip_pose()
        return pointing_down(rotation[:, 0])

    def _handle(self, drawer: Slide) -> Grasp:
        """Return the grasp of a drawer's handle from the front, with one finger above the bar and one below it."""
        shapes, out = self._shapes, drawer.outwards
        geoms = shapes.geoms_of(drawer.body)
        points = [shapes.points(np.array([geom])) for geom in geoms]
        bar = max(points, key=lambda corners: float((corners @ out).max()))
        middle = (bar.max(axis=0) + bar.min(axis=0)) / 2
        # Start with a hand that points down, and turn it about a horizontal axis until it faces the drawer.
        side = np.cross(np.array([0.0, 0.0, -1.0]), -out)
        rotation = rotation_from_vector(_HANDLE_TILT * side) @ pointing_down(out)
        return Grasp(middle, rotation)

    def _open(self, name: str) -> Target:
        env = self._env
        drawer = env.slide_of(name)
        if drawer is None:
            raise SimulationError(f"'{name}' in the goal of '{env.task.name}' is not a drawer, so it cannot be opened")
        grasp = self._handle(drawer)
        geoms = self._shapes.geoms_of(drawer.body)
        if self._hand.holds(geoms):
            return self._hand.pull(drawer.outwards, grasp.rotation)
        return self._hand.fetch(grasp, geoms)

    def _turn_on(self, name: str) -> Target:
        """Grasp the ridge of the knob and turn it."""
        env = self._env
        body, pivot, sense = env.hinge_of(name)
        geoms = self._shapes.geoms_of(body)
        grasp = self._grasp(body, geoms, np.zeros(3), lean=False)
        grip, _ = env.grip_pose()
        if env.gripper_width() < _ON_KNOB and float(np.linalg.norm(grip - grasp.position)) < _AT_KNOB:
            return self._hand.turn(pivot, 0.4 * sense, grasp.rotation)
        return self._hand.fetch(grasp, geoms)
