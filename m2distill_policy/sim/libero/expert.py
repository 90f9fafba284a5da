"""The scripted expert of LIBERO's suites: it reads the goal of a task and takes the skills that reach it."""

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

#: A thing that moved this far (m) is looked at anew: the way to take hold of it may be another.
_MOVED = 0.02
#: A drawer is pulled until it has come out this far (m); LIBERO calls it open from 0.14 on.
_OPEN = 0.15
#: A hand that is still turned towards a handle (cosine), and further than this (m) from the base, comes back as it is.
_LIKE_HANDLE, _NEAR_BASE = 0.7, 0.55
#: Steps (1 / 20 s) without getting nearer after which another way is tried.
_PROGRESS_TIMEOUT = 50
#: Steps for which an arm that is in its own way goes back towards where it began.
_RECOVERY = 30
#: Fingers closer together than this (m) have closed around the ridge of a knob.
_ON_KNOB = 0.035
#: A hand that is no further (m) from where it took hold of the knob still has it.
_AT_KNOB = 0.02
#: How far (rad) the hand is tilted from pointing down to take a drawer's handle.
_HANDLE_TILT = np.deg2rad(80.0)


@dataclass(frozen=True)
class _Chosen:
    """A grasp in its body's frame; the hand's rotation and where the body was (3,) when it was chosen."""

    grasp: Grasp
    rotation: NDArray[np.float64]
    at: NDArray[np.float64]


class LiberoExpert:
    """See :class:`m2distill_policy.sim.experts.episode.Expert`. ``seed`` draws the manner of the demonstrator."""

    def __init__(self, env: LiberoEnv, seed: int) -> None:
        self._env = env
        self._rng = np.random.default_rng([80, seed])
        self._shapes = Shapes(env.model, env.data)
        self._planner = GraspPlanner(env, self._shapes)
        self._hand = Hand(env, self._shapes, MotionStyle.sample(self._rng))
        #: Ways to take hold that led nowhere, and the way chosen for each body.
        self._rejected: list[Grasp] = []
        self._chosen: dict[int, _Chosen] = {}
        #: Where the hand began, and for how many steps it goes back there because it got nowhere.
        self._begin, self._recovering = env.grip_pose()[0], 0
        self._fetch_timeout, self._carry_timeout = (
            ProgressTimeout(_PROGRESS_TIMEOUT),
            ProgressTimeout(_PROGRESS_TIMEOUT),
        )

    def target(self) -> Target:
        """Where the hand should go now: the first part of the goal that does not hold yet, by its skill."""
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
            f"no skill reaches '{' '.join(part)}', which '{self._env.task.name}' asks for; "
            "known are in, on, open and turnon"
        )

    def _place(self, name: str, place: str) -> Target:
        """Take ``name`` and put it on or into ``place``; a drawer is opened first."""
        env = self._env
        body = env.object_body(name)
        geoms = self._shapes.of(body)
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
                return self._hand.retract()  # turning down out there would straighten the elbow, and lock it
        goal = env.place_position(place)[:2]
        position = env.data.xpos[body]
        if env.is_surface_region(place):
            return self._hand.push(geoms, position, goal)
        if held:
            if self._carry_timeout.update(float(np.linalg.norm(goal - position[:2]))) and body in self._chosen:
                # The arm does not get there with the hand as it took hold: upright it gets further.
                self._chosen[body] = replace(self._chosen[body], rotation=pointing_down(env.grip_pose()[1][:, 0]))
            return self._hand.place(geoms, position, goal, self._upright(body))
        carry = np.array([*(goal - position[:2]), 0.05])
        grasp = self._grasp(body, geoms, carry)
        if self._recovering > 0:
            self._recovering -= 1
            return self._hand.point_down_over(self._begin)
        return self._hand.fetch(grasp, geoms)

    def _grasp(self, body: int, geoms: NDArray[np.int64], carry: NDArray[np.float64], *, lean: bool = True) -> Grasp:
        """The way to take hold of a body: chosen once, moving with it, and anew where it was displaced."""
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
        ways = grasps_from_above(self._shapes.points(geoms))
        if chosen is not None and failed:
            self._rejected.append(chosen.grasp)
        ways = [
            way for way in ways if not any(way.relative_to(position, rotation).is_like(old) for old in self._rejected)
        ]
        try:
            grasp = self._planner.best(ways, geoms, carry, self._rng, lean=lean)
        except ExpertLostError:
            if chosen is None:
                raise
            return chosen.grasp.seen_from(position, rotation)  # it lies badly now; the old way is worth a try
        self._chosen[body] = _Chosen(grasp.relative_to(position, rotation), grasp.rotation, position)
        self._fetch_timeout = ProgressTimeout(_PROGRESS_TIMEOUT)
        return grasp

    def _upright(self, body: int) -> NDArray[np.float64]:
        """The hand's rotation as it took hold of a body, which is as it stood then."""
        if body in self._chosen:
            return self._chosen[body].rotation
        _, rotation = self._env.grip_pose()
        return pointing_down(rotation[:, 0])

    def _handle(self, drawer: Slide) -> Grasp:
        """A drawer's handle from the front, one finger above the bar and one below."""
        shapes, out = self._shapes, drawer.outwards
        geoms = shapes.of(drawer.body)
        points = [shapes.points(np.array([geom])) for geom in geoms]
        bar = max(points, key=lambda corners: float((corners @ out).max()))
        middle = (bar.max(axis=0) + bar.min(axis=0)) / 2
        # Down, turned about the horizontal so that the hand looks at the drawer's front.
        side = np.cross(np.array([0.0, 0.0, -1.0]), -out)
        rotation = rotation_from_vector(_HANDLE_TILT * side) @ pointing_down(out)
        return Grasp(middle, rotation)

    def _open(self, name: str) -> Target:
        env = self._env
        drawer = env.slide_of(name)
        if drawer is None:
            raise SimulationError(f"'{name}' is no drawer; '{env.task.name}' asks to open it")
        grasp = self._handle(drawer)
        geoms = self._shapes.of(drawer.body)
        if self._hand.holds(geoms):
            return self._hand.pull(drawer.outwards, grasp.rotation)
        return self._hand.fetch(grasp, geoms)

    def _turn_on(self, name: str) -> Target:
        """Take the ridge of the knob and turn it."""
        env = self._env
        body, pivot, sense = env.hinge_of(name)
        geoms = self._shapes.of(body)
        grasp = self._grasp(body, geoms, np.zeros(3), lean=False)
        grip, _ = env.grip_pose()
        if env.gripper_width() < _ON_KNOB and float(np.linalg.norm(grip - grasp.position)) < _AT_KNOB:
            return self._hand.turn(pivot, 0.4 * sense, grasp.rotation)
        return self._hand.fetch(grasp, geoms)
