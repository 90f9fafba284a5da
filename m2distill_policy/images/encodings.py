"""Convert the images of camera drivers to RGB. The encodings are those of ``sensor_msgs/image_encodings.hpp``.

On ROS 2, ``cv_bridge`` converts raw images where it is installed, after :func:`check_layout`. Plain DDS and recordings
use the functions here, which give the same pixels.
"""

from __future__ import annotations

import re

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError
from m2distill_policy.images.jpeg_png import ImageHeader, check_size, decode, read_header

#: Encoding -> bytes of a pixel.
BYTES_PER_PIXEL = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
}
#: OpenCV names a Bayer pattern by the second and third pixel of the second row, ROS by the first two of the first row.
_CONVERSIONS = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}


#: Characters of a message's text that an error repeats.
_SHOWN = 80
#: image_transport writes "<original encoding>; <codec> compressed <encoding given to the codec>".
_COMPRESSED = re.compile(r"([^;]+); ?(?:jpeg|jpg|png) compressed ?(\S*) *", re.IGNORECASE)
#: Formats of drivers that name only the codec.
_BARE = ("jpeg", "jpg", "png")
#: Encodings with colour. bgr8 and bgra8 have the order that codecs expect.
_COLOURED = frozenset(name for name, channels in BYTES_PER_PIXEL.items() if channels > 1)
_ALLOWED = (
    "allowed are 'jpeg' and 'png', '<encoding>; jpeg compressed bgr8', '<encoding>; png compressed bgr8', "
    "'mono8; jpeg compressed mono8', and 'bayer_<pattern>8; jpeg compressed '"
)


def check_layout(encoding: str, height: int, width: int, step: int, size: int) -> None:
    """Check that an image message is complete.

    Args:
        encoding: A key of :data:`BYTES_PER_PIXEL`.
        height, width: Size of the image in pixels.
        step: Bytes of a row.
        size: Bytes of the whole image.

    Raises:
        ObservationError: The encoding is unknown, or the numbers do not fit together.
    """
    channels = BYTES_PER_PIXEL.get(encoding)
    if channels is None:
        raise ObservationError(
            f"image encoding '{encoding[:_SHOWN]}' is not known; allowed are {', '.join(BYTES_PER_PIXEL)}"
        )
    check_size(height, width)
    if height == 0 or width == 0 or step < width * channels or size < step * height:
        raise ObservationError(
            f"image is incomplete: it should have {height} rows of {step} bytes ({width} pixels, {encoding}), but has "
            f"{size} bytes"
        )
    if encoding in _CONVERSIONS and (height % 2 or width % 2):
        raise ObservationError(f"image is {height} x {width} and {encoding} needs even numbers of rows and columns")


def raw_to_rgb(encoding: str, height: int, width: int, step: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a raw image to RGB.

    Args:
        encoding, height, width, step: See :func:`check_layout`.
        data: (n,) uint8, ``height`` rows of ``step`` bytes, the top row first.

    Returns:
        uint8 (H, W, 3), RGB, upright; a view of ``data`` if the encoding allows it.

    Raises:
        ObservationError: See :func:`check_layout`.
    """
    check_layout(encoding, height, width, step, data.size)
    channels = BYTES_PER_PIXEL[encoding]
    row = width * channels
    pixels = data[: step * height].reshape(height, step)[:, :row].reshape(height, width, channels)
    if encoding == "rgb8":
        return pixels
    if encoding in ("bgr8", "bgra8"):
        return pixels[:, :, 2::-1]
    if encoding == "rgba8":
        return pixels[:, :, :3]
    if encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), _CONVERSIONS[encoding]), dtype=np.uint8)


def compressed_to_rgb(form: str, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode the image of a ``sensor_msgs/CompressedImage``.

    Args:
        form: The message's ``format``, as image_transport writes it, or "jpeg" or "png" alone. A compressed Bayer
            mosaic is converted to colour.
        data: JPEG or PNG bytes (n,).

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ObservationError: The image is a depth image, has 16 bits, has an unknown format or other content than its
            format, is damaged, or is too large (see :mod:`m2distill_policy.images.jpeg_png`).
    """
    original = _check_format(form)
    header = read_header(data)
    if header.bits > 8:
        raise ObservationError(
            f"compressed image of format '{form[:_SHOWN]}' has {header.bits} bits a channel, as depth has; 8 are needed"
        )
    if _holds_mosaic(form, header):
        grey = decode(data, header, grey=True)
        return raw_to_rgb(original, header.height, header.width, header.width, grey.ravel())
    return np.asarray(cv2.cvtColor(decode(data, header, grey=False), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _check_format(form: str) -> str:
    """Return the original encoding named by a message's ``format``, or "". Raise if the format is not allowed."""
    if form.strip().lower() in _BARE:
        return ""
    shown = form[:_SHOWN]
    found = _COMPRESSED.fullmatch(form)
    if found is None:
        what = "depth" if "compressedDepth" in form else "not known"
        raise ObservationError(f"compressed image is of format '{shown}', which is {what}; {_ALLOWED}")
    original, given = found[1], found[2]
    if original not in BYTES_PER_PIXEL:
        raise ObservationError(
            f"compressed image is of format '{shown}': '{original[:_SHOWN]}' is depth or not known; {_ALLOWED}"
        )
    if given in ("bgr8", "bgra8") or (original == "mono8" and given in ("", "mono8")):
        return original
    if original.startswith("bayer") and given in ("", original):
        return original
    if original in _COLOURED and given in ("", "rgb8", "rgba8"):
        why = "it is unclear whether red and blue are exchanged"
    else:
        why = (
            f"it holds no colour of '{original}' any more" if given in ("mono8", "8UC1") else "what it holds is unknown"
        )
    raise ObservationError(f"compressed image is of format '{shown}': {why}; {_ALLOWED}")


def _holds_mosaic(form: str, header: ImageHeader) -> bool:
    """Return whether the bytes are a Bayer mosaic. Raise if they are not what ``form`` names."""
    found = _COMPRESSED.fullmatch(form)
    if found is None:
        return False
    original, given, grey = found[1], found[2], header.channels < 3
    if original.startswith("bayer"):
        if not grey and given not in ("bgr8", "bgra8"):
            raise ObservationError(
                f"compressed image of format '{form[:_SHOWN]}' has {header.channels} channels; a mosaic has one"
            )
        return grey
    if grey and original in _COLOURED:
        raise ObservationError(f"compressed image of format '{form[:_SHOWN]}' is grey; {original} has colour")
    return False
