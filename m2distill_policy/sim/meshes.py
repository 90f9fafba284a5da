"""Decimate visual meshes. The results are cached under a hash of the original file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.sim.cache import cache_dir
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.storage import write_atomic

#: Version of the decimation. Increase it when the decimation changes, so that older cached meshes are not used.
_VERSION = 5
#: Content of the cache file of a mesh that is not decimated. It is not empty, because a power cut can leave an empty
#: file.
_AS_IT_IS = b"as it is"

#: Aggressiveness of the decimation, 0 to 10.
_AGGRESSION = 3


@dataclass(frozen=True)
class _Mesh:
    """A triangle mesh.

    Attributes:
        vertices: Vertices (n, 3) in m.
        faces: Indices (m, 3) of the vertices.
        uv: Texture coordinates (m, 3, 2) of the corners of each face, or None.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    uv: NDArray[np.float64] | None


def coarse_mesh(
    file: Path, scale: str, *, keep: float, least: int, most: int, textured: bool
) -> tuple[str, bytes] | None:
    """Return a decimated copy of a mesh.

    Args:
        file: The mesh file.
        scale: Attribute ``scale`` of the mesh in the MJCF.
        keep: Share of the faces to keep.
        least: Smallest number of faces to keep.
        most: Largest number of faces to keep.
        textured: Whether to keep texture coordinates.

    Returns:
        The format (``obj`` if textured, otherwise ``stl``) and the content; None if the mesh is small already or
        cannot be decimated.
    """
    suffix = "obj" if textured else "stl"
    request = repr((file.suffix, scale, keep, least, most, textured, _VERSION)).encode()
    key = hashlib.sha256(file.read_bytes() + request).hexdigest()
    folder = cache_dir("meshes")
    cached = folder / f"{key}.{suffix}" if folder is not None else None
    content = b""
    if cached is not None:
        with contextlib.suppress(OSError):  # it does not exist, or another user wrote it
            content = cached.read_bytes()
    if not content:
        content = _make(file, scale, keep, least, most, textured) or _AS_IT_IS
        if cached is not None:
            with contextlib.suppress(OSError):  # without the cache, the next start only takes longer
                write_atomic(cached, content)
    return None if content == _AS_IT_IS else (suffix, content)


