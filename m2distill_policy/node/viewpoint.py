"""Compare a camera's view with the view in training: compute how much they differ, and blend both into one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Camera

#: Smallest number of rows of the overlay, which people look at.
_SHOWN = 480
#: Correlation below which two images are too different to measure how they differ.
_COMMON = 0.5
#: Factors by which the images are reduced in size, from coarse to fine; smallest number of rows after that; and blur in
#: pixels.
_LEVELS, _SMALLEST, _BLUR = (4, 2, 1), 24, 3
#: Allowed error of the shift (fraction of the image's width or height), the rotation (degrees) and the size (fraction).
_SHIFT, _TURN, _SCALE = 0.02, 2.0, 0.05


@dataclass(frozen=True)
class Misalignment:
    """How the live image differs from the training image.

    Attributes:
        right, down: Shift to the right and down, in pixels of the contract's image.
        turned: Rotation in degrees, clockwise.
        larger: Size of things in the live image divided by their size in the training image.
        correlation: Correlation of the two images after they are aligned, -1 to 1.
    """

    right: float
    down: float
    turned: float
    larger: float
    correlation: float


def misalignment(reference: NDArray[np.uint8], live: NDArray[np.uint8]) -> Misalignment | None:
    """Measure how ``live`` differs from ``reference`` by enhanced correlation (Evangelidis and Psarakis 2008).

    The whole image is compared, so fixed things such as the table and the walls dominate, and objects that lie
    elsewhere have little influence.

    Args:
        reference, live: uint8 (H, W, 3) RGB of one size.

    Returns:
        None if the images are too different.
    """
    template, moving = (_grey(image) for image in (reference, live))
    # Coarse images first, because the fine ones alone find only shifts of a few pixels.
    warp = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    correlation = -1.0
    for level in (level for level in _LEVELS if min(template.shape) >= level * _SMALLEST or level == 1):
        coarse, over = (_shrunk(image, level) for image in (template, moving))
        warp[:, 2] /= level
        everywhere = np.ones(coarse.shape, dtype=np.uint8)
        try:
            correlation, found = cv2.findTransformECC(coarse, over, warp, cv2.MOTION_AFFINE, stop, everywhere, _BLUR)
        except cv2.error:  # not converged
            return None
        warp = np.asarray(found, dtype=np.float32)
        warp[:, 2] *= level
    if correlation < _COMMON:
        return None
    height, width = template.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = warp[:, :2] @ centre + warp[:, 2] - centre
    scale = math.sqrt(abs(float(np.linalg.det(warp[:, :2].astype(np.float64)))))
    angle = math.degrees(math.atan2(float(warp[1, 0] - warp[0, 1]), float(warp[0, 0] + warp[1, 1])))
    return Misalignment(float(moved[0]), float(moved[1]), angle, scale, float(correlation))


def _shrunk(image: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    small = cv2.resize(image, None, fx=1 / level, fy=1 / level, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.float32)


def describe(camera: Camera, found: Misalignment | None) -> str:
    """Describe ``found`` as instructions for the person who adjusts the camera."""
    if found is None:
        return (
            f"View '{camera.name}' is too different from the training image to be compared; look at the overlay, and "
            "move the arm to where a demonstration begins."
        )
    focal = camera.height / 2 / math.tan(math.radians(camera.fov_y) / 2)
    wrong = []
    for pixels, size, ways in (
        (found.right, camera.width, ("right", "left")),
        (found.down, camera.height, ("down", "up")),
    ):
        if abs(pixels) > _SHIFT * size:
            degrees = math.degrees(math.atan(abs(pixels) / focal))
            wrong.append(f"turn it {ways[pixels < 0]} by {degrees:.1f} degrees ({abs(pixels):.1f} pixels)")
    if abs(found.turned) > _TURN:
        wrong.append(
            f"roll it {'clockwise' if found.turned > 0 else 'anticlockwise'} by {abs(found.turned):.1f} degrees"
        )
    if abs(found.larger - 1) > _SCALE:
        wrong.append(
            f"move it {'back' if found.larger > 1 else 'closer'}: things are {found.larger:.2f} times as large"
        )
    if not wrong:
        return f"View '{camera.name}' fits the training image (correlation {found.correlation:.2f})."
    return f"View '{camera.name}' does not fit the training image: {'; '.join(wrong)}."


def overlay(reference: NDArray[np.uint8], live: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend both images into one, enlarged, uint8 (H, W, 3) RGB, with the edges of the training image in green."""
    factor = max(1, math.ceil(_SHOWN / reference.shape[0]))
    size = (reference.shape[1] * factor, reference.shape[0] * factor)
    large = [cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in (reference, live)]
    shown = np.asarray(cv2.addWeighted(large[0], 0.35, large[1], 0.65, 0), dtype=np.uint8)
    edges = cv2.Canny(cv2.GaussianBlur(large[0], (0, 0), factor / 2), 40, 100)
    shown[edges > 0] = (0, 255, 0)
    return shown
