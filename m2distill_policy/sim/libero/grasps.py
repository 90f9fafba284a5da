"""Find grasps of an object from its shape, and rate them by inverse kinematics and collision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.experts.episode import ExpertLostError
from m2distill_policy.sim.experts.motion import DOWN
from m2distill_policy.sim.libero.shapes import Shapes
from m2distill_policy.sim.osc import rotation_from_vector, vector_from_rotation

#: Largest width (m) of an object that fits between the fingers.
OPENING = 0.072
#: Largest distance (m) of the grip site below the top of the object: there the palm touches the object.
PALM = 0.020
#: Height (m) of the underside of the hand above the grip site.
UNDERSIDE = 0.024
#: Distance (m) of the fingertips beyond the grip site.
TIP = 0.0125
#: Distances (m) from the grasp, along the approach, at which reach and collisions are checked.
_APPROACH_DISTANCES = (0.16, 0.12, 0.08, 0.04, 0.0)
_DIRECTIONS = 24
#: Damping of the inverse kinematics, and its largest number of iterations.
_DAMPING, _ITERATIONS = 1e-5, 24
#: Fixed part of the cost of a collision. The depth alone is not enough, because it is small at a thin wall.
_COLLISION_COST = 1.0
#: Positions (m) of each finger at which collisions are checked while the fingers close.
_CLOSING_HALF_WIDTHS = (0.024, 0.010)
#: Position error (m) of the hand, along the axis of the fingers, that a grasp must tolerate.
_SIDE_ERROR = 0.006
#: A posture has a cost if the distance to a joint limit is below ``_JOINT_MARGIN`` (rad), or if the smallest singular
#: value of the Jacobian is below ``_MIN_SINGULAR_VALUE``. This value is 0.22 for a bent arm and 0 for a straight arm,
#: which the controller cannot move well.
_JOINT_MARGIN, _MIN_SINGULAR_VALUE = 0.3, 0.13
_JOINT_LIMIT_COST, _SINGULARITY_COST = 4.0, 15.0
#: Angle (rad) by which the hand leans in a narrow place.
_LEAN = 0.5
#: Cost of a leaning hand, because it carries the object at an angle.
_LEAN_COST = 0.4
#: Largest random cost, by which different seeds choose different grasps.
_PREFERENCE_NOISE = 0.15
#: Cost of the best upright grasp above which leaning grasps are tried, too.
_TRY_LEANING_FROM = 0.8


@dataclass(frozen=True)
class Grasp:
    """A pose of the grip site at which the fingers close.

    The fingers move along the first column of the rotation. The hand approaches along the third column.

    Attributes:
        position: Position (3,) in m, world frame.
        rotation: Rotation (3, 3), world frame.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]

    @property
    def approach(self) -> NDArray[np.float64]:
        """Unit vector (3,) along which the hand approaches."""
        return np.asarray(self.rotation[:, 2])

    def relative_to(self, position: NDArray[np.float64], rotation: NDArray[np.float64]) -> Grasp:
        """Convert the grasp from the world frame to the frame of a body with this position and rotation."""
        return Grasp(rotation.T @ (self.position - position), rotation.T @ self.rotation)

    def is_like(self, other: Grasp) -> bool:
        """Return whether ``other``, in the same frame, differs by less than 2 cm and 20 degrees."""
        turn = float(np.linalg.norm(vector_from_rotation(self.rotation @ other.rotation.T)))
        return float(np.linalg.norm(self.position - other.position)) < 0.02 and turn < 0.35

    def seen_from(self, position: NDArray[np.float64], rotation: NDArray[np.float64]) -> Grasp:
        """Convert the grasp from the frame of a body with this position and rotation to the world frame."""
        return Grasp(position + rotation @ self.position, rotation @ self.rotation)


def down_at_yaw(yaw: float) -> NDArray[np.float64]:
    """Return the rotation of a hand that points straight down, turned by ``yaw`` (rad) about the vertical."""
    return rotation_from_vector(np.array([0.0, 0.0, yaw])) @ DOWN


