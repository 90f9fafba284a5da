"""Write a bundle, completely or not at all, and sign a bundle; see :mod:`m2distill_policy.bundle`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.bundle import BUNDLE_VERSION, INSTRUCTIONS, VIEWS, Bundle, open_bundle, parse_bundle
from m2distill_policy.bundle_files import DIGEST, MANIFEST, BundleFolder, check_sizes, digest_line
from m2distill_policy.bundle_signature import sign_manifest
from m2distill_policy.contract import Contract
from m2distill_policy.errors import BundleError


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
    """Write a bundle to ``path``: under a temporary hidden name first, flushed to disk, then renamed.

    Args:
        path: Folder of the bundle.
        contract: The contract, with its text encoder.
        tasks: Name and instruction of each task, in the order learned.
        network: Sizes of the network, see :class:`Bundle`.
        provenance: How the bundle was made.
        instructions: The n known instructions.
        embeddings: Embeddings of the instructions, (n, text size).
        graphs: File name -> bytes, with at least ``instruction.onnx`` and ``step.onnx``.
        views: A training image of every view, uint8 RGB in the contract's shape.
        overwrite: Whether an existing bundle may be replaced.

    Raises:
        BundleError: An argument would not be accepted by :func:`open_bundle`; ``path`` exists and ``overwrite`` is not
            set; or something other than a bundle is there.
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
        images = io.BytesIO()
        np.savez_compressed(images, **{name: np.asarray(view) for name, view in views.items()})
        files[VIEWS] = images.getvalue()
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
    # Apply the reader's checks before anything is written, so that the written bundle can be opened.
    written = {**files, MANIFEST: text.encode(), DIGEST: digest_line(text.encode())}
    check_sizes(path, {name: len(data) for name, data in written.items()})
    parse_bundle(path, written[MANIFEST], files)

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    unfinished.mkdir()
    try:
        for name, data in written.items():
            _write_flushed(unfinished / name, data)
        _flush_folder(unfinished)
        if path.exists():
            # A rename cannot replace a folder that is not empty, so the old folder is renamed first and removed last.
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
        shutil.rmtree(unfinished, ignore_errors=True)  # exists only if something failed above


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


# --- signing ---------------------------------------------------------------------------------------------------------


def sign_bundle(path: str | os.PathLike[str], key: str | os.PathLike[str]) -> Bundle:
    """Open and verify the bundle at ``path``, sign it, and return it.

    Args:
        path: Folder of the bundle.
        key: PEM file of an Ed25519 private key.

    Raises:
        BundleError: The bundle is damaged, or its signature cannot be written.
        ConfigError: The key cannot be used.
    """
    bundle = open_bundle(path)
    with BundleFolder(bundle.path) as folder:
        manifest = folder.read(MANIFEST)
    if hashlib.sha256(manifest).hexdigest() != bundle.digest:
        raise BundleError(f"bundle '{path}' changed while it was read; wait until it is copied, then sign it again")
    sign_manifest(bundle.path, manifest, key)
    return bundle
