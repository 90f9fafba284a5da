"""A bundle: the folder that a robot loads. Written whole or not at all, opened verified or not at all.

::

    bundle.json         format version, contract, tasks in the order learned, network, provenance, sha256 of every file
    instruction.onnx    text embedding -> conditioning
    step.onnx           one control step
    instructions.npz    the known instructions and their embeddings
    views.npz           a training picture of each view, to set cameras up by; may be absent

The hashes protect against damage and half-copied folders, not against somebody who rewrites the manifest as well:
a bundle is as trustworthy as whoever may write to the folder it lies in. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import BundleError, ContractError, UnknownInstructionError, closest

#: Version of the folder's layout; a reader refuses every other one.
BUNDLE_VERSION = 1
MANIFEST = "bundle.json"
INSTRUCTIONS = "instructions.npz"
VIEWS = "views.npz"
INSTRUCTION_GRAPH = "instruction.onnx"
STEP_GRAPH = "step.onnx"
#: Whole numbers that ``network`` must hold: modes of the mixture, tokens a step, width of a token.
NETWORK_KEYS = ("modes", "tokens", "embed")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
#: What NumPy raises for an archive that is damaged, whichever the damage happens to hit.
_DAMAGED = (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error, MemoryError,
            SyntaxError, NotImplementedError, RuntimeError)  # fmt: skip
_COPY_AGAIN = "copy the bundle again or export it anew"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Everything was read once, when it was opened: later changes to the folder have no effect.

    path: where it was read from.
    identifier: the first 12 hexadecimal digits of the manifest's sha256; names this bundle in every status.
    tasks: ``{"name": ..., "instruction": ...}`` for every task learned, in order.
    network: sizes (``modes``, ``tokens``, ``embed``, ...); provenance: where it came from.
    instructions: the n known instructions; embeddings: (n, text size) float32, read-only.
    views: a training picture of each view, uint8 (H, W, 3) RGB; empty in a bundle without.
    """

    path: Path
    identifier: str
    contract: Contract
    tasks: tuple[Mapping[str, str], ...]
    network: Mapping[str, Any]
    provenance: Mapping[str, Any]
    instructions: tuple[str, ...]
    embeddings: NDArray[np.float32] = field(repr=False, compare=False)
    graphs: Mapping[str, bytes] = field(repr=False, compare=False)
    views: Mapping[str, NDArray[np.uint8]] = field(repr=False, compare=False)

    def view(self, name: str) -> NDArray[np.uint8]:
        """The training picture (H, W, 3) uint8 RGB of view ``name``; :class:`BundleError` where there is none."""
        if name not in self.views:
            raise BundleError(f"bundle '{self.path}' holds no training picture of '{name}'; export it anew")
        return self.views[name]

    def graph(self, name: str) -> bytes:
        """The verified bytes of ``step.onnx`` or ``instruction.onnx``; raises :class:`BundleError` for another name."""
        try:
            return self.graphs[name]
        except KeyError:
            raise BundleError(
                f"bundle '{self.path}' has no graph '{name}'; it has {sorted(self.graphs)}{closest(name, self.graphs)}"
            ) from None

    def embedding(self, instruction: str) -> NDArray[np.float32]:
        """Embedding (text size,) of ``instruction``; :class:`UnknownInstructionError` lists the known ones."""
        try:
            return self.embeddings[self.instructions.index(instruction)]
        except ValueError:
            known = "; ".join(f"'{k}'" for k in self.instructions)
            raise UnknownInstructionError(
                f"bundle {self.identifier} does not know the instruction '{instruction}'"
                f"{closest(instruction, self.instructions) or '.'} It knows: {known}."
            ) from None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks learned, in order."""
        return tuple(task["name"] for task in self.tasks)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(
    path: str | os.PathLike[str],
    *,
    contract: Contract,
    tasks: Sequence[Mapping[str, str]],
    network: Mapping[str, Any],
    provenance: Mapping[str, Any],
    instructions: Sequence[str],
    embeddings: NDArray[np.float32],
    graphs: Mapping[str, bytes],
    views: Mapping[str, NDArray[np.uint8]] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bundle to ``path``: under a hidden name beside it first, flushed to disk, then renamed into place.

    tasks: name and instruction of each task in the order learned; instructions: n texts; embeddings: (n, text size);
    graphs: file name -> bytes, with at least ``instruction.onnx`` and ``step.onnx``. views: a training picture of every
    view, of the contract's shapes.

    Raises :class:`BundleError` when an argument is not what :func:`open_bundle` would accept, or when ``path`` exists
    and ``overwrite`` is not set or something else than a bundle lies there.
    """
    path = Path(path)
    if path.name.startswith("."):
        raise BundleError(f"'{path}' starts with a dot, which marks unfinished bundles; choose another name")
    if path.exists() and not overwrite:
        raise BundleError(f"'{path}' exists already; choose another place or say that it may be overwritten")
    if path.exists() and not (
        path.is_dir() and (path / MANIFEST).is_file() and all(p.is_file() for p in path.iterdir())
    ):
        raise BundleError(f"'{path}' is no bundle and is not overwritten; choose another place or move it away")
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    packed = io.BytesIO()
    np.savez(packed, instructions=np.array(list(instructions), dtype=np.str_), embeddings=rows)
    files = {**dict(graphs), INSTRUCTIONS: packed.getvalue()}
    if views:
        pictures = io.BytesIO()
        np.savez_compressed(pictures, **{name: np.asarray(view) for name, view in views.items()})
        files[VIEWS] = pictures.getvalue()
    manifest: dict[str, Any] = {
        "format_version": BUNDLE_VERSION,
        "contract": contract.to_dict(),
        "tasks": [dict(task) for task in tasks],
        "network": dict(network),
        "provenance": dict(provenance),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    try:
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"the manifest of '{path}' cannot be written as JSON ({error}); "
            "tasks, network and provenance take texts, finite numbers, lists and objects only"
        ) from error
    # The reader's own checks, before anything touches the disk: what is written can be opened.
    _parse(path, text.encode(), files)

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    unfinished.mkdir()
    try:
        for name, data in {**files, MANIFEST: text.encode()}.items():
            _write_flushed(unfinished / name, data)
        _flush_folder(unfinished)
        if path.exists():
            # A folder cannot be renamed over one that is not empty: the old one steps aside, hidden, and goes last.
            aside = unfinished.with_name(unfinished.name + ".old")
            path.rename(aside)
            try:
                unfinished.rename(path)
            except OSError:
                aside.rename(path)
                raise
            shutil.rmtree(aside)
        else:
            unfinished.rename(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise BundleError(f"bundle '{path}' could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # there only if something failed above


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ---------------------------------------------------------------------------------------------------------


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify the bundle at ``path``.

    Checks the format version, that exactly the listed files are there, the sha256 of each, the contract, and the
    embeddings' shapes. Raises :class:`BundleError` with a sentence that names the file and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"there is no bundle at '{path}'; give the folder that 'm2distill export' wrote")
    if not path.is_dir():
        raise BundleError(f"'{path}' is not a folder; a bundle is a folder that holds '{MANIFEST}'")
    try:
        present = {entry.name: entry for entry in path.iterdir()}
        if MANIFEST not in present:
            raise BundleError(
                f"'{path}' holds no '{MANIFEST}', so it is not a bundle; give the folder that 'm2distill export' wrote"
            )
        manifest = _read_plain(present[MANIFEST])
        listed = _listed_files(path, manifest)
        for name in sorted(set(listed) - set(present)):
            raise BundleError(f"bundle '{path}' lacks the file '{name}' that its manifest lists; {_COPY_AGAIN}")
        for name in sorted(set(present) - set(listed) - {MANIFEST}):
            raise BundleError(
                f"bundle '{path}' holds a file '{name}' that its manifest does not list; remove it or {_COPY_AGAIN}"
            )
        files = {name: _read_plain(present[name]) for name in listed}
    except OSError as error:
        raise BundleError(f"bundle '{path}' could not be read: {error}; {_COPY_AGAIN}") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != listed[name]:
            raise BundleError(
                f"'{path / name}' was changed or damaged: its sha256 is not the one in '{MANIFEST}'; {_COPY_AGAIN}"
            )
    return _parse(path, manifest, files)


def _identifier(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:12]


def _read_plain(path: Path) -> bytes:
    # A link could change under us, and a pipe would block for ever.
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BundleError(f"'{path}' is not a plain file; a bundle holds plain files only, so {_COPY_AGAIN}")
    return path.read_bytes()


def _load_manifest(path: Path, manifest: bytes) -> dict[str, Any]:
    where = path / MANIFEST
    try:
        data = json.loads(manifest.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"'{where}' is not JSON ({error}); {_COPY_AGAIN}") from error
    if not isinstance(data, dict):
        raise BundleError(f"'{where}' holds a {type(data).__name__}; it must hold a JSON object; {_COPY_AGAIN}")
    version = data.get("format_version")
    if version != BUNDLE_VERSION or isinstance(version, bool):
        raise BundleError(
            f"'{where}' is of format version {version!r}; this software reads version {BUNDLE_VERSION}; "
            "export the bundle anew or install the software that wrote it"
        )
    kinds = {"contract": dict, "tasks": list, "network": dict, "provenance": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            got = type(data[key]).__name__ if key in data else "nothing"
            wanted = "an object" if kind is dict else "a list"
            raise BundleError(f"'{where}' has {got} at '{key}'; it must be {wanted}; {_COPY_AGAIN}")
    return data


def _listed_files(path: Path, manifest: bytes) -> dict[str, str]:
    listed = _load_manifest(path, manifest)["files"]
    for name, digest in listed.items():
        if not _PLAIN_NAME.match(name) or name == MANIFEST:
            raise BundleError(
                f"'{path / MANIFEST}' lists the file name {name!r}; plain names without folders are allowed"
            )
        if not isinstance(digest, str) or not _SHA256.match(digest):
            raise BundleError(
                f"'{path / MANIFEST}' gives {digest!r} as the sha256 of '{name}'; 64 hexadecimal digits are needed"
            )
    for name in (INSTRUCTION_GRAPH, STEP_GRAPH, INSTRUCTIONS):
        if name not in listed:
            raise BundleError(f"'{path / MANIFEST}' does not list '{name}', which every bundle needs; {_COPY_AGAIN}")
    return listed


def _parse(path: Path, manifest: bytes, files: Mapping[str, bytes]) -> Bundle:
    """Everything that is checked beyond the hashes; the writer checks it too, so that what it writes can be read."""
    where = path / MANIFEST
    data = _load_manifest(path, manifest)
    _listed_files(path, manifest)
    try:
        contract = Contract.from_dict(data["contract"])
    except ContractError as error:
        raise BundleError(f"'{where}': {error}; {_COPY_AGAIN}") from error
    if contract.text is None:
        raise BundleError(
            f"'{where}': the contract names no text encoder; a bundle needs one to understand instructions"
        )
    network = data["network"]
    for key in NETWORK_KEYS:
        value = network.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BundleError(f"'{where}' has {value!r} at 'network.{key}'; a whole number of at least 1 is needed")
    tokens = 1 + len(contract.proprioception) + len(contract.cameras)
    if network["tokens"] != tokens:
        raise BundleError(
            f"'{where}' says {network['tokens']} tokens a step; its contract makes {tokens} "
            "(one for the text, one a proprioception group, one a view)"
        )
    instructions, embeddings = _load_instructions(path / INSTRUCTIONS, files[INSTRUCTIONS], contract.text.size)
    tasks = data["tasks"]
    for i, task in enumerate(tasks):
        texts = [task.get(key) for key in ("name", "instruction")] if isinstance(task, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise BundleError(f"'{where}' has {task!r} at 'tasks[{i}]'; a name and an instruction are needed")
        if task["instruction"] not in instructions:
            raise BundleError(
                f"'{where}' lists the task '{task['name']}', whose instruction '{task['instruction']}' "
                f"is not in '{INSTRUCTIONS}'; {_COPY_AGAIN}"
            )
    return Bundle(
        path=path,
        identifier=_identifier(manifest),
        contract=contract,
        tasks=tuple(tasks),
        network=network,
        provenance=data["provenance"],
        instructions=instructions,
        embeddings=embeddings,
        graphs={name: content for name, content in files.items() if name.endswith(".onnx")},
        views=_load_views(path / VIEWS, files[VIEWS], contract) if VIEWS in files else {},
    )


def _load_views(where: Path, data: bytes, contract: Contract) -> dict[str, NDArray[np.uint8]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            found = {name: archive[name] for name in archive.files}
    except _DAMAGED as error:
        raise BundleError(f"'{where}' cannot be read ({error}); {_COPY_AGAIN}") from error
    wanted = {camera.name: camera.shape for camera in contract.cameras}
    got = {name: view.shape for name, view in found.items()}
    if got != wanted or any(view.dtype != np.uint8 for view in found.values()):
        raise BundleError(f"'{where}' holds views {got}; the contract wants uint8 {wanted}; {_COPY_AGAIN}")
    return found


def _load_instructions(where: Path, data: bytes, size: int) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            if set(archive.files) != {"instructions", "embeddings"}:
                raise ValueError(f"it holds {sorted(archive.files)}, not 'instructions' and 'embeddings'")
            texts, embeddings = archive["instructions"], archive["embeddings"]
    except _DAMAGED as error:
        raise BundleError(f"'{where}' cannot be read ({error}); {_COPY_AGAIN}") from error
    if texts.ndim != 1 or texts.dtype.kind != "U" or texts.size == 0:
        raise BundleError(
            f"'{where}': 'instructions' is {texts.dtype} {texts.shape}; a list of at least one text is needed"
        )
    instructions = tuple(str(text) for text in texts)
    if len(set(instructions)) != len(instructions) or not all(instructions):
        raise BundleError(f"'{where}': instructions must be different and not empty; got {list(instructions)}")
    if embeddings.dtype != np.float32 or embeddings.shape != (len(instructions), size):
        raise BundleError(
            f"'{where}': 'embeddings' is {embeddings.dtype} {embeddings.shape}; "
            f"the contract and {len(instructions)} instructions want float32 {(len(instructions), size)}"
        )
    if not np.all(np.isfinite(embeddings)):
        raise BundleError(f"'{where}': 'embeddings' holds values that are not finite; {_COPY_AGAIN}")
    embeddings = np.ascontiguousarray(embeddings)
    embeddings.flags.writeable = False
    return instructions, embeddings
