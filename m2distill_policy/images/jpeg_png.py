"""Decode JPEG and PNG data with OpenCV, and refuse damaged data that OpenCV decodes without an error.

OpenCV's JPEG decoder fills missing parts with grey and prints a line. It also decodes any size that a header announces.
Here the header is read first, and data are refused unless they are one complete image.

JPEG has no checksum. These faults are found: a missing end, wrong or missing markers, long runs of zeros, and data that
end before the last block. A lost packet causes the last of these faults. In a test, it was found for 386 of 400 lost
pieces of 188 to 8192 bytes. Changed bytes after which there are at least as many blocks as before are not found. Images
whose missing blocks would not be grey (progressive, several scans) are refused. PNG has a checksum for each chunk.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError

#: Largest number of pixels that is decoded; 8K video, 7680 x 4320, has 33.2 million.
MAX_PIXELS = 2**25
#: Largest number of pixels of the longer side.
LONGEST_SIDE = 2**14

_PNG = b"\x89PNG\r\n\x1a\n"
#: PNG colour type -> channels. An image with a palette counts as colour.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_EOI, _SOS, _DRI, _DHT = 0xD9, 0xDA, 0xDD, 0xC4
_RESTARTS = range(0xD0, 0xD8)
#: Baseline and extended JPEG with Huffman codes, which cameras and image_transport send.
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
#: Grey value of a block without data: all coefficients are 0.
_GREY = 128
#: Tolerance of a grey pixel, because colours of a neighbouring block may mix in.
_NEARLY = 2
#: A run of zeros that coded data do not contain, unless the code for the end of a block is all zeros.
_ZEROS = bytes(64)
#: Bytes inserted where the data should end. Only a decoder that lacks data reads them. None of them is 0xFF, and no
#: byte comes twice in a row.
_FILLER = bytes((37 * i + 90) % 251 for i in range(64))


@dataclass(frozen=True)
class ImageHeader:
    """What the header of JPEG or PNG data says. channels: 1 grey, 2 grey with alpha, 3 colour, 4 colour with alpha."""

    codec: Literal["jpeg", "png"]
    height: int
    width: int
    channels: int
    bits: int
    jpeg: _Jpeg | None = field(default=None, repr=False)


@dataclass
class _Jpeg:
    """Structure of JPEG data. Positions are bytes from the start.

    Attributes:
        size_at: Position of height and width in the frame header.
        mcu: Blocks (rows, columns) that are coded together.
        interval: Number of such groups of blocks between two restart markers; 0 without restart markers.
        ends: Positions of the markers at which coded data end.
        zeros_end_blocks: Whether a run of zeros may be blocks of one colour.
    """

    sof: int = 0
    bits: int = 0
    height: int = 0
    width: int = 0
    channels: int = 0
    size_at: int = 0
    mcu: tuple[int, int] = (1, 1)
    interval: int = 0
    zeros_end_blocks: bool = False
    ends: tuple[int, ...] = ()


def check_size(height: int, width: int) -> None:
    """Raise :class:`ObservationError` for an image beyond :data:`MAX_PIXELS` or :data:`LONGEST_SIDE`."""
    if height * width > MAX_PIXELS or max(height, width) > LONGEST_SIDE:
        raise ObservationError(
            f"image is {width} x {height} pixels; at most {MAX_PIXELS} pixels and {LONGEST_SIDE} a side are decoded"
        )


def read_header(data: NDArray[np.uint8]) -> ImageHeader:
    """Read the header of ``data`` (n,), JPEG or PNG, and check their structure to the end, without decoding.

    Returns:
        What the header announces.

    Raises:
        ObservationError: The data are neither JPEG nor PNG, the data are not complete, or the image is too large.
    """
    raw = data.tobytes()
    if raw.startswith(b"\xff\xd8"):
        jpeg = _structure(raw)
        return ImageHeader("jpeg", jpeg.height, jpeg.width, jpeg.channels, 8, jpeg)
    if raw.startswith(_PNG):
        return _read_png(raw)
    raise ObservationError(f"compressed image is neither JPEG nor PNG ({len(raw)} bytes, {raw[:8].hex(' ') or 'none'})")


def decode(data: NDArray[np.uint8], header: ImageHeader, *, grey: bool) -> NDArray[np.uint8]:
    """Decode data that :func:`read_header` accepted.

    Returns:
        uint8 (H, W) if ``grey``, else (H, W, 3) in the order blue, green, red.

    Raises:
        ObservationError: The data are damaged.
    """
    name = header.codec.upper()
    # The image is decoded as it is stored, because cameras do not rotate their images by EXIF.
    decoded = _decoded(data, (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION, name)
    if decoded.shape[:2] != (header.height, header.width):
        raise _damaged(name, f"its header has {header.width} x {header.height} pixels, but it decodes to another size")
    if header.jpeg is not None and _may_lack_data(decoded, header.jpeg) and _reads_filler(data, header.jpeg):
        raise _damaged(name, "the data end before the image does")
    return decoded


def _decoded(data: NDArray[np.uint8], flags: int, name: str) -> NDArray[np.uint8]:
    try:
        decoded = cv2.imdecode(data, flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise _damaged(name, "it cannot be decoded")
    return np.asarray(decoded, dtype=np.uint8)


def _damaged(codec: str, what: str) -> ObservationError:
    return ObservationError(
        f"compressed image is damaged {codec} data: {what}; check whether packets are lost (network, USB)"
    )


# --- PNG --------------------------------------------------------------------------------------------------------


def _read_png(raw: bytes) -> ImageHeader:
    header: ImageHeader | None = None
    position, kind = len(_PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(raw[position : position + 4], "big")
        kind = raw[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(raw):
            raise _damaged("PNG", f"the chunk at byte {position} is cut off")
        if zlib.crc32(raw[position + 4 : end]) != int.from_bytes(raw[end : end + 4], "big"):
            raise _damaged("PNG", f"the chunk at byte {position} has a wrong checksum")
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise _damaged("PNG", "its header is missing")
            width, height = (int.from_bytes(raw[position + 8 + i : position + 12 + i], "big") for i in (0, 4))
            bits, colour = raw[position + 16], raw[position + 17]
            if colour not in _PNG_CHANNELS or not height or not width:
                raise _damaged("PNG", f"its header has {width} x {height} pixels of type {colour}")
            check_size(height, width)
            header = ImageHeader("png", height, width, _PNG_CHANNELS[colour], bits)
        position = end + 4
    assert header is not None
    return header


# --- JPEG -------------------------------------------------------------------------------------------------------


def _structure(raw: bytes) -> _Jpeg:
    """Read all segments and coded data to the end of the image; raise if the structure is wrong."""
    jpeg, position = _Jpeg(), 2
    # Positions of each 0xFF that is not coded data. A 0xFF that is coded data is followed by a 0.
    array = np.frombuffer(raw, dtype=np.uint8)
    marks = np.flatnonzero((array[:-1] == 0xFF) & (array[1:] != 0))
    while True:
        if position + 1 >= len(raw):
            raise _damaged("JPEG", "its end is missing")
        if raw[position] != 0xFF:
            raise _damaged("JPEG", f"there is no marker at byte {position}")
        marker = raw[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _EOI:
            break
        length = int.from_bytes(raw[position + 2 : position + 4], "big")
        end = position + 2 + length
        if marker < 0xC0 or marker in _RESTARTS or length < 2 or end > len(raw):
            raise _damaged("JPEG", f"the segment at byte {position} is cut off or unknown")
        if marker in _FRAMES:
            _read_frame(raw, position, length, marker, jpeg)
        elif marker == _DRI:
            jpeg.interval = int.from_bytes(raw[position + 4 : position + 6], "big")
        elif marker == _DHT:
            _read_codes(raw[position + 4 : end], jpeg)
        elif marker == _SOS:
            if not jpeg.sof or jpeg.ends:
                raise _damaged("JPEG", "its header is missing" if not jpeg.sof else "it has two scans")
            if length != 6 + 2 * jpeg.channels or raw[position + 4] != jpeg.channels:
                raise ObservationError("JPEG has a scan for each colour; one scan with all colours is needed")
            end = _skip_coded(raw, marks, end, jpeg)
        position = end
    if not jpeg.ends:
        raise _damaged("JPEG", "it has no data")
    return jpeg


def _read_frame(raw: bytes, position: int, length: int, marker: int, jpeg: _Jpeg) -> None:
    if jpeg.sof:
        raise _damaged("JPEG", "it has two headers")
    if marker not in _SEQUENTIAL:
        kind = "progressive" if marker == 0xC2 else f"of kind SOF{marker - 0xC0}"
        raise ObservationError(f"JPEG is {kind}, which cannot be checked for missing data; send baseline JPEG")
    fields = raw[position + 4 : position + 2 + length]
    if len(fields) < 6 or len(fields) != 6 + 3 * fields[5]:
        raise _damaged("JPEG", "its header is of a wrong length")
    jpeg.sof, jpeg.bits, jpeg.channels, jpeg.size_at = marker, fields[0], fields[5], position + 5
    jpeg.height, jpeg.width = int.from_bytes(fields[1:3], "big"), int.from_bytes(fields[3:5], "big")
    sampling = [(fields[7 + 3 * i] & 15, fields[7 + 3 * i] >> 4) for i in range(jpeg.channels)]
    if jpeg.bits != 8:
        raise ObservationError(f"JPEG has {jpeg.bits} bits a channel; 8 are needed")
    if not jpeg.height or not jpeg.width or any(not 1 <= n <= 4 for pair in sampling for n in pair):
        raise _damaged("JPEG", f"its header has {jpeg.width} x {jpeg.height} pixels, sampled {sampling}")
    if jpeg.channels not in (1, 3):
        raise ObservationError(f"JPEG has {jpeg.channels} channels; 1 (grey) or 3 (colour) are needed")
    if jpeg.channels > 1:  # with one channel, blocks are coded one by one
        jpeg.mcu = max(rows for rows, _ in sampling), max(columns for _, columns in sampling)
    check_size(jpeg.height, jpeg.width)


def _read_codes(tables: bytes, jpeg: _Jpeg) -> None:
    """Record whether the first code of a table, which is all zeros, ends a block."""
    while tables:
        symbols = sum(tables[1:17])
        if len(tables) < 17 + symbols or not symbols:
            raise _damaged("JPEG", "a table of its codes is cut off")
        if tables[0] == 0x10 and tables[17] == 0:  # table of grey, or of luminance
            jpeg.zeros_end_blocks = True
        tables = tables[17 + symbols :]


def _skip_coded(raw: bytes, marks: NDArray[np.intp], start: int, jpeg: _Jpeg) -> int:
    """Return the position of the marker that ends the coded data from ``start``.

    That is the first marker that is not a restart marker. Restart markers are numbered 0 to 7, over and over.
    """
    ends = list[int]()
    rows, columns = _grid(jpeg)
    wanted = -(-rows * columns // jpeg.interval) - 1 if jpeg.interval else 0
    begun = None
    for mark in marks[np.searchsorted(marks, start) :].tolist():
        marker = raw[mark + 1]
        if marker == 0xFF:  # fill bytes
            begun = mark if begun is None else begun
            continue
        data_end, begun = mark if begun is None else begun, None
        if marker not in _RESTARTS:
            if len(ends) != wanted:
                raise _damaged("JPEG", f"{len(ends)} of {wanted} restart markers are there")
            # First search in steps of 8 bytes, because a search for 64 zeros takes longer than decoding.
            if (
                not jpeg.zeros_end_blocks
                and not np.frombuffer(raw, dtype="<u8", offset=start, count=(data_end - start) // 8).all()
                and raw.find(_ZEROS, start, mark) >= 0
            ):
                raise _damaged("JPEG", f"there are {len(_ZEROS)} zeros in a row among its data")
            jpeg.ends = (*ends, data_end)
            return int(mark)
        if len(ends) >= wanted or marker - 0xD0 != len(ends) % 8:
            raise _damaged("JPEG", f"the restart marker at byte {mark} is out of order")
        ends.append(data_end)
    raise _damaged("JPEG", "its end is missing")


def _grid(jpeg: _Jpeg) -> tuple[int, int]:
    """Return the numbers of rows and columns of MCUs (groups of blocks that are coded together) in the image."""
    return -(-jpeg.height // (8 * jpeg.mcu[0])), -(-jpeg.width // (8 * jpeg.mcu[1]))


def _may_lack_data(decoded: NDArray[np.uint8], jpeg: _Jpeg) -> bool:
    """Return whether the last block before a restart marker or before the end is grey, as it is if data are missing."""
    rows, columns = _grid(jpeg)
    last = np.arange(jpeg.interval or rows * columns, rows * columns + 1, jpeg.interval or 1) - 1
    last = np.append(last, rows * columns - 1)
    down, across = 8 * jpeg.mcu[0], 8 * jpeg.mcu[1]
    # The middle pixel of each block is compared, because at the edges colours of neighbours mix in.
    row = np.minimum(last // columns * down + down // 2, jpeg.height - 1)
    column = np.minimum(last % columns * across + across // 2, jpeg.width - 1)
    off = np.abs(decoded[row, column].astype(np.int16) - _GREY).reshape(len(last), -1).max(axis=1)
    return bool((off <= _NEARLY).any())


def _reads_filler(data: NDArray[np.uint8], jpeg: _Jpeg) -> bool:
    """Return whether bytes inserted before the final markers change the image, as they do only if data are missing."""
    raw, parts, start = data.tobytes(), list[bytes](), 0
    for end in jpeg.ends:
        parts += [raw[start:end], _FILLER]
        start = end
    filled = np.frombuffer(b"".join([*parts, raw[start:]]), dtype=np.uint8)
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
    return not np.array_equal(_decoded(data, flags, "JPEG"), _decoded(filled, flags, "JPEG"))
