"""Commands for the gripper, sent only when they change: open or closed, with a dead band in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2distill_policy.errors import ConfigError, ObservationError

#: How far beyond the open or the closed position a recorded command may be, as a fraction of the distance between the
#: two.
BEYOND = 0.25
#: Largest threshold. At 1 the gripper would never move.
LARGEST_THRESHOLD = 0.999


@dataclass(frozen=True)
class GripperProfile:
    """How the gripper is commanded.

    Attributes:
        open_position, closed_position: Positions in the unit of the gripper's driver: the gap between the fingers in m,
            the travel of one finger in m, or rad.
        threshold: The gripper moves only if the absolute value of the action's gripper entry (-1 open, +1 closed) is
            larger than this; 0 to 0.999.
        max_effort: Largest effort in N, at least 0; 0 leaves it to the gripper.
    """

    open_position: float = 0.08
    closed_position: float = 0.0
    threshold: float = 0.2
    max_effort: float = 0.0

    def __post_init__(self) -> None:
        for name in ("open_position", "closed_position", "max_effort"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"gripper {name} is {getattr(self, name)}; it must be finite")
        if self.max_effort < 0:
            raise ConfigError(f"gripper max_effort is {self.max_effort} N; it must be at least 0")
        if not 0 <= self.threshold <= LARGEST_THRESHOLD:
            raise ConfigError(f"gripper threshold is {self.threshold}; 0 to {LARGEST_THRESHOLD} is allowed")
        if self.open_position == self.closed_position:
            raise ConfigError(
                f"open and closed position of the gripper are both {self.open_position}; they must differ"
            )

    def entry(self, position: float) -> float:
        """Return the action's gripper entry for a commanded ``position``: -1 if it is nearer to open, else +1.

        Raises:
            ObservationError: The position is outside the range between open and closed by more than a quarter of that
                range, so it is in another unit.
        """
        opened = (position - self.closed_position) / (self.open_position - self.closed_position)
        if not -BEYOND <= opened <= 1 + BEYOND:
            raise ObservationError(
                f"the gripper command is {position:g}, but the gripper is open at {self.open_position:g} "
                f"(gripper.open_position) and closed at {self.closed_position:g} (gripper.closed_position): "
                "set both to the positions that the gripper's driver uses"
            )
        return -1.0 if abs(position - self.open_position) < abs(position - self.closed_position) else 1.0


class GripperSwitch:
    """Remembers the last gripper command, and returns a new one only when it changes."""

    def __init__(self, profile: GripperProfile) -> None:
        self._profile = profile
        self._closed: bool | None = None

    def reset(self) -> None:
        """Send the next command even if it equals the last one, because the gripper's position is not known."""
        self._closed = None

    def update(self, entry: float) -> float | None:
        """Return the position for the action's gripper entry (-1 open, +1 closed), or None if nothing changes."""
        profile = self._profile
        if abs(entry) <= profile.threshold or (entry > 0) == self._closed:
            return None
        self._closed = entry > 0
        return profile.closed_position if self._closed else profile.open_position
