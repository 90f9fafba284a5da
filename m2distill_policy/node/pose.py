"""Convert poses between messages (position and quaternion) and the runtime (position and rotation vector)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError


def quaternion_of(rotation: NDArray[np.floating[Any]]) -> tuple[float, float, float, float]:
    """Return the unit quaternion (x, y, z, w) of a rotation vector (3,) in rad."""
    vector = np.asarray(rotation, dtype=np.float64)
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle * math.sin(angle / 2) if angle > 0 else np.zeros(3)
    return float(x), float(y), float(z), math.cos(angle / 2)


def pose_from(position: Sequence[float], quaternion: Sequence[float]) -> NDArray[np.float64]:
    """Return the pose (6,) of a position (3,) and a quaternion (x, y, z, w): position (m) and rotation vector (rad).

    Raises:
        ObservationError: The quaternion is not of length 1, or an entry is not finite.
    """
    vector, w = np.asarray(quaternion[:3], dtype=np.float64), float(quaternion[3])
    norm = math.sqrt(float(vector @ vector) + w * w)
    values = np.array([*position, norm], dtype=np.float64)
    if not np.isfinite(values).all() or abs(norm - 1) > 1e-3:
        raise ObservationError(f"pose has a quaternion of length {norm:.4g} or a position that is not finite")
    if w < 0:  # the same rotation by the smaller angle
        vector, w = -vector, -w
    sine = float(np.linalg.norm(vector))
    # Near the identity, sine / angle tends to 1/2; below this limit the division would lose digits.
    rotation = vector * (2 * math.atan2(sine, w) / sine) if sine > 1e-12 else 2 * vector
    return np.concatenate([values[:3], rotation])
