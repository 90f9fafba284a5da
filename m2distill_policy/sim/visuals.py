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

import hashlib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.meshes import coarse_mesh

#: Raised when a profile looks different than before: meshes are made anew, and demonstrations say what they show.
VISUALS_VERSION = 3


@dataclass(frozen=True)
class VisualProfile:
    """keep: share of the faces that a visual mesh keeps, within ``least`` to ``most`` faces; 1.0 leaves meshes alone.

    least_textured, most_textured: the same for meshes that carry a texture. least_near: ``least`` for the gripper,
    which the hand's camera sees from centimetres. slices: how round cylinders and spheres are drawn.
    supersample: frames up to ``supersample_up_to`` pixels high are drawn this many times larger and averaged.
    multisample: OpenGL samples a pixel. shadows, reflections: drawn or not.
    """

    name: str
    keep: float
    least: int
    least_near: int
    most: int
    least_textured: int
    most_textured: int
    slices: int
    supersample: int
    supersample_up_to: int
    multisample: int
    shadows: bool
    reflections: bool


PROFILES = {
    "fast": VisualProfile("fast", 0.04, 100, 400, 500, 1000, 2000, 14, 2, 96, 0, False, False),
    "stock": VisualProfile("stock", 1.0, 0, 0, 0, 0, 0, 28, 1, 0, 4, True, True),
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
    """Point every mesh that is only seen to a coarser copy; the copies' contents by their file names.

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
        if file is None:
            continue
        coarse = coarse_mesh(Path(file), mesh.get("scale", "1 1 1"), **_limits(file, name in mapped, profile))
        if coarse is not None:
            suffix, content = coarse
            key = f"{hashlib.sha256(content).hexdigest()[:24]}.{suffix}"
            files[key] = content
            mesh.set("file", key)
            mesh.attrib.pop("scale", None)
    return files


def _limits(file: str, textured: bool, profile: VisualProfile) -> dict[str, Any]:
    """How coarse a mesh may become. A texture carries an object's looks, so textured meshes keep more."""
    if textured:
        return {"keep": profile.keep, "least": profile.least_textured, "most": profile.most_textured, "textured": True}
    least = profile.least_near if "gripper" in file else profile.least
    return {"keep": profile.keep, "least": least, "most": profile.most, "textured": False}
