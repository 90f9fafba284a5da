"""Read an ``.npz`` archive, checking sizes before anything is unpacked. Nothing is unpickled."""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest number of arrays in an archive, and largest size of an entry of its table of contents in bytes.
MOST_ARRAYS = 64
_LARGEST_ENTRY = 512
#: The record at the end of an archive: its first four bytes, and its length in bytes without a comment.
_END, _END_SIZE = b"PK\x05\x06", 22
#: Format of the header that NumPy writes for an array of numbers or texts.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?)([a-zA-Z])([0-9]{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18},? ?){0,32})\), \} *\n\Z"
)
_LARGEST_HEADER = 4096
#: NumPy's codes of the allowed types: booleans, integers, floats, bytes and texts. All others would need unpickling or
#: an interpretation.
_KINDS = b"biufSU"
#: Errors that zipfile raises for damaged archives.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, NotImplementedError, RuntimeError),
    *(TypeError, AttributeError, MemoryError, OverflowError, IndexError, struct.error),
)


def read_arrays(data: bytes, most: int) -> dict[str, NDArray[Any]]:
    """Unpack an ``.npz`` archive.

    Args:
        data: Content of the archive.
        most: Largest size of all arrays together, unpacked, bytes.

    Returns:
        Name -> array of numbers or texts.

    Raises:
        ValueError: The archive is not valid. The message says why, without naming the archive.
    """
    try:
        return _read(data, most)
    except _DAMAGED as error:
        raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error


def _read(data: bytes, most: int) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    end = data[-_END_SIZE:]
    # Checked first, because zipfile reads the whole table of contents, however long it is.
    if end[:4] != _END or int.from_bytes(end[12:16], "little") > MOST_ARRAYS * _LARGEST_ENTRY:
        raise ValueError(f"it is not an .npz archive of at most {MOST_ARRAYS} arrays")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MOST_ARRAYS:
            raise ValueError(f"it holds {len(members)} arrays; at most {MOST_ARRAYS} are allowed")
        total = sum(member.file_size for member in members)
        if total > most:
            raise ValueError(f"its arrays are {total} bytes once unpacked; at most {most} are allowed")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in found:
                raise ValueError(f"it holds {member.filename!r}; every member must be a '.npy' with its own name")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise ValueError(f"'{member.filename}' is encrypted or compressed otherwise than by deflate")
            # zipfile reads at most member.file_size bytes, which is part of the total above, even if more follow.
            found[name] = _array(member.filename, archive.read(member))
    return found


def _array(name: str, data: bytes) -> NDArray[Any]:
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html: magic, version, length, header, array.
    length = {b"\x01\x00": 2, b"\x02\x00": 4}.get(data[6:8], 0)
    start = 8 + length + int.from_bytes(data[8 : 8 + length], "little")
    if data[:6] != b"\x93NUMPY" or not length or start > min(len(data), _LARGEST_HEADER):
        raise ValueError(f"'{name}' is not an array of .npy version 1.0 or 2.0")
    header = _HEADER.match(data[8 + length : start])
    if header is None or header[2] not in _KINDS:
        raise ValueError(f"Object arrays cannot be loaded, numbers and texts can: see the header of '{name}'")
    try:
        dtype = np.dtype((header[1] + header[2] + header[3]).decode())
    except TypeError as error:
        raise ValueError(f"'{name}' has an unknown type of numbers ({error})") from error
    shape = tuple(int(axis) for axis in header[5].replace(b",", b" ").split())
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"'{name}' says {dtype} {shape} and has {len(data) - start} bytes")
    # NumPy notices a number beyond Unicode only when it converts it to text, and then raises a SystemError.
    if dtype.kind == "U" and (np.frombuffer(data[start:], f"{header[1].decode()}u4") > sys.maxunicode).any():
        raise ValueError(f"'{name}' holds numbers that are not characters")
    array = np.frombuffer(data[start:], dtype) if len(data) > start else np.zeros(shape, dtype)
    return array.reshape(shape, order="F" if header[4] == b"True" else "C").copy()
