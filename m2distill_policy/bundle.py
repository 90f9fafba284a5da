"""A bundle: the folder that a robot loads. It is written completely or not at all, and verified when it is opened.

::

    bundle.json         format version, contract, tasks in the order learned, network, provenance, sha256 of every file
    bundle.json.sha256  sha256 of bundle.json
    bundle.json.sig     signature of bundle.json; may be absent
    instruction.onnx    text embedding -> conditioning
    step.onnx           one control step
    instructions.npz    the known instructions and their embeddings
    views.npz           a training image of each view, for adjusting cameras; may be absent

The hashes detect damage and incomplete copies. They do not detect an attacker who also rewrites the hashes; a signature
does, if the operator configures a public key. Nothing in a bundle is unpickled, and sizes are checked before anything
is read or unpacked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy import strict_json
from m2distill_policy.bundle_arrays import read_arrays
from m2distill_policy.bundle_files import (
    BESIDE,
    COPY_AGAIN,
    DIGEST,
    LARGEST,
    MANIFEST,
    SIGNATURE,
    BundleFolder,
    check_digest,
    is_plain_name,
)
from m2distill_policy.bundle_graphs import GraphError, check_graph
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import BundleError, ContractError, UnknownInstructionError, closest, shorten

#: Version of the bundle's layout; readers refuse bundles of all other versions.
BUNDLE_VERSION = 1
INSTRUCTIONS = "instructions.npz"
VIEWS = "views.npz"
INSTRUCTION_GRAPH = "instruction.onnx"
STEP_GRAPH = "step.onnx"
#: Integers that ``network`` must contain, with their largest values: number of modes of the mixture, number of tokens
#: of a step, width of a token.
NETWORK_KEYS = {"modes": 1024, "tokens": 256, "embed": 16_384}
#: Largest number of instructions of a bundle, and of characters of an instruction.
MOST_INSTRUCTIONS = 1000
LONGEST_INSTRUCTION = 1000
#: Largest size of ``instructions.npz`` and of ``views.npz``, unpacked, bytes.
LARGEST_ARRAYS = 256 * 2**20

#: Largest number of instructions that an error message lists.
_MOST_LISTED = 20
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. All files are read when it is opened; later changes to the folder have no effect.

    Attributes:
        path: Folder that the bundle was read from.
        identifier: First 12 hexadecimal digits of ``digest``. Every status message contains it.
        digest: sha256 of the manifest, 64 hexadecimal digits. The manifest contains the sha256 of every other file.
        contract: The contract.
        tasks: ``{"name": ..., "instruction": ...}`` for every task learned, in order.
        network: Sizes of the network (``modes``, ``tokens``, ``embed``, ...).
        provenance: How the bundle was made.
        instructions: The n known instructions.
        embeddings: Embeddings of the instructions, (n, text size) float32, read-only.
        graphs: Verified bytes of each ONNX graph by file name.
        views: A training image of each view, uint8 (H, W, 3) RGB; may be empty.
    """

    path: Path
    identifier: str
    digest: str
    contract: Contract
    tasks: tuple[Mapping[str, str], ...]
    network: Mapping[str, Any]
    provenance: Mapping[str, Any]
    instructions: tuple[str, ...]
    embeddings: NDArray[np.float32] = field(repr=False, compare=False)
    graphs: Mapping[str, bytes] = field(repr=False, compare=False)
    views: Mapping[str, NDArray[np.uint8]] = field(repr=False, compare=False)

    def view(self, name: str) -> NDArray[np.uint8]:
        """Return the training image (H, W, 3) uint8 RGB of a view; raise :class:`BundleError` if there is none."""
        if name not in self.views:
            raise BundleError(f"bundle '{self.path}' has no training image of '{name}'; export it again")
        return self.views[name]

    def graph(self, name: str) -> bytes:
        """Return the bytes of ``step.onnx`` or ``instruction.onnx``; raise :class:`BundleError` for other names."""
        try:
            return self.graphs[name]
        except KeyError:
            raise BundleError(
                f"bundle '{self.path}' has no graph '{name}'; it has {sorted(self.graphs)}{closest(name, self.graphs)}"
            ) from None

    def embedding(self, instruction: str) -> NDArray[np.float32]:
        """Return the embedding (text size,) of ``instruction``.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction. The message lists the known ones.
        """
        try:
            return self.embeddings[self.instructions.index(instruction)]
        except ValueError:
            listed = self.instructions[:_MOST_LISTED]
            more = len(self.instructions) - len(listed)
            known = "; ".join(f"'{shorten(text)}'" for text in listed) + (f"; and {more} more" if more else "")
            raise UnknownInstructionError(
                f"bundle {self.identifier} does not know the instruction '{shorten(instruction)}'"
                f"{closest(instruction, listed) or '.'} It knows: {known}."
            ) from None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks learned, in order."""
        return tuple(task["name"] for task in self.tasks)


# --- reading ---------------------------------------------------------------------------------------------------------


def open_bundle(path: str | os.PathLike[str], *, public_key: PublicKey | None = None) -> Bundle:
    """Read and verify the bundle at ``path``.

    Checks the file sizes, the manifest's digest (before the manifest is used), the format version, that exactly the
    listed files exist, their sha256, the contract, the embeddings' shapes, and that the graphs are self-contained.

    Args:
        path: Folder of the bundle.
        public_key: Key with which the bundle must be signed; None does not check the signature.

    Raises:
        BundleError: The bundle is not valid. The message names the file and what to do.
    """
    path = Path(path)
    with BundleFolder(path) as folder:
        if MANIFEST not in folder.names:
            raise BundleError(
                f"'{path}' holds no '{MANIFEST}', so it is not a bundle; give the folder that 'm2distill export' wrote"
            )
        manifest = folder.read(MANIFEST)
        if DIGEST not in folder.names:
            raise BundleError(
                f"bundle '{path}' lacks '{DIGEST}', the sha256 of its manifest, so damage cannot be detected; "
                "copy it too, or export the bundle again with this version"
            )
        check_digest(path, manifest, folder.read(DIGEST))
        if public_key is not None:
            public_key.verify(path, manifest, folder.read(SIGNATURE) if SIGNATURE in folder.names else None)
        listed = _listed_files(path, _load_manifest(path, manifest))
        for name in sorted(set(listed) - folder.names):
            raise BundleError(f"bundle '{path}' lacks the file '{name}' that its manifest lists; {COPY_AGAIN}")
        for name in sorted(folder.names - set(listed) - BESIDE):
            raise BundleError(
                f"bundle '{path}' holds a file {shorten(ascii(name))} that its manifest does not list; "
                f"remove it or {COPY_AGAIN}"
            )
        files = {}
        for name, digest in listed.items():
            files[name] = folder.read(name)
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise BundleError(
                    f"'{path / name}' was changed or damaged: its sha256 is not the one in '{MANIFEST}'; {COPY_AGAIN}"
                )
    return parse_bundle(path, manifest, files)


def _load_manifest(path: Path, manifest: bytes) -> dict[str, Any]:
    where = path / MANIFEST
    try:
        data = strict_json.parse(manifest, longest=LARGEST[MANIFEST])
    except strict_json.JsonError as error:
        raise BundleError(f"'{where}' is not JSON ({error}); {COPY_AGAIN}") from error
    if not isinstance(data, dict):
        raise BundleError(f"'{where}' holds a {type(data).__name__}; it must hold a JSON object; {COPY_AGAIN}")
    version = data.get("format_version")
    if version != BUNDLE_VERSION or not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(
            f"'{where}' is of format version {_show(version)}; this software reads version {BUNDLE_VERSION}; "
            "export the bundle again or install the software that wrote it"
        )
    kinds = {"contract": dict, "tasks": list, "network": dict, "provenance": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            got = type(data[key]).__name__ if key in data else "nothing"
            wanted = "an object" if kind is dict else "a list"
            raise BundleError(f"'{where}' has {got} at '{key}'; it must be {wanted}; {COPY_AGAIN}")
    return data


def _show(value: object) -> str:
    return shorten(repr(value))


def _listed_files(path: Path, data: Mapping[str, Any]) -> dict[str, str]:
    listed: dict[str, str] = data["files"]
    for name, digest in listed.items():
        if not is_plain_name(name) or name in BESIDE:
            raise BundleError(
                f"'{path / MANIFEST}' lists the file name {_show(name)}; plain names without folders are allowed"
            )
        if not isinstance(digest, str) or not _SHA256.match(digest):
            raise BundleError(
                f"'{path / MANIFEST}' gives {_show(digest)} as the sha256 of '{name}'; 64 hexadecimal digits are needed"
            )
    for name in (INSTRUCTION_GRAPH, STEP_GRAPH, INSTRUCTIONS):
        if name not in listed:
            raise BundleError(f"'{path / MANIFEST}' does not list '{name}', which every bundle needs; {COPY_AGAIN}")
    return listed


def parse_bundle(path: Path, manifest: bytes, files: Mapping[str, bytes]) -> Bundle:
    """Check everything except the hashes, and return the bundle. The writer calls it too, before it writes."""
    where = path / MANIFEST
    data = _load_manifest(path, manifest)
    _listed_files(path, data)
    try:
        contract = Contract.from_dict(data["contract"])
    except ContractError as error:
        raise BundleError(f"'{where}': {error}; {COPY_AGAIN}") from error
    if contract.text is None:
        raise BundleError(f"'{where}': the contract has no text encoder; a bundle needs one for its instructions")
    network = data["network"]
    for key, most in NETWORK_KEYS.items():
        value = network.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise BundleError(
                f"'{where}' has {_show(value)} at 'network.{key}'; a whole number from 1 to {most} is needed"
            )
    tokens = 1 + len(contract.proprioception) + len(contract.cameras)
    if network["tokens"] != tokens:
        raise BundleError(
            f"'{where}' says {network['tokens']} tokens a step; its contract makes {tokens} "
            "(one for the text, one a proprioception group, one a view)"
        )
    instructions, embeddings = _load_instructions(path / INSTRUCTIONS, files[INSTRUCTIONS], contract.text.size)
    tasks = data["tasks"]
    if len(tasks) > MOST_INSTRUCTIONS:
        raise BundleError(f"'{where}' lists {len(tasks)} tasks; at most {MOST_INSTRUCTIONS} are allowed")
    for i, task in enumerate(tasks):
        texts = [task.get(key) for key in ("name", "instruction")] if isinstance(task, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise BundleError(f"'{where}' has {_show(task)} at 'tasks[{i}]'; a name and an instruction are needed")
        for text in texts:
            _check_text(where, f"tasks[{i}]", str(text))
        if task["instruction"] not in instructions:
            raise BundleError(
                f"'{where}' lists the task '{task['name']}', whose instruction '{task['instruction']}' "
                f"is not in '{INSTRUCTIONS}'; {COPY_AGAIN}"
            )
    for name, content in files.items():
        if name.endswith(".onnx"):
            try:
                check_graph(content)
            except GraphError as error:
                raise BundleError(f"'{path / name}' cannot be loaded: {error}; export the bundle again") from error
    digest = hashlib.sha256(manifest).hexdigest()
    return Bundle(
        path=path,
        identifier=digest[:12],
        digest=digest,
        contract=contract,
        tasks=tuple(tasks),
        network=network,
        provenance=data["provenance"],
        instructions=instructions,
        embeddings=embeddings,
        graphs={name: content for name, content in files.items() if name.endswith(".onnx")},
        views=_load_views(path / VIEWS, files[VIEWS], contract) if VIEWS in files else {},
    )


def _check_text(where: Path, place: str, text: str) -> None:
    """Check that a text is short, printable and one line, because status messages contain it."""
    if len(text) > LONGEST_INSTRUCTION or not text.isprintable():
        raise BundleError(
            f"'{where}' has {shorten(ascii(text))} at '{place}'; a text of one line of at most {LONGEST_INSTRUCTION} "
            "printable characters is needed"
        )


def _unpack(where: Path, data: bytes) -> dict[str, NDArray[Any]]:
    try:
        return read_arrays(data, LARGEST_ARRAYS)
    except ValueError as error:
        raise BundleError(f"'{where}' cannot be read ({shorten(str(error), 500)}); {COPY_AGAIN}") from error


def _load_views(where: Path, data: bytes, contract: Contract) -> dict[str, NDArray[np.uint8]]:
    found = _unpack(where, data)
    wanted = {camera.name: camera.shape for camera in contract.cameras}
    got = {name: view.shape for name, view in found.items()}
    if got != wanted or any(view.dtype != np.uint8 for view in found.values()):
        raise BundleError(f"'{where}' holds views {got}; the contract needs uint8 {wanted}; {COPY_AGAIN}")
    return found


def _load_instructions(where: Path, data: bytes, size: int) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    found = _unpack(where, data)
    if set(found) != {"instructions", "embeddings"}:
        raise BundleError(
            f"'{where}' cannot be read (it holds {shorten(str(sorted(found)))}, not 'instructions' and 'embeddings'); "
            f"{COPY_AGAIN}"
        )
    texts, embeddings = found["instructions"], found["embeddings"]
    if texts.ndim != 1 or texts.dtype.kind != "U" or not 1 <= texts.size <= MOST_INSTRUCTIONS:
        raise BundleError(
            f"'{where}': 'instructions' is {texts.dtype} {texts.shape}; a list of at least one text is needed and at "
            f"most {MOST_INSTRUCTIONS} are allowed"
        )
    instructions = tuple(str(text) for text in texts)
    for text in instructions:
        _check_text(where, "instructions", text)
    if len(set(instructions)) != len(instructions) or not all(instructions):
        raise BundleError(
            f"'{where}': instructions must be different and not empty; got {shorten(str(list(instructions)))}"
        )
    if embeddings.dtype != np.float32 or embeddings.shape != (len(instructions), size):
        raise BundleError(
            f"'{where}': 'embeddings' is {embeddings.dtype} {embeddings.shape}; "
            f"the contract and {len(instructions)} instructions want float32 {(len(instructions), size)}"
        )
    if not np.all(np.isfinite(embeddings)):
        raise BundleError(f"'{where}': 'embeddings' holds values that are not finite; {COPY_AGAIN}")
    embeddings = np.ascontiguousarray(embeddings)
    embeddings.flags.writeable = False
    return instructions, embeddings
