"""Commands for the gripper, only when it should change: open or closed, with a dead band in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2distill_policy.errors import ConfigError, ObservationError

#: How far beyond open or closed a command may be, as a share of the way between the two.
BEYOND = 0.25
#: The largest threshold: at 1 the gripper would never change.
LARGEST_THRESHOLD = 0.999


@dataclass(frozen=True)
class GripperProfile:
    """How the gripper is commanded.

    Attributes:
        open_position, closed_position: in the gripper's own unit, which is the gap between the fingers in m, the way of
            one finger in m, or rad.
        threshold: how far the action's entry (-1 open .. +1 closed) must be from 0 to move the gripper.
        max_effort: N, at least 0; 0 leaves it to the gripper.
    """

    open_position: float = 0.08
    closed_position: float = 0.0
    threshold: float = 0.2
    max_effort: float = 0.0

    def __post_init__(self) -> None:
        for name in ("open_position", "closed_position", "max_effort"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"gripper {name} is {getattr(self, name)}; a finite number is needed")
        if self.max_effort < 0:
            raise ConfigError(f"gripper max_effort is {self.max_effort} N; at least 0 is allowed")
        if not 0 <= self.threshold <= LARGEST_THRESHOLD:
            raise ConfigError(f"gripper threshold is {self.threshold}; 0 to {LARGEST_THRESHOLD} is allowed")
        if self.open_position == self.closed_position:
            raise ConfigError(f"gripper is open and closed at the same position, {self.open_position}")

    def entry(self, position: float) -> float:
        """The action's entry (-1 or +1) that a commanded ``position`` stands for: the nearer of the two.

        Raises:
            ObservationError: it is beyond both by more than a quarter of their distance, so it is of another unit.
        """
        opened = (position - self.closed_position) / (self.open_position - self.closed_position)
        if not -BEYOND <= opened <= 1 + BEYOND:
            raise ObservationError(
                f"the gripper command is {position:g}, but the gripper is open at {self.open_position:g} "
                f"(gripper.open_position) and closed at {self.closed_position:g} (gripper.closed_position): "
                "set both as the gripper's driver counts"
            )
        return -1.0 if abs(position - self.open_position) < abs(position - self.closed_position) else 1.0


class GripperSwitch:
    """Remembers the last command, and gives a new one only where it changes."""

    def __init__(self, profile: GripperProfile) -> None:
        self._profile = profile
        self._closed: bool | None = None

    def reset(self) -> None:
        """Send the next clear command in any case: the gripper's position is not known."""
        self._closed = None

    def update(self, entry: float) -> float | None:
        """The position to command for the action's entry (-1 open .. +1 closed); None while nothing changes."""
        profile = self._profile
        if abs(entry) <= profile.threshold or (entry > 0) == self._closed:
            return None
        self._closed = entry > 0
        return profile.closed_position if self._closed else profile.open_position
