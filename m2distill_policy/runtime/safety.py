"""What stands between the policy and the arm: limits while it runs, and a ramp to a halt when it may not."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import ACTION_AXES
from m2distill_policy.errors import ConfigError
from m2distill_policy.runtime.mixture import PolicyOutputError

_MOTION = slice(0, 6)
_GRIPPER = 6


@dataclass(frozen=True)
class SafetyLimits:
    """Limits an axis (x, y, z, rx, ry, rz, gripper) in the action's units: 1 is the contract's scale of the axis.

    largest: largest size of an entry, in (0, 1]. largest_change: largest change of an entry from one cycle to the
    next, positive; 2 lets everything through. halt_time: s from the decision to halt until the command is zero.
    """

    largest: tuple[float, ...] = (1.0,) * 7
    largest_change: tuple[float, ...] = (2.0,) * 7
    halt_time: float = 0.25

    def __post_init__(self) -> None:
        for name, values, top in (("largest", self.largest, 1.0), ("largest_change", self.largest_change, 2.0)):
            if len(values) != len(ACTION_AXES):
                raise ConfigError(
                    f"safety limit '{name}' has {len(values)} entries; {len(ACTION_AXES)} are needed: {ACTION_AXES}"
                )
            for axis, value in zip(ACTION_AXES, values, strict=True):
                if not (math.isfinite(value) and 0 < value <= top):
                    raise ConfigError(
                        f"safety limit '{name}' is {value} for '{axis}'; above 0 and at most {top:g} is allowed"
                    )
        if not (math.isfinite(self.halt_time) and 0 <= self.halt_time <= 5):
            raise ConfigError(f"safety limit 'halt_time' is {self.halt_time} s; 0 to 5 s are allowed")


class Motion(enum.Enum):
    """What the governor lets the arm do."""

    RUNNING = "running"
    HALTING = "halting"
    HALTED = "halted"


class Governor:
    """Limits every command, and ramps to a halt.

    ``running`` --halt--> ``halting`` --after halt_time--> ``halted`` --resume--> ``running``. Begins halted. While
    halting, the six motion entries fall in equal parts to zero; the gripper keeps its last command, so that an object
    in the hand is not dropped.
    """

    def __init__(self, limits: SafetyLimits, period: float) -> None:
        self.limits = limits
        self.motion = Motion.HALTED
        self._largest = np.asarray(limits.largest, dtype=np.float64)
        self._change = np.asarray(limits.largest_change, dtype=np.float64)
        self._cycles = max(1, math.ceil(limits.halt_time / period - 1e-9))
        self._last = np.zeros(len(ACTION_AXES))
        self._ramp_from = self._last
        self._ramp_left = 0

    @property
    def last(self) -> NDArray[np.float64]:
        """The newest command (7,)."""
        return self._last.copy()

    def admit(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The command (7,) for a policy's action (7,): within limits, and near enough to the last command.

        Also resumes from a halt. Raises :class:`PolicyOutputError` for an action that is not finite.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self._last.shape or not np.isfinite(values).all():
            raise PolicyOutputError(
                f"the policy's action is {np.array2string(values, precision=3)}; "
                f"{len(ACTION_AXES)} finite entries are needed"
            )
        limited = np.clip(values, -self._largest, self._largest)
        self.motion = Motion.RUNNING
        self._last = np.clip(limited, self._last - self._change, self._last + self._change)
        return self._last.copy()

    def halt(self) -> NDArray[np.float64]:
        """The next command (7,) of the ramp to a halt; call once a cycle, also when halted."""
        if self.motion is Motion.RUNNING:
            self.motion = Motion.HALTING
            self._ramp_from = self._last
            self._ramp_left = self._cycles
        if self.motion is Motion.HALTING:
            self._ramp_left -= 1
            command = self._ramp_from.copy()
            command[_MOTION] *= self._ramp_left / self._cycles
            self._last = command
            if self._ramp_left == 0:
                self.motion = Motion.HALTED
        return self._last.copy()

    def forget(self) -> None:
        """Halted at once and without memory: for a new episode in a world that was reset, never for a moving arm."""
        self.motion = Motion.HALTED
        self._last = np.zeros(len(ACTION_AXES))
