"""What a camera driver sends, as RGB. Encodings are those of ``sensor_msgs/image_encodings.hpp``.

On ROS 2 its own ``cv_bridge`` converts, after :func:`check_form`; here is the same for plain DDS and for recordings.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError

#: Encoding -> bytes a pixel.
CHANNELS = {
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
#: OpenCV names a pattern by the second row's second and third pixel, ROS by the first row's first two.
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


def check_form(encoding: str, height: int, width: int, step: int, size: int) -> None:
    """Raise :class:`ObservationError` for an encoding that is not in :data:`CHANNELS`, and where ``height`` rows of
    ``step`` bytes, ``width`` pixels each, and ``size`` bytes in all do not fit together."""
    channels = CHANNELS.get(encoding)
    if channels is None:
        raise ObservationError(f"image encoding '{encoding}' is not known; allowed are {', '.join(CHANNELS)}")
    if height == 0 or width == 0 or step < width * channels or size < step * height:
        raise ObservationError(
            f"image is incomplete: {height} rows of {step} bytes ({width} pixels, {encoding}) were announced and "
            f"{size} bytes came"
        )
    if encoding in _CONVERSIONS and (height % 2 or width % 2):
        raise ObservationError(f"image is {height} x {width} and {encoding} needs even numbers of rows and columns")


def rgb_of(encoding: str, height: int, width: int, step: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as uint8 (H, W, 3), RGB, upright; a view of ``data`` where the encoding allows it.

    data: (n,) uint8, ``height`` rows of ``step`` bytes, row 0 on top. Raises what :func:`check_form` raises.
    """
    check_form(encoding, height, width, step, data.size)
    channels = CHANNELS[encoding]
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


def rgb_of_compressed(form: str, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture of a ``sensor_msgs/CompressedImage``: JPEG or PNG bytes (n,), as uint8 (H, W, 3), RGB.

    form: the message's ``format``; raises :class:`ObservationError` for depth, and for bytes that are no picture.
    """
    if "compressedDepth" in form:
        raise ObservationError(f"compressed image is of format '{form}'; colour in jpeg or png is needed")
    decoded = None
    if data.size:
        try:
            # As it lies in memory: cameras do not turn their pictures by EXIF.
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            decoded = None
    if decoded is None:
        raise ObservationError(f"compressed image of format '{form}' ({data.size} bytes) cannot be decoded")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
