"""Convert a camera's image to the network's input by one crop and one resize, for live images and recordings alike."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Camera
from m2distill_policy.errors import ObservationError


def centre_crop(height: int, width: int, camera: Camera) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) in pixels of the largest centred part with the contract's aspect ratio."""
    # Compared as integers, so that an exact aspect ratio never loses a row to rounding.
    if width * camera.height > height * camera.width:
        crop_height, crop_width = height, max(1, round(height * camera.width / camera.height))
    else:
        crop_height, crop_width = max(1, round(width * camera.height / camera.width)), width
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def preprocess(frame: NDArray[np.uint8], camera: Camera) -> NDArray[np.uint8]:
    """Crop an image to the contract's aspect ratio, and shrink it to its resolution by area averaging.

    Args:
        frame: (H, W, 3) uint8, RGB, upright, at least as large as the contract's.
        camera: Camera of the contract.

    Returns:
        (camera.height, camera.width, 3) uint8, contiguous; the same array if nothing has to be done.

    Raises:
        ObservationError: The dtype or shape is wrong, or the image is too small. Images are not enlarged, because the
            policy was not trained with interpolated pixels.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ObservationError(
            f"view '{camera.name}' is {frame.dtype} {frame.shape}; uint8 (height, width, 3) in RGB is needed"
        )
    if frame.shape == camera.shape and frame.flags.c_contiguous:
        return frame
    top, left, height, width = centre_crop(frame.shape[0], frame.shape[1], camera)
    if height < camera.height or width < camera.width:
        raise ObservationError(
            f"view '{camera.name}' is {frame.shape[0]} x {frame.shape[1]} pixels, of which {height} x {width} have the "
            f"right aspect; the contract needs at least {camera.height} x {camera.width}; choose a larger camera mode"
        )
    part = frame[top : top + height, left : left + width]
    if part.shape == camera.shape:
        return np.ascontiguousarray(part)
    resized = cv2.resize(part, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)


def fov_y_after_crop(fov_y: float, height: int, width: int, camera: Camera) -> float:
    """Return the vertical field of view in degrees, after the crop, of a (height, width) image of ``fov_y`` degrees."""
    cropped = centre_crop(height, width, camera)[2]
    return math.degrees(2 * math.atan(math.tan(math.radians(fov_y) / 2) * cropped / height))


def check_field_of_view(camera: Camera, focal: float, height: int, width: int, tolerance: float = 0.05) -> str | None:
    """Compare a camera's vertical field of view after the crop with the contract's.

    Args:
        camera: Camera of the contract.
        focal: Vertical focal length in pixels of a (height, width) image. 0 for an uncalibrated camera, which is not
            checked.
        height, width: Size of the image in pixels.
        tolerance: Fraction of the contract's field of view.

    Returns:
        A message if the fields of view differ, else None.
    """
    if focal <= 0 or height < 1 or width < 1:
        return None
    full = math.degrees(2 * math.atan(height / 2 / focal))
    seen = fov_y_after_crop(full, height, width, camera)
    if abs(seen - camera.fov_y) <= tolerance * camera.fov_y:
        return None
    return (
        f"View '{camera.name}' has a vertical field of view of {seen:.1f} degrees after the crop, but the policy was "
        f"trained with {camera.fov_y:.1f}; use another lens or camera mode."
    )