def _make(file: Path, scale: str, keep: float, least: int, most: int, textured: bool) -> bytes:
    """Return the content of the decimated mesh, or b"" if the original must be used."""
    import fast_simplification

    mesh = _load(file, scale)
    wanted = min(most, max(least, int(len(mesh.faces) * keep)))
    if len(mesh.faces) <= wanted or (textured and mesh.uv is None):
        return b""
    points, triangles = fast_simplification.simplify(
        mesh.vertices.astype(np.float32), mesh.faces, target_count=wanted, agg=_AGGRESSION
    )
    if len(triangles) < 8:
        return b""
    corners = np.asarray(points, dtype=np.float64)[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    corners = corners[area > 1e-14]
    return _obj(corners, _transfer_uv(mesh, corners)) if textured else _stl(corners)


def _load(file: Path, scale: str) -> _Mesh:
    """Read a mesh with MuJoCo's own loader, in the frame of its file."""
    choose_gl()
    import mujoco

    root = ElementTree.Element("mujoco")
    ElementTree.SubElement(ElementTree.SubElement(root, "asset"), "mesh", name="m", file=str(file), scale=scale)
    ElementTree.SubElement(ElementTree.SubElement(root, "worldbody"), "geom", type="mesh", mesh="m")
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    # MuJoCo's compiler moves a mesh to its centre of mass and principal axes. Undo that.
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    vertices = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    # Merge equal vertices, which were split because their normals differ. Otherwise the decimation would open gaps.
    unique, index = np.unique(vertices.round(7), axis=0, return_inverse=True)
    uv = None
    if model.nmeshtexcoord:
        uv = np.asarray(model.mesh_texcoord, dtype=np.float64)[model.mesh_facetexcoord]
    return _Mesh(unique, index.reshape(-1)[model.mesh_face].astype(np.int32), uv)


def _transfer_uv(mesh: _Mesh, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return texture coordinates (m, 3, 2) for new triangles (m, 3, 3).

    Each new triangle uses the linear texture map of the old face that is nearest to its centre. So no triangle crosses
    a seam of the texture.
    """
    from scipy.spatial import cKDTree

    assert mesh.uv is not None, "only called for meshes with texture coordinates"
    old = mesh.vertices[mesh.faces]
    # Each old face is represented by four points: its centre, and one towards each corner.
    weights = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]], dtype=np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    samples = np.einsum("sc,fcd->fsd", weights, old).reshape(-1, 3)
    middle = corners.mean(axis=1)
    _, candidates = cKDTree(samples).query(middle, k=min(8, len(samples)))
    candidates = candidates.reshape(len(middle), -1) // len(weights)
    # Of the nearest faces, use one with a similar normal, because the other side of a thin wall is near, too.
    normals = _unit(np.cross(old[:, 1] - old[:, 0], old[:, 2] - old[:, 0]))
    new_normals = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    agreement = np.einsum("mkd,md->mk", normals[candidates], new_normals)
    rank = np.where(agreement > 0.5, np.arange(candidates.shape[1]), 100 - agreement)
    chosen = candidates[np.arange(len(middle)), np.argmin(rank, axis=1)]
    # Barycentric coordinates of the new corners in the plane of the chosen face.
    a, b, c = old[chosen, 0], old[chosen, 1], old[chosen, 2]
    e1, e2 = b - a, c - a
    d11, d12, d22 = (e1 * e1).sum(1), (e1 * e2).sum(1), (e2 * e2).sum(1)
    determinant = np.maximum(d11 * d22 - d12 * d12, 1e-18)[:, None]
    offset = corners - a[:, None]
    p1, p2 = np.einsum("mkd,md->mk", offset, e1), np.einsum("mkd,md->mk", offset, e2)
    v = (d22[:, None] * p1 - d12[:, None] * p2) / determinant
    w = (d11[:, None] * p2 - d12[:, None] * p1) / determinant
    # The map of a very thin face is useless far outside the face. There, use the texture at the face's centre.
    wild = (np.abs(v).max(axis=1) > 12) | (np.abs(w).max(axis=1) > 12)
    v[wild] = w[wild] = 1.0 / 3.0
    u0, u1, u2 = (mesh.uv[chosen, k][:, None] for k in range(3))
    return np.asarray(u0 + v[..., None] * (u1 - u0) + w[..., None] * (u2 - u0))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-14))


def _stl(corners: NDArray[np.float64]) -> bytes:
    """Return the binary STL of triangles (m, 3, 3)."""
    record = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    record["normal"] = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    record["corners"] = corners
    return b"\0" * 80 + np.uint32(len(record)).tobytes() + record.tobytes()


def _obj(corners: NDArray[np.float64], uv: NDArray[np.float64]) -> bytes:
    """Return the Wavefront OBJ of triangles (m, 3, 3) with uv (m, 3, 2).

    v is measured from the top in MuJoCo and from the bottom in OBJ, so it is converted.
    """
    vertices, index = np.unique(corners.reshape(-1, 3).round(7), axis=0, return_inverse=True)
    index = index.reshape(-1, 3) + 1
    out = io.StringIO()
    for x, y, z in vertices:
        out.write(f"v {x:.7g} {y:.7g} {z:.7g}\n")
    for s, t in uv.reshape(-1, 2):
        out.write(f"vt {s:.6g} {1.0 - t:.6g}\n")
    for face, (a, b, c) in enumerate(index):
        first = 3 * face + 1
        out.write(f"f {a}/{first} {b}/{first + 1} {c}/{first + 2}\n")
    return out.getvalue().encode()
