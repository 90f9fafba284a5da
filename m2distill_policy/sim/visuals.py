"""Visual profiles: what a scene looks like, and what drawing it costs. Physics never passes through here.

A world holds two models made from one MJCF text: :func:`physics_xml` drops what is only seen, and is the same for
every profile; :func:`visual_model` is only drawn, with the joint positions copied over. So no profile can change a
trajectory.

``stock``: the scene as robosuite or LIBERO describe it.
``fast``: visual meshes decimated (robosuite's Panda has 180,000 faces, nearly all screws and seams that no camera
here resolves), no reflections, no shadow map, no multisampling (frames are drawn at twice the size and averaged
instead, which on a CPU costs a third of four samples a pixel).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.sim.cache import cache_dir, write_atomic
from m2distill_policy.sim.gl import choose_gl

#: Raised when a profile looks different than before: meshes are made anew, and demonstrations say what they show.
VISUALS_VERSION = 3


@dataclass(frozen=True)
class VisualProfile:
    """keep: share of the faces that a visual mesh keeps, within ``least`` to ``most`` faces; 1.0 leaves meshes alone.

    least_near: the same ``least`` for the gripper, which the hand's camera sees from centimetres.
    slices: how round cylinders and spheres are drawn.

    supersample: frames up to ``supersample_up_to`` pixels high are drawn this many times larger and averaged.
    multisample: OpenGL samples a pixel. shadows, reflections: drawn or not.
    """

    name: str
    keep: float
    least: int
    least_near: int
    most: int
    slices: int
    supersample: int
    supersample_up_to: int
    multisample: int
    shadows: bool
    reflections: bool


PROFILES = {
    "fast": VisualProfile("fast", 0.04, 100, 400, 500, 14, 2, 96, 0, False, False),
    "stock": VisualProfile("stock", 1.0, 0, 0, 0, 28, 1, 0, 4, True, True),
}


def visual_profile(name: str) -> VisualProfile:
    """The profile called ``name``; raises :class:`SimulationError` for an unknown one."""
    if name not in PROFILES:
        raise SimulationError(
            f"visual profile '{name}' is not known; allowed are {sorted(PROFILES)}{closest(name, PROFILES)}"
        )
    return PROFILES[name]


def is_visual_only(geom: ElementTree.Element) -> bool:
    """Whether an MJCF geom is only seen: it collides with nothing, and is outside group 0, the one that has mass."""
    return geom.get("contype") == "0" and geom.get("conaffinity") == "0" and geom.get("group", "0") != "0"


def physics_xml(xml: str) -> str:
    """The MJCF without what is only seen: visual geoms, materials, textures and the meshes that nothing else uses.

    robosuite's base model takes inertia from group 0 alone (``inertiagrouprange``), so motion is unchanged.
    """
    root = ElementTree.fromstring(xml)
    compiler = root.find("compiler")
    if compiler is None or compiler.get("inertiagrouprange") != "0 0":
        raise SimulationError(
            "the scene takes inertia from visual geoms (inertiagrouprange is not '0 0'); they cannot be dropped"
        )
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "geom" and is_visual_only(child):
                parent.remove(child)
            elif child.tag == "geom":
                child.attrib.pop("material", None)
    assets = root.find("asset")
    if assets is not None:
        used = {geom.get("mesh") for geom in root.iter("geom")}
        for asset in list(assets):
            if asset.tag in ("texture", "material") or (asset.tag == "mesh" and asset.get("name") not in used):
                assets.remove(asset)
    return ElementTree.tostring(root, encoding="unicode")


def visual_model(xml: str, profile: VisualProfile) -> Any:
    """Compile the model that is drawn. Its joints are the physics model's, in the same order."""
    choose_gl()
    import mujoco

    root = ElementTree.fromstring(xml)
    files: dict[str, bytes] = {}
    if profile.keep < 1.0:
        files = _decimate(root, profile)
    if not profile.reflections:
        for material in root.iter("material"):
            material.attrib.pop("reflectance", None)
    if not profile.shadows:
        for light in root.iter("light"):
            light.set("castshadow", "false")
    try:
        model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"), files)
    except ValueError as error:
        raise SimulationError(f"the scene cannot be compiled for drawing: {error}") from error
    if not profile.shadows:
        model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = profile.multisample
    model.vis.quality.numslices = profile.slices
    model.vis.quality.numstacks = min(16, profile.slices)
    return model


