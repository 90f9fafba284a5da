"""``sensor_msgs/msg/Image`` with its own serialiser.

The generic Python serialiser packs an image number by number, which takes tens of milliseconds for a VGA image. Here
the pixels are copied as one block, and a received image is a view of the buffer, without a copy. The bytes are the
same.

The encapsulation is CDR version 1, which ROS 2 writes. For a type without 8-byte numbers, version 2 differs only in the
first four bytes, so both versions are read.
"""
# No ``from __future__ import annotations`` here: the type description is made from the annotations themselves.

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import byte, sequence, uint32
from numpy.typing import NDArray

from m2distill_policy.dds.types import Header, Time
from m2distill_policy.errors import TransportError
from m2distill_policy.images.encodings import raw_to_rgb

if TYPE_CHECKING:
    Bytes = bytes | bytearray | memoryview | Sequence[int] | NDArray[np.uint8]
else:
    Bytes = sequence[byte]

#: Second byte of the encapsulation header -> byte order, for CDR versions 1 and 2 of a final type.
_ORDER = {0x00: ">", 0x01: "<", 0x06: ">", 0x07: "<"}
#: Bytes before the payload, from which alignment counts.
_ENCAPSULATION = 4


@dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    """An image: ``data`` has ``height`` rows of ``step`` bytes each, the top row first.

    ``data`` may be bytes, a contiguous uint8 array of any shape, or a sequence of integers. In a received message it is
    a read-only uint8 array (n,).
    """

    header: Header = field(default_factory=Header)
    height: uint32 = 0
    width: uint32 = 0
    encoding: str = "rgb8"
    is_bigendian: byte = 0
    step: uint32 = 0
    data: Bytes = field(default_factory=list)

    @staticmethod
    def from_rgb(image: NDArray[np.uint8], stamp: Time, frame_id: str) -> "Image":
        """Make an ``rgb8`` message of an upright image (H, W, 3). The pixels are copied only when it is sent."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise TransportError(f"an image to send is {image.dtype} {image.shape}; it must be uint8 (H, W, 3)")
        height, width, _ = image.shape
        return Image(Header(stamp, frame_id), height, width, "rgb8", 0, width * 3, np.ascontiguousarray(image))

    def to_rgb(self) -> NDArray[np.uint8]:
        """Return the image as upright uint8 (H, W, 3) RGB; a view of the message if the encoding allows it.

        Raises:
            ObservationError: See :func:`m2distill_policy.images.encodings.raw_to_rgb`.
        """
        return raw_to_rgb(self.encoding, self.height, self.width, self.step, _as_bytes(self.data))

    def serialize(self, buffer: Any = None, endianness: Any = None, use_version_2: bool | None = None) -> bytes:
        """Return the message as CDR with its encapsulation header. The arguments are those of the generic serialiser.

        With a buffer, or another byte order, the generic serialiser is used.
        """
        if buffer is not None or endianness is not None:
            return super().serialize(buffer=buffer, endianness=endianness, use_version_2=use_version_2)
        order = "<" if sys.byteorder == "little" else ">"
        data = _as_bytes(self.data)
        head = bytearray((0, (1 if order == "<" else 0) | (0x06 if use_version_2 else 0x00), 0, 0))
        head += struct.pack(f"{order}iI", self.header.stamp.sec, self.header.stamp.nanosec)
        _put_string(head, order, self.header.frame_id)
        _align(head)
        head += struct.pack(f"{order}II", self.height, self.width)
        _put_string(head, order, self.encoding)
        head.append(self.is_bigendian)
        _align(head)
        head += struct.pack(f"{order}II", self.step, data.size)
        return b"".join((head, data.data))

    @classmethod
    def deserialize(cls, data: Any, has_header: bool = True, use_version_2: bool | None = None) -> "Image":
        """Read an image in either byte order. ``data`` of the result is a view of the buffer.

        Raises:
            TransportError: The buffer ends too early, or is not CDR.
        """
        if not has_header or not isinstance(data, bytes | bytearray | memoryview):
            # The generic code calls this method without a header if an Image is part of another message.
            return super().deserialize(data, has_header=has_header, use_version_2=use_version_2)
        if len(data) < _ENCAPSULATION or data[0] != 0 or data[1] not in _ORDER:
            start = bytes(data[:_ENCAPSULATION]).hex() or "nothing"
            raise TransportError(f"image message starts with {start}, which is not CDR")
        reader = _Reader(data, _ORDER[data[1]])
        stamp = Time(reader.number("i"), reader.number("I"))
        frame_id = reader.string("frame_id")
        height, width = reader.number("I"), reader.number("I")
        encoding = reader.string("encoding")
        is_bigendian = reader.number("B")
        step = reader.number("I")
        pixels = reader.block("data")
        return cls(Header(stamp, frame_id), height, width, encoding, is_bigendian, step, pixels)


def _as_bytes(data: Any) -> NDArray[np.uint8]:
    """Return ``data`` as a contiguous uint8 array (n,), without a copy if possible."""
    if isinstance(data, bytes | bytearray | memoryview):
        return np.frombuffer(data, dtype=np.uint8)
    pixels = np.asarray(data) if len(data) else np.empty(0, dtype=np.uint8)
    if pixels.dtype != np.uint8:
        if np.any((pixels < 0) | (pixels > 255)) or pixels.dtype.kind not in "iu":
            raise TransportError(f"image data of dtype {pixels.dtype} are not bytes; use uint8")
        pixels = pixels.astype(np.uint8)
    return np.ascontiguousarray(pixels).reshape(-1)


def _align(head: bytearray) -> None:
    """Pad to a multiple of 4. The encapsulation header has 4 bytes, so it does not change the alignment."""
    head += bytes(-len(head) % 4)


def _put_string(head: bytearray, order: str, text: str) -> None:
    _align(head)
    encoded = text.encode("utf-8")
    head += struct.pack(f"{order}I", len(encoded) + 1)
    head += encoded
    head.append(0)


class _Reader:
    """Reads a CDR buffer from start to end. If it is too short, the :class:`TransportError` says where."""

    def __init__(self, data: bytes | bytearray | memoryview, order: str) -> None:
        self._data = memoryview(data)
        self._order = order
        self._at = _ENCAPSULATION

    def number(self, code: str) -> int:
        """Read one integer of ``struct`` code ``code``, aligned to its size."""
        size = struct.calcsize(f"={code}")
        self._at += -self._at % size
        start = self._take(size, "a number")
        return int(struct.unpack_from(f"{self._order}{code}", self._data, start)[0])

    def string(self, what: str) -> str:
        """Read one string; its length in the buffer includes the closing zero."""
        length = self.number("I")
        start = self._take(length, what)
        raw = bytes(self._data[start : start + length])
        if not raw.endswith(b"\0"):
            raise TransportError(f"image message has a {what} without its closing zero")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TransportError(f"image message has a {what} that is not UTF-8") from error

    def block(self, what: str) -> NDArray[np.uint8]:
        """Read a sequence of bytes as a view of the buffer."""
        length = self.number("I")
        start = self._take(length, what)
        return np.frombuffer(self._data, dtype=np.uint8, count=length, offset=start)

    def _take(self, size: int, what: str) -> int:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise TransportError(
                f"image message is cut short: {what} should end at byte {self._at} of {len(self._data)}"
            )
        return start
