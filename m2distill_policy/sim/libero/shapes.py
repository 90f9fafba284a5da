"""The collision shapes in a scene and their present positions, read from the simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError

_ROBOT = ("robot0_", "gripper0_", "mount0_")
#: Names of the bodies of each finger of robosuite's PandaGripper.
_FINGERS = (
    ("gripper0_leftfinger", "gripper0_finger_joint1_tip"),
    ("gripper0_rightfinger", "gripper0_finger_joint2_tip"),
)

#: Number of points along an edge of a shape.
_ALONG_EDGE = 7


class Shapes:
    """The collision shapes of one MuJoCo model.

    Positions are in m, world frame. They are those of the last kinematics computation of MuJoCo.

    Args:
        model: The MuJoCo model.
        data: MuJoCo data of the model.

    Attributes:
        robot: Whether each geom belongs to the robot, (ngeom,).
        fingers: For each of the two fingers, whether each geom belongs to the finger, (ngeom,).
        objects: Indices of the solid geoms that are neither part of the robot nor a plane.
    """

    def __init__(self, model: Any, data: Any) -> None:
        import mujoco

        self.model, self.data = model, data
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        names = [model.body(int(body)).name for body in model.geom_bodyid]
        self.robot = np.array([name.startswith(_ROBOT) for name in names])
        self.fingers = tuple(np.array([name in finger for name in names]) for finger in _FINGERS)
        bounded = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
        self.objects = np.flatnonzero(solid & bounded & ~self.robot)
        self._parents = model.body_parentid
        self._points: dict[int, NDArray[np.float64]] = {}
        self._geoms: dict[int, NDArray[np.int64]] = {}

    def geoms_of(self, body: int) -> NDArray[np.int64]:
        """Return the indices of the solid geoms of ``body`` and its child bodies."""
        if body in self._geoms:
            return self._geoms[body]
        inside = np.zeros(self.model.nbody, dtype=bool)
        for index in range(self.model.nbody):  # parents come before children
            inside[index] = index == body or (index > 0 and inside[self._parents[index]])
        found = self.objects[inside[self.model.geom_bodyid[self.objects]]]
        if len(found) == 0:
            raise SimulationError(f"body '{self.model.body(body).name}' has no collision geom that could be grasped")
        self._geoms[body] = found
        return found

    def boxes(self, geoms: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lowest and the highest corners (n, 3) of the axis-aligned boxes around ``geoms``."""
        model, data = self.model, self.data
        rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
        center = data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotation, model.geom_aabb[geoms, :3])
        half = np.einsum("nij,nj->ni", np.abs(rotation), model.geom_aabb[geoms, 3:])
        return center - half, center + half

    def points(self, geoms: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return points (n, 3) on the edges of the meshes and boxes of ``geoms``."""
        parts = []
        for geom in map(int, geoms):
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            parts.append(self.data.geom_xpos[geom] + self._local_points(geom) @ rotation.T)
        return np.concatenate(parts)

    def _local_points(self, geom: int) -> NDArray[np.float64]:
        import mujoco

        if geom in self._points:
            return self._points[geom]
        model = self.model
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = int(model.geom_dataid[geom])
            start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
            corners = np.array(model.mesh_vert[start : start + count], dtype=np.float64)
            start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
            faces = model.mesh_face[start : start + count]
            edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])), axis=0)
        else:
            signs = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, -1).T
            corners = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
            edges = np.array([(a, b) for a in range(8) for b in range(a) if np.sum(signs[a] != signs[b]) == 1])
        # Points along the edges are needed, because a tall box has no corner at the height of the grasp.
        share = np.linspace(0.0, 1.0, _ALONG_EDGE)[:, None, None]
        points = ((1 - share) * corners[edges[:, 0]] + share * corners[edges[:, 1]]).reshape(-1, 3)
        self._points[geom] = points
        return points

    def highest_on_way(
        self, start: NDArray[np.float64], end: NDArray[np.float64], radius: float, ignored: NDArray[np.int64]
    ) -> float:
        """Return the height of the highest object on a straight path.

        Args:
            start: Start (3,) or (2,) of the path. Only x and y are used.
            end: End of the path, as ``start``.
            radius: Horizontal distance from the path within which objects count, in m.
            ignored: Geoms that do not count.

        Returns:
            The height in m, or -inf if there is no object.
        """
        geoms = np.setdiff1d(self.objects, ignored)
        low, high = self.boxes(geoms)
        way = np.linspace(start[:2], end[:2], 2 + int(np.linalg.norm(end[:2] - start[:2]) / 0.02))
        nearest = np.clip(way[:, None], low[:, :2], high[:, :2])
        distance = np.linalg.norm(nearest - way[:, None], axis=-1).min(axis=0)
        near = distance < radius
        return float(high[near, 2].max()) if near.any() else -np.inf

    def direction_from_under(self, geoms: NDArray[np.int64], margin: float) -> NDArray[np.float64] | None:
        """Return the horizontal direction that leads ``geoms`` out from under another object.

        Args:
            geoms: Geoms of the object that is to be lifted.
            margin: Distance to keep from the other object, in m.

        Returns:
            A unit vector (2,), or None if no other object is less than 0.2 m above ``geoms``.
        """
        points = self.points(geoms)
        top = points[points[:, 2] > points[:, 2].max() - 0.01]
        top = top[:: max(1, len(top) // 24)]
        others = np.setdiff1d(self.objects, geoms)
        rotation = self.data.geom_xmat[others].reshape(-1, 3, 3)
        center = self.data.geom_xpos[others] + np.einsum("nij,nj->ni", rotation, self.model.geom_aabb[others, :3])
        half = self.model.geom_aabb[others, 3:] + margin
        # Intersect a ray straight up from each point with each oriented box (slab method, Kay and Kajiya 1986).
        start = np.einsum("nij,npi->npj", rotation, top[None] - center[:, None])
        up = np.einsum("nij,i->nj", rotation, np.array([0.0, 0.0, 1.0]))[:, None]
        up = np.where(np.abs(up) < 1e-9, 1e-9, up)
        ends = np.stack([(-half[:, None] - start) / up, (half[:, None] - start) / up])
        enters, leaves = ends.min(axis=0).max(axis=-1), ends.max(axis=0).min(axis=-1)
        over = np.any((enters < leaves) & (leaves > 0.0) & (enters > -0.004) & (enters < 0.2), axis=1)
        if not over.any():
            return None
        away = top[:, :2].mean(axis=0) - center[over, :2].mean(axis=0)
        return np.asarray(away / max(1e-6, float(np.linalg.norm(away))))

    def support_height(self, geoms: NDArray[np.int64]) -> float:
        """Return the height of the highest object directly below ``geoms``; without one, of their lowest point."""
        low, high = self.boxes(geoms)
        others_low, others_high = self.boxes(np.setdiff1d(self.objects, geoms))
        bottom = float(low[:, 2].min())
        under = others_high[:, 2] < bottom + 0.01
        under &= np.all(
            (others_low[:, :2] < high[:, :2].max(axis=0)) & (others_high[:, :2] > low[:, :2].min(axis=0)), axis=1
        )
        return float(others_high[under, 2].max()) if under.any() else bottom

    def touched_by_fingers(self, geoms: NDArray[np.int64]) -> tuple[bool, bool]:
        """Return whether each of the two fingers touches one of ``geoms``."""
        data = self.data
        pairs = data.contact.geom[: data.ncon]
        mine = np.zeros(self.model.ngeom, dtype=bool)
        mine[geoms] = True
        touched = [
            bool(np.any((finger[pairs[:, 0]] & mine[pairs[:, 1]]) | (finger[pairs[:, 1]] & mine[pairs[:, 0]])))
            for finger in self.fingers
        ]
        return touched[0], touched[1]