def _decimate(root: ElementTree.Element, profile: VisualProfile) -> dict[str, bytes]:
    """Point every untextured mesh that is only seen to a coarser copy; the copies' contents by their file names.

    Collision geoms are not drawn and not simulated in this model, so they go, and their meshes with them.
    """
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "geom" and child.get("group", "0") == "0":
                parent.remove(child)
    compiler = root.find("compiler")
    if compiler is not None:  # what lost its mass with its collision geoms never moves by itself, but must compile
        compiler.set("boundmass", "0.001")
        compiler.set("boundinertia", "0.001")
    used = {geom.get("mesh") for geom in root.iter("geom")}
    textured = {m.get("name") for m in root.iter("material") if m.get("texture")}
    mapped = {geom.get("mesh") for geom in root.iter("geom") if geom.get("material") in textured}
    assets = root.find("asset")
    files: dict[str, bytes] = {}
    for mesh in [] if assets is None else list(assets.iter("mesh")):
        name, file = mesh.get("name"), mesh.get("file")
        if name not in used:
            assets.remove(mesh)  # type: ignore[union-attr]
            continue
        # A texture's coordinates would not survive decimation; those meshes are few and stay as they are.
        if file is None or name in mapped:
            continue
        scale = mesh.get("scale", "1 1 1")
        least = profile.least_near if "gripper" in file else profile.least
        content = _coarse_mesh(Path(file), scale, profile.keep, least, profile.most)
        if content is not None:
            key = f"{hashlib.sha256(content).hexdigest()[:24]}.stl"
            files[key] = content
            mesh.set("file", key)
            mesh.attrib.pop("scale", None)
    return files


def _coarse_mesh(file: Path, scale: str, keep: float, least: int, most: int) -> bytes | None:
    """A binary STL of the mesh with fewer faces, from the cache or made now; None where it is small already."""
    source = file.read_bytes()
    key = hashlib.sha256(
        b"\0".join(
            [
                source,
                file.suffix.encode(),
                scale.encode(),
                repr((keep, least, most, VISUALS_VERSION)).encode(),
            ]
        )
    ).hexdigest()
    folder = cache_dir("meshes")
    cached = folder / f"{key}.stl" if folder is not None else None
    if cached is not None and cached.exists():
        return cached.read_bytes() or None
    vertices, faces = _load_mesh(file, scale)
    wanted = min(most, max(least, int(len(faces) * keep)))
    content = b"" if len(faces) <= wanted else _simplify(vertices, faces, wanted)
    if cached is not None:
        with contextlib.suppress(OSError):  # a full disk costs time at the next start, nothing else
            write_atomic(cached, content)
    return content or None


def _load_mesh(file: Path, scale: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices (n, 3) in m and faces (m, 3) in the file's own frame, read by MuJoCo's own loaders."""
    import mujoco

    root = ElementTree.Element("mujoco")
    ElementTree.SubElement(ElementTree.SubElement(root, "asset"), "mesh", name="m", file=str(file), scale=scale)
    ElementTree.SubElement(ElementTree.SubElement(root, "worldbody"), "geom", type="mesh", mesh="m")
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    # The compiler moves a mesh to its centre of mass and principal axes; undo that.
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    vertices = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    # Vertices that were split for their normals are welded, or decimation would tear the seams open.
    unique, index = np.unique(vertices.round(7), axis=0, return_inverse=True)
    return unique.astype(np.float32), index.reshape(-1)[model.mesh_face].astype(np.int32)


def _simplify(vertices: NDArray[np.float32], faces: NDArray[np.int32], wanted: int) -> bytes:
    """Binary STL of about ``wanted`` faces; empty where the decimation leaves nothing that has a volume."""
    import fast_simplification

    points, triangles = fast_simplification.simplify(vertices, faces, target_count=wanted, agg=3)
    if len(triangles) < 8:
        return b""
    corners = np.asarray(points, dtype=np.float32)[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    solid = length[:, 0] > 1e-14
    corners, normals = corners[solid], (normals / np.maximum(length, 1e-14))[solid]
    record = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    record["normal"], record["corners"] = normals, corners
    out = io.BytesIO()
    out.write(b"\0" * 80 + np.uint32(len(record)).tobytes() + record.tobytes())
    return out.getvalue()
