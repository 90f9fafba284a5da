"""Convert a camera's message on ROS 2 to RGB, with ``cv_bridge`` if it is installed."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from m2distill_policy.images.encodings import BYTES_PER_PIXEL, check_layout, compressed_to_rgb, raw_to_rgb

try:
    from cv_bridge import CvBridge
except ModuleNotFoundError as error:
    if error.name != "cv_bridge":
        raise
    CvBridge = None

#: Message of a camera.
Frame: TypeAlias = Image | CompressedImage

#: None without cv_bridge. Then :func:`raw_to_rgb` is used, which gives the same pixels.
_BRIDGE = None if CvBridge is None else CvBridge()
#: Newer names of encodings -> the names that cv_bridge knows.
_OLDER = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}


def message_to_rgb(frame: Frame) -> NDArray[np.uint8]:
    """Convert a camera's message to uint8 (H, W, 3), RGB.

    Raises:
        ObservationError: The message is incomplete, or its encoding is unknown.
    """
    data = np.frombuffer(frame.data, dtype=np.uint8)
    if isinstance(frame, CompressedImage):
        # Not with cv_bridge, which treats every decoded image as one with three colours, even a grey one.
        return compressed_to_rgb(frame.format, data)
    check_layout(frame.encoding, frame.height, frame.width, frame.step, data.size)
    if _BRIDGE is None or frame.encoding == "rgb8" or frame.step % BYTES_PER_PIXEL[frame.encoding]:
        # There is nothing to convert, or rows end within a pixel, which cv_bridge cannot read.
        return raw_to_rgb(frame.encoding, frame.height, frame.width, frame.step, data)
    frame.encoding = _OLDER.get(frame.encoding, frame.encoding)
    frame.is_bigendian = 0  # the order of bytes does not matter here, but cv_bridge would swap them
    return np.asarray(_BRIDGE.imgmsg_to_cv2(frame, "rgb8"), dtype=np.uint8)
