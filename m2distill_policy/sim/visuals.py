"""Visual profiles: how a scene looks and how fast it renders. They do not change the physics.

An environment makes two models from one MJCF text. The physics model (:func:`physics_xml`) has no visual parts and is
the same for every profile. The visual model (:func:`visual_model`) is only rendered, at the joint positions of the
physics model. So no profile can change a trajectory.

``stock``: the scene as robosuite or LIBERO defines it.
``fast``: visual meshes are decimated (robosuite's Panda has 180,000 faces, most of them screws and seams that no camera
here resolves). There are no reflections, no shadows and no multisampling. Small images are rendered at twice their
size and averaged instead, which on a CPU takes a third of the time of four samples per pixel.
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

#: Version of the profiles. Increase it when a profile changes the images. It is stored in demonstrations, so older
#: demonstrations then count as collected with other settings.
VISUALS_VERSION = 3


@dataclass(frozen=True)
class VisualProfile:
    """How a scene is rendered.

    Attributes:
        name: Name of the profile.
        keep: Share of the faces that a visual mesh keeps. With 1.0, meshes are not decimated.
        least: Smallest number of faces of a mesh.
        least_near: Smallest number of faces of a mesh of the gripper, which is a few centimetres from the hand camera.
        most: Largest number of faces of a mesh.
        least_textured: Smallest number of faces of a mesh with a texture.
        most_textured: Largest number of faces of a mesh with a texture.
        slices: Number of slices of cylinders and spheres.
        supersample: Factor by which small images are rendered larger and then averaged.
        supersample_up_to: Largest height and width in pixels of images that are supersampled.
        multisample: OpenGL samples per pixel.
        shadows: Whether shadows are rendered.
        reflections: Whether reflections are rendered.
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
    """Return the profile of that name.

    Raises:
        SimulationError: There is no such profile.
    """
    if name not in PROFILES:
        raise SimulationError(
            f"there is no visual profile '{name}'; choose one of {', '.join(sorted(PROFILES))}{closest(name, PROFILES)}"
        )
    return PROFILES[name]


def is_visual_only(geom: ElementTree.Element) -> bool:
    """Return whether an MJCF geom is only visual: it cannot collide and is not in group 0, whose geoms have mass."""
    return geom.get("contype") == "0" and geom.get("conaffinity") == "0" and geom.get("group", "0") != "0"


def physics_xml(xml: str) -> str:
    """Return the MJCF without visual geoms, materials, textures and unused meshes.

    The motion stays the same, because robosuite's base model computes inertia from group 0 alone
    (``inertiagrouprange``).

    Raises:
        SimulationError: The scene computes inertia from visual geoms, too.
    """
    root = ElementTree.fromstring(xml)
    compiler = root.find("compiler")
    if compiler is None or compiler.get("inertiagrouprange") != "0 0":
        raise SimulationError(
            "the scene computes inertia from visual geoms (inertiagrouprange is not '0 0'), so they cannot be removed"
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
    """Compile the visual model. Its joints are those of the physics model, in the same order.

    Raises:
        SimulationError: The scene cannot be compiled.
    """
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
        raise SimulationError(f"MuJoCo cannot compile the scene for rendering: {error}") from error
    if not profile.shadows:
        model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = profile.multisample
    model.vis.quality.numslices = profile.slices
    model.vis.quality.numstacks = min(16, profile.slices)
    return model


def _decimate(root: ElementTree.Element, profile: VisualProfile) -> dict[str, bytes]:
    """Replace every visual mesh by a decimated copy. Return file name -> content of each copy.

    Collision geoms are neither rendered nor simulated in this model, so they and their meshes are removed.
    """
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == "geom" and child.get("group", "0") == "0":
                parent.remove(child)
    compiler = root.find("compiler")
    if compiler is not None:  # without collision geoms, bodies have no mass, and MuJoCo would not compile them
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
    """Return the limits of decimation of a mesh. Textured meshes keep more faces, because the texture must fit."""
    if textured:
        return {"keep": profile.keep, "least": profile.least_textured, "most": profile.most_textured, "textured": True}
    least = profile.least_near if "gripper" in file else profile.least
    return {"keep": profile.keep, "least": least, "most": profile.most, "textured": False}
