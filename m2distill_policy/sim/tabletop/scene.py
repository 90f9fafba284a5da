"""The table, its objects, its bin and its cameras, built from robosuite's models; and where things may stand.

World frame: the table's top is the plane z = 0.8 m with its centre at x = y = 0; the robot's base is at x = -0.56,
looking along +x; the agentview camera looks back at it from +x. So +y is to the right in the agentview picture.
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

#: Where the grip site starts (m, world), above the middle of the workspace, pointing down.
HOME = (-0.03, 0.02, TABLE_TOP + 0.2)
#: Standard deviation (rad) of the arm's initial joint angles.
JOINT_NOISE = 0.008


@dataclass(frozen=True)
class Thing:
    """One object: its group of slots, the height of its origin over the table at rest, and where to grasp it.

    rest, grasp: m above the table's top; grasp is where the grip site should be. half_width: m along the fingers' axis.
    """

    name: str
    group: str
    rest: float
    grasp: float
    half_width: float


THINGS: tuple[Thing, ...] = (
    Thing("red_box", "front", 0.030, 0.034, 0.0225),
    Thing("green_box", "front", 0.030, 0.034, 0.0225),
    Thing("blue_box", "front", 0.030, 0.034, 0.0225),
    Thing("can", "back", 0.040, 0.052, 0.025),
    Thing("bread", "back", 0.029, 0.030, 0.025),
)

COLORS = {
    "red_box": (0.85, 0.08, 0.08, 1.0),
    "green_box": (0.08, 0.65, 0.15, 1.0),
    "blue_box": (0.10, 0.20, 0.85, 1.0),
}

#: Centres (x, y) in m of the places that a group's objects share. Rows and columns are far enough apart that the
#: open hand (0.2 m wide, its underside 3 cm above the grip site) clears every neighbour at the largest jitter.
SLOTS: dict[str, tuple[tuple[float, float], ...]] = {
    "front": ((0.07, -0.18), (0.07, -0.03), (0.07, 0.12)),
    "back": ((-0.10, -0.13), (-0.10, 0.07)),
}
#: Half the side (m) of the square around a slot's centre in which an object stands.
JITTER = 0.025
#: Largest turn (rad) of an object about the vertical.
YAW = 0.15

BIN_CENTER = (-0.03, 0.28)
#: Half the inner side (m) of the bin, its walls' thickness and height.
BIN_HALF = 0.085
BIN_WALL = 0.006
BIN_HEIGHT = 0.035

AGENTVIEW_POSITION = (0.55, 0.07, TABLE_TOP + 0.65)
AGENTVIEW_TARGET = (-0.03, 0.07, TABLE_TOP + 0.10)
AGENTVIEW_FOV = 45.0
HAND_FOV = 75.0


def build_xml() -> str:
    """MJCF of the scene. Deterministic."""
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
            # robosuite shrinks its loaf to 0.8; whole, it is as large as the boxes and as easy to see.
            mesh.set("scale", "1 1 1")
    worldbody = root.find("worldbody")
    assert worldbody is not None, "robosuite's task model has a world body"
    worldbody.append(_bin())
    return ElementTree.tostring(root, encoding="unicode")


def _bin() -> ElementTree.Element:
    """An open box that does not move: a floor and four walls, each a collision geom and a visual twin."""
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
        seen = {"name": f"bin_{name}_visual", "group": "1", "contype": "0", "conaffinity": "0"}
        color = "0.30 0.26 0.34 1" if name == "floor" else "0.42 0.36 0.48 1"
        ElementTree.SubElement(body, "geom", {**shape, **seen, "rgba": color})
    return body


def _look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> NDArray[np.float64]:
    """Quaternion (w, x, y, z) of a camera at ``position`` whose -z axis points to ``target``, upright."""
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
    """Where every object stands: name -> (x, y, yaw), m and rad; and the arm's joint noise (7,) in rad."""

    places: dict[str, tuple[float, float, float]]
    joint_noise: NDArray[np.float64]


def draw_layout(seed: int) -> Layout:
    """An initial layout from ``seed`` alone: objects permuted in their group's slots, shifted and turned a little."""
    rng = np.random.default_rng([20240, seed])
    places: dict[str, tuple[float, float, float]] = {}
    for group, slots in SLOTS.items():
        names = [thing.name for thing in THINGS if thing.group == group]
        order = rng.permutation(len(slots))
        for name, slot in zip(names, order, strict=True):
            dx, dy = rng.uniform(-JITTER, JITTER, 2)
            yaw = float(rng.uniform(-YAW, YAW))
            places[name] = (slots[slot][0] + float(dx), slots[slot][1] + float(dy), yaw)
    return Layout(places, rng.normal(0.0, JOINT_NOISE, 7))
