"""One observation: an image of every view and all joint positions at one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract, Proprioception
from m2distill_policy.errors import ObservationError


def _all_within(values: NDArray[np.float32], group: Proprioception) -> bool:
    """Return whether all values are finite and in the group's range.

    It is a loop because for a few numbers a loop takes a tenth of the time of NumPy's reductions.
    """
    if values.dtype != np.float32:
        return False
    low, high = float(np.float32(group.low)), float(np.float32(group.high))
    return all(low <= value <= high for value in values.tolist())


@dataclass(frozen=True)
class Observation:
    """One image of every view and the proprioception, by the contract's names.

    Attributes:
        images: Name of the view -> image, (H, W, 3) uint8, RGB, upright, at the contract's resolution.
        proprioception: Name of the group -> joint positions, (n,) float32, in the contract's units.
        stamp: Time of the observation in seconds, by the clock of the source (simulated or ROS time).
    """

    images: Mapping[str, NDArray[np.uint8]]
    proprioception: Mapping[str, NDArray[np.float32]]
    stamp: float

    def check(self, contract: Contract) -> None:
        """Check the observation against the contract.

        Raises:
            ObservationError: An input is missing, has a wrong shape or dtype, is not finite, or is out of range.
        """
        for camera in contract.cameras:
            frame = self.images.get(camera.name)
            if frame is None:
                raise ObservationError(f"view '{camera.name}' is missing; got {sorted(self.images)}")
            if frame.dtype != np.uint8 or frame.shape != camera.shape:
                raise ObservationError(
                    f"view '{camera.name}' is {frame.dtype} {frame.shape}; the contract needs uint8 {camera.shape}"
                )
        for group in contract.proprioception:
            values = self.proprioception.get(group.name)
            if values is None:
                raise ObservationError(f"'{group.name}' is missing; got {sorted(self.proprioception)}")
            if values.shape != (group.size,):
                raise ObservationError(f"'{group.name}' has shape {values.shape}; the contract needs ({group.size},)")
            if _all_within(values, group):
                continue
            if not np.all(np.isfinite(values)):
                bad = group.entries[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise ObservationError(f"'{group.name}' has a value that is not finite at '{bad}'")
            if np.any(values < group.low) or np.any(values > group.high):
                bad_index = int(np.flatnonzero((values < group.low) | (values > group.high))[0])
                raise ObservationError(
                    f"'{group.name}' entry '{group.entries[bad_index]}' is {values[bad_index]:.4g} {group.unit}; "
                    f"allowed are {group.low:.4g} to {group.high:.4g}"
                )
