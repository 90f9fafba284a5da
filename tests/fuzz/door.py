"""What a door is, and the list of them."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.fuzz.choice import Choice

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
#: Door -> modules without which it cannot be tried on this machine.
DOORS: dict[str, tuple[str, ...]] = {
    "bundle": ("onnxruntime", "onnx"),
    "demonstration": ("h5py",),
    "recording": ("rosbags",),
    "configuration": ("yaml",),
    "dds": ("cyclonedds", "onnxruntime", "onnx"),
    "ros": ("rclpy", "m2distill_msgs", "onnxruntime", "onnx"),
}


class Door:
    """One way in. Made once a process; ``name`` is its key in :data:`DOORS`.

    seconds: processor time that one input may take; a process that needs ten times that by the wall clock hangs.
    mebibytes: memory that one input may take, beyond what the process has when it begins.
    refuses: whether our own errors may come out: a node that runs must not raise them either.
    """

    name = ""
    seconds = 10.0
    mebibytes = 1024
    refuses = True

    def seeds(self) -> list[bytes]:
        """Small inputs to begin with, whole ones first."""
        raise NotImplementedError

    def change(self, choice: Choice, data: bytes) -> bytes:
        """An input made of another; ``data`` need not be one that :meth:`seeds` made."""
        raise NotImplementedError

    def run(self, data: bytes) -> None:
        """Let ``data`` in and use what comes of it.

        Returns where it was accepted, and raises :class:`M2DistillError` where it was refused,
        :class:`tests.fuzz.invariant.Violation` where a command is not finite or outside its limits. Everything else
        that it raises is a finding.
        """
        raise NotImplementedError

    def committed(self) -> list[bytes]:
        """The seeds in ``tests/corpus``, each compressed by gzip."""
        return [gzip.decompress(file.read_bytes()) for file in sorted((CORPUS / self.name).glob("*.gz"))]


def missing(name: str) -> list[str]:
    """The modules that this machine lacks for a door."""
    return [module for module in DOORS[name] if importlib.util.find_spec(module) is None]


def make(name: str) -> Door:
    """The door called ``name``."""
    module = importlib.import_module(f"tests.fuzz.{name}_door")
    door: Door = module.make()
    return door


# --- folders as bytes ------------------------------------------------------------------------------------------------


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files as one input: a zip archive, the same for the same files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 1)
    return packed.getvalue()


def unpack(data: bytes) -> dict[str, bytes] | None:
    """The files of :func:`pack`; None for bytes that are no such archive, or one of more than 64 MiB."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > 1 << 26:
                return None
            return {entry.filename: archive.read(entry) for entry in entries}
    except Exception:  # of the harness's own format, which nobody but the harness reads
        return None


class Folder:
    """A folder in memory where the machine has one, emptied before each use."""

    def __init__(self, name: str) -> None:
        place = Path("/dev/shm")
        self._kept = tempfile.TemporaryDirectory(
            prefix="m2distill-fuzz-", dir=place if place.is_dir() else None, ignore_cleanup_errors=True
        )
        self.path = Path(self._kept.name) / name

    def fill(self, files: Mapping[str, bytes]) -> Path:
        """Write ``files``; plain names only, others are left out."""
        self.path.mkdir(exist_ok=True)
        for file in self.path.iterdir():
            file.unlink()
        for name, data in files.items():
            if "/" not in name and name not in ("", ".", "..") and "\0" not in name and len(name.encode()) < 200:
                (self.path / name).write_bytes(data)
        return self.path
