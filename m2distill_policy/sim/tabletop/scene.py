"""The scene of the tabletop: table, objects, bin and cameras, made of robosuite's models, and the initial layouts.

World frame, in m: the top of the table is the plane z = 0.8, with its centre at x = y = 0. The robot's base is at
x = -0.56 and faces +x. The agentview camera is on the side of +x and looks towards the robot, so +y is to the right in
its image.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.gl import choose_gl

TABLE_TOP = 0.8
TABLE_SIZE = (0.8, 0.8, 0.05)

#: Initial position of the grip site (m, world frame), above the middle of the workspace. The hand points down.
HOME = (-0.03, 0.02, TABLE_TOP + 0.2)
#: Standard deviation (rad) of the arm's initial joint angles.
JOINT_NOISE = 0.008


@dataclass(frozen=True)
class SceneObject:
    """One object of the scene.

    Attributes:
        name: Name of the object.
        group: Group of slots for the object, a key of :data:`SLOTS`.
        rest: Height of the object's origin above the table when the object lies on it, in m.
        grasp: Height of the grip site above the table when the object is grasped, in m.
        half_width: Half the width of the object along the fingers' axis, in m.
    """

    name: str
    group: str
    rest: float
    grasp: float
    half_width: float


OBJECTS: tuple[SceneObject, ...] = (
    SceneObject("red_box", "front", 0.030, 0.034, 0.0225),
    SceneObject("green_box", "front", 0.030, 0.034, 0.0225),
    SceneObject("blue_box", "front", 0.030, 0.034, 0.0225),
    SceneObject("can", "back", 0.040, 0.052, 0.025),
    SceneObject("bread", "back", 0.029, 0.030, 0.025),
)

COLORS = {
    "red_box": (0.85, 0.08, 0.08, 1.0),
    "green_box": (0.08, 0.65, 0.15, 1.0),
    "blue_box": (0.10, 0.20, 0.85, 1.0),
}

#: Group -> centres (x, y) in m of the slots that its objects share. Slots are far enough apart that the open hand
#: (0.2 m wide, with its underside 3 cm above the grip site) does not touch the neighbour of an object.
SLOTS: dict[str, tuple[tuple[float, float], ...]] = {
    "front": ((0.07, -0.18), (0.07, -0.03), (0.07, 0.12)),
    "back": ((-0.10, -0.13), (-0.10, 0.07)),
}
#: Largest distance (m) of an object from the centre of its slot, in x and in y.
JITTER = 0.025
#: Largest rotation (rad) of an object about the vertical.
YAW = 0.15

BIN_CENTER = (-0.03, 0.28)
#: Half the inner width of the bin, half the thickness of its walls, and their height, in m.
BIN_HALF = 0.085
BIN_WALL = 0.006
BIN_HEIGHT = 0.035

AGENTVIEW_POSITION = (0.55, 0.07, TABLE_TOP + 0.65)
AGENTVIEW_TARGET = (-0.03, 0.07, TABLE_TOP + 0.10)
AGENTVIEW_FOV = 45.0
HAND_FOV = 75.0


def build_xml() -> str:
    """Return the MJCF of the scene. It is always the same."""
    choose_gl()
    from robosuite.models.arenas import TableArena
    from robosuite.models.grippers import gripper_factory
    from robosuite.models.mounts import mount_factory
    from robosuite.models.objects import BoxObject, BreadObject, CanObject
    from robosuite.models.robots import Panda
    from robosuite.models.tasks import ManipulationTask

    robot = Panda()
    robot.add_mount(mount_factory("RethinkMount"))
    robot.add_gripper(gripper_factory("PandaGripper"))
    robot.set_base_xpos(robot.base_xpos_offset["table"](TABLE_SIZE[0]))
    arena = TableArena(table_full_size=TABLE_SIZE, table_offset=(0.0, 0.0, TABLE_TOP))
    arena.set_origin([0, 0, 0])
    arena.set_camera("agentview", pos=AGENTVIEW_POSITION, quat=_look_at(AGENTVIEW_POSITION, AGENTVIEW_TARGET))
    for camera in arena.worldbody.findall("./camera[@name='agentview']"):
        camera.set("fovy", f"{AGENTVIEW_FOV:g}")
    half = (0.0225, 0.0225, 0.03)
    objects = [BoxObject(name, size=half, rgba=list(color), density=200.0) for name, color in COLORS.items()]
    objects += [CanObject("can"), BreadObject("bread")]
    root = ElementTree.fromstring(ManipulationTask(arena, robot, objects).get_xml())
    for mesh in root.iter("mesh"):
        if mesh.get("name") == "bread_mesh":
            # robosuite scales its loaf of bread to 0.8. At full size it is as large as the boxes and as easy to see.
            mesh.set("scale", "1 1 1")
    worldbody = root.find("worldbody")
    assert worldbody is not None, "robosuite's task model has a world body"
    worldbody.append(_bin())
    return ElementTree.tostring(root, encoding="unicode")


def _bin() -> ElementTree.Element:
    """Return a fixed open box: a floor and four walls, each as a collision geom and a visual geom."""
    body = ElementTree.Element("body", name="bin", pos=f"{BIN_CENTER[0]} {BIN_CENTER[1]} {TABLE_TOP}")
    outer, wall, height = BIN_HALF + 2 * BIN_WALL, BIN_WALL, BIN_HEIGHT
    middle = BIN_HALF + BIN_WALL
    parts = [
        ("floor", (0.0, 0.0, 0.002), (outer, outer, 0.002)),
        ("near", (-middle, 0.0, height / 2), (wall, outer, height / 2)),
        ("far", (middle, 0.0, height / 2), (wall, outer, height / 2)),
        ("left", (0.0, -middle, height / 2), (outer, wall, height / 2)),
        ("right", (0.0, middle, height / 2), (outer, wall, height / 2)),
    ]
    for name, position, size in parts:
        shape = {"type": "box", "pos": " ".join(map(str, position)), "size": " ".join(map(str, size))}
        ElementTree.SubElement(
            body, "geom", {**shape, "name": f"bin_{name}", "group": "0", "friction": "1 0.005 0.0001"}
        )
        visual = {"name": f"bin_{name}_visual", "group": "1", "contype": "0", "conaffinity": "0"}
        color = "0.30 0.26 0.34 1" if name == "floor" else "0.42 0.36 0.48 1"
        ElementTree.SubElement(body, "geom", {**shape, **visual, "rgba": color})
    return body


def _look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the quaternion (w, x, y, z) of an upright camera at ``position`` that looks at ``target``."""
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right = right / np.linalg.norm(right)
    up = np.cross(back, right)
    m = np.stack([right, up, back], axis=1)
    w = math.sqrt(max(0.0, 1.0 + m[0, 0] + m[1, 1] + m[2, 2])) / 2
    return np.array([w, (m[2, 1] - m[1, 2]) / (4 * w), (m[0, 2] - m[2, 0]) / (4 * w), (m[1, 0] - m[0, 1]) / (4 * w)])


@dataclass(frozen=True)
class Layout:
    """An initial layout of the objects and the arm.

    Attributes:
        places: Position and rotation (x, y, yaw) of each object, in m and rad, world frame.
        joint_noise: Offset (7,) of the arm's initial joint angles, in rad.
    """

    places: dict[str, tuple[float, float, float]]
    joint_noise: NDArray[np.float64]


def sample_layout(seed: int) -> Layout:
    """Sample an initial layout from ``seed`` alone.

    The objects of a group are assigned to its slots at random. Each object is shifted and rotated a little at random.
    """
    rng = np.random.default_rng([20240, seed])
    places: dict[str, tuple[float, float, float]] = {}
    for group, slots in SLOTS.items():
        names = [item.name for item in OBJECTS if item.group == group]
        order = rng.permutation(len(slots))
        for name, slot in zip(names, order, strict=True):
            dx, dy = rng.uniform(-JITTER, JITTER, 2)
            yaw = float(rng.uniform(-YAW, YAW))
            places[name] = (slots[slot][0] + float(dx), slots[slot][1] + float(dy), yaw)
    return Layout(places, rng.normal(0.0, JOINT_NOISE, 7))