def pointing_down(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation of a hand that points down, with its fingers along the horizontal part of ``along`` (3,)."""
    flat = np.array([along[0], along[1], 0.0])
    first, third = flat / max(1e-6, float(np.linalg.norm(flat))), np.array([0.0, 0.0, -1.0])
    return np.stack([first, np.cross(third, first), third], axis=1)


def grasps_from_above(points: NDArray[np.float64]) -> list[Grasp]:
    """Return grasps of an object with the hand pointing down, in many directions.

    The fingers are on both sides of the object, as deep as the palm allows. An object that is too wide is grasped at
    the rim of its top.

    Args:
        points: Points (n, 3) on the edges of the object, in m, world frame.
    """
    top, bottom = points[:, 2].max(), points[:, 2].min()
    height = max(top - PALM, bottom + min(TIP, 0.5 * (top - bottom)))
    slab = points[np.abs(points[:, 2] - height) < max(0.012, 0.2 * (top - bottom))]
    if len(slab) < 3:
        slab = points
    found = []
    for yaw in np.linspace(-np.pi / 2, np.pi / 2, _DIRECTIONS, endpoint=False):
        rotation = down_at_yaw(yaw)
        along, across = slab @ rotation[:, 0], slab @ rotation[:, 1]
        if along.max() - along.min() > OPENING:
            continue
        middle = rotation[:, 0] * (along.max() + along.min()) / 2 + rotation[:, 1] * (across.max() + across.min()) / 2
        found.append(Grasp(np.array([middle[0], middle[1], height]), rotation))
    return found or _grasps_of_rim(points)


def _grasps_of_rim(points: NDArray[np.float64]) -> list[Grasp]:
    """Return grasps of the rim in many directions, each with three positions of the rim between the fingers."""
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - 0.012]
    middle = (rim[:, :2].max(axis=0) + rim[:, :2].min(axis=0)) / 2
    found = []
    for angle in np.linspace(0.0, 2 * np.pi, _DIRECTIONS, endpoint=False):
        out = np.array([np.cos(angle), np.sin(angle)])
        radius = float(((rim[:, :2] - middle) @ out).max())
        yaw = angle % np.pi - np.pi / 2  # the fingers are along ``out``, in either order
        for beyond in (-0.026, -0.004, 0.012):
            found.append(Grasp(np.array([*(middle + out * (radius + beyond)), top - 0.012]), down_at_yaw(yaw)))
    return found


def leaned(grasps: Iterable[Grasp]) -> list[Grasp]:
    """Return each grasp twice, with the hand leaning to either side of the plane of its fingers, for narrow places."""
    return [
        Grasp(grasp.position, rotation_from_vector(lean * grasp.rotation[:, 0]) @ grasp.rotation)
        for grasp in grasps
        for lean in (-_LEAN, _LEAN)
    ]


class GraspPlanner:
    """Planner that rates grasps in a copy of the scene.

    Args:
        env: The environment.
        shapes: Collision shapes of the environment.
    """

    def __init__(self, env: ArmEnv, shapes: Shapes) -> None:
        import mujoco

        self._mujoco, self._env, self._shapes = mujoco, env, shapes
        self._data = mujoco.MjData(env.model)
        joints = [env.model.joint(f"robot0_joint{i}").id for i in range(1, 8)]
        self._range = env.model.jnt_range[joints]

    def best(
        self,
        grasps: list[Grasp],
        geoms: NDArray[np.int64],
        carry: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        lean: bool = True,
    ) -> Grasp:
        """Return the grasp with the lowest cost.

        Args:
            grasps: The grasps to choose from.
            geoms: Geoms of the object.
            carry: Displacement (3,) of the object after the grasp, in m, world frame.
            rng: Random generator for the random preference.
            lean: Whether leaning grasps may be tried, too.

        Raises:
            ExpertLostError: The arm can reach none of the grasps.
        """
        cost, grasp = self._cheapest(grasps, geoms, carry, rng, np.inf)
        if lean and cost > _TRY_LEANING_FROM:
            _, leaned_grasp = self._cheapest(leaned(grasps), geoms, carry, rng, cost - _LEAN_COST)
            grasp = leaned_grasp or grasp
        if grasp is None:
            raise ExpertLostError(f"the expert of '{self._env.task.name}' found no grasp that the arm can reach")
        return grasp

    def _cheapest(
        self,
        grasps: list[Grasp],
        geoms: NDArray[np.int64],
        carry: NDArray[np.float64],
        rng: np.random.Generator,
        limit: float,
    ) -> tuple[float, Grasp | None]:
        """Return the cost of the cheapest grasp and the grasp; (limit, None) if no grasp costs less than ``limit``.

        Grasps are rated in the order of a first cost: the turn of the hand plus a random preference.
        """
        _, rotation = self._env.grip_pose()
        turns = [0.3 * float(np.linalg.norm(vector_from_rotation(g.rotation @ rotation.T))) for g in grasps]
        first = np.array(turns) + _PREFERENCE_NOISE * rng.random(len(grasps))
        best: Grasp | None = None
        for index in map(int, np.argsort(first)):
            if first[index] >= limit:
                break
            cost = self.cost(grasps[index], geoms, carry, float(first[index]), limit)
            if cost < limit:
                limit, best = cost, grasps[index]
        return limit, best

    def cost(
        self,
        grasp: Grasp,
        geoms: NDArray[np.int64],
        carry: NDArray[np.float64],
        cost: float = 0.0,
        limit: float = np.inf,
    ) -> float:
        """Return the cost of a grasp.

        Args:
            grasp: The grasp.
            geoms: Geoms of the object.
            carry: Displacement (3,) of the object after the grasp, in m, world frame.
            cost: Cost to which the other costs are added.
            limit: Cost above which the computation stops.

        Returns:
            The cost; inf if the grasp is out of reach or its cost is above ``limit``.
        """
        env = self._env
        joints = env.home
        for back in _APPROACH_DISTANCES:
            solved = self._solve(grasp.position - back * grasp.approach, grasp.rotation, joints)
            if solved is None:
                return np.inf
            joints = solved
            cost += self._collision_cost(joints)
            if cost > limit:
                return np.inf
        cost += self._posture_cost(joints)
        for half in _CLOSING_HALF_WIDTHS:  # no other object may be between the fingers
            cost += self._collision_cost(joints, half, geoms)
        if cost > limit:
            return np.inf
        if np.any(carry):
            carried = self._solve(grasp.position + carry, grasp.rotation, joints)
            cost += np.inf if carried is None else self._posture_cost(carried)
        for aside in (-_SIDE_ERROR, _SIDE_ERROR):  # the hand never reaches the exact position
            near = self._solve(grasp.position + aside * grasp.rotation[:, 0], grasp.rotation, joints)
            cost += np.inf if near is None else 0.5 * self._collision_cost(near)
        return cost

    def _posture_cost(self, joints: NDArray[np.float64]) -> float:
        """Return the cost of joint angles (7,) in rad that are near a joint limit or a singularity."""
        margin = float(np.minimum(joints - self._range[:, 0], self._range[:, 1] - joints).min())
        env, data = self._env, self._data
        data.qpos[env.arm_positions] = joints
        self._mujoco.mj_kinematics(env.model, data)
        self._mujoco.mj_comPos(env.model, data)
        jacobian = np.zeros((6, env.model.nv))
        self._mujoco.mj_jacSite(env.model, data, jacobian[:3], jacobian[3:], env.grip_site)
        smallest = float(np.linalg.svd(jacobian[:, env.arm_dofs], compute_uv=False)[-1])
        return _JOINT_LIMIT_COST * max(0.0, _JOINT_MARGIN - margin) + _SINGULARITY_COST * max(
            0.0, _MIN_SINGULAR_VALUE - smallest
        )

    def _solve(
        self, position: NDArray[np.float64], rotation: NDArray[np.float64], start: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Solve the inverse kinematics: return joint angles (7,) in rad for a pose of the grip site, or None.

        The method is damped least squares, as in Buss 2004, "Introduction to inverse kinematics".
        """
        mujoco, env, data = self._mujoco, self._env, self._data
        data.qpos[:] = env.data.qpos
        joints, jacobian = start.copy(), np.zeros((6, env.model.nv))
        for _ in range(_ITERATIONS):
            data.qpos[env.arm_positions] = joints
            mujoco.mj_kinematics(env.model, data)
            mujoco.mj_comPos(env.model, data)
            here = data.site_xmat[env.grip_site].reshape(3, 3)
            error = np.concatenate([position - data.site_xpos[env.grip_site], vector_from_rotation(rotation @ here.T)])
            if float(np.linalg.norm(error)) < 1e-3:
                return joints
            error *= min(1.0, 0.5 / float(np.linalg.norm(error)))
            mujoco.mj_jacSite(env.model, data, jacobian[:3], jacobian[3:], env.grip_site)
            j = jacobian[:, env.arm_dofs]
            step = j.T @ np.linalg.solve(j @ j.T + _DAMPING * np.eye(6), error)
            joints = np.clip(joints + step, self._range[:, 0], self._range[:, 1])
        return None

    def _collision_cost(
        self, joints: NDArray[np.float64], half: float = 0.04, ignored: NDArray[np.int64] | None = None
    ) -> float:
        """Return the cost of the robot's collisions in a posture.

        Args:
            joints: Joint angles (7,) in rad.
            half: Position of each finger in m.
            ignored: Geoms with which collisions do not count.
        """
        env, data = self._env, self._data
        data.qpos[:] = env.data.qpos
        data.qpos[env.arm_positions] = joints
        data.qpos[env.finger_positions] = (half, -half)
        self._mujoco.mj_fwdPosition(env.model, data)
        pairs, depth = data.contact.geom[: data.ncon], -data.contact.dist[: data.ncon]
        robot = self._shapes.robot
        collides = robot[pairs[:, 0]] != robot[pairs[:, 1]]
        if ignored is not None:
            collides &= ~np.isin(pairs, ignored).any(axis=1)
        total = float(np.maximum(depth[collides] - 0.0015, 0.0).sum())
        return _COLLISION_COST + 40.0 * total if total > 0 else 0.0
