"""How fast a bundle may move the arm: as configured, or as fast as the bundle that the operator configured."""

from __future__ import annotations

from dataclasses import dataclass

from m2distill_policy.bundle import Bundle
from m2distill_policy.contract import ACTION_AXES
from m2distill_policy.errors import M2DistillError
from m2distill_policy.runtime.safety import SafetyLimits

#: A bundle whose top speed is above the limit by more than this factor is refused.
MOST_FASTER = 1.25
#: m/s and rad/s of difference that are never a reason to refuse: fits of an axis that hardly moves differ by more.
SLACK = 0.005

_AXES = ACTION_AXES[:6]


class SpeedError(M2DistillError):
    """A bundle would move the arm much faster than the limit."""


@dataclass(frozen=True)
class SpeedLimit:
    """speeds: (6,) m/s for x, y, z and rad/s for rx, ry, rz that no command exceeds.

    first: identifier of the bundle whose top speeds these are, None where ``safety.speed`` states them. allow_faster:
    whether a much faster bundle may take over; its commands stay within ``speeds`` all the same.
    """

    speeds: tuple[float, ...]
    first: str | None
    allow_faster: bool

    @staticmethod
    def of(limits: SafetyLimits, bundle: Bundle) -> SpeedLimit:
        """The limit for a server that is configured with ``limits`` and ``bundle``."""
        if limits.speed is not None:
            return SpeedLimit(tuple(float(v) for v in limits.speed), None, limits.allow_faster_bundle)
        return SpeedLimit(bundle.contract.action.response.top_speeds, bundle.identifier, limits.allow_faster_bundle)

    def require(self, new: Bundle) -> None:
        """Check that ``new`` may take over.

        Raises:
            SpeedError: its top speed is more than 25 % above the first bundle's on an axis, and neither
                ``safety.speed`` nor ``safety.allow_faster_bundle`` says that this is wanted.
        """
        if self.first is None or self.allow_faster:
            return
        faster = [
            text
            for top, limit, text in self._compared(new)
            if top > limit * MOST_FASTER * (1 + 1e-9) and top - limit > SLACK
        ]
        if faster:
            raise SpeedError(
                f"bundle {new.identifier} reaches {', '.join(faster)}, the top speed of bundle {self.first} with which "
                "the policy was started; at most 25 % more is taken. Start the policy with the new bundle, state "
                "'safety.speed', or set 'safety.allow_faster_bundle' to take it at the present limit"
            )

    def warning(self, bundle: Bundle) -> str:
        """What to say while ``bundle`` drives and is slowed down; empty where it is not."""
        if self.first is None:
            return ""
        slowed = [text for top, limit, text in self._compared(bundle) if top > limit * (1 + 1e-9)]
        if not slowed:
            return ""
        return (
            f"Bundle {bundle.identifier} would reach {', '.join(slowed)}, the top speed of bundle {self.first} with "
            "which the policy was started: its commands are limited to that. Set 'safety.speed' for another limit."
        )

    def _compared(self, bundle: Bundle) -> list[tuple[float, float, str]]:
        tops = bundle.contract.action.response.top_speeds
        return [
            (top, limit, f"{top:.3g} {'m/s' if i < 3 else 'rad/s'} in '{axis}' instead of {limit:.3g}")
            for i, (axis, top, limit) in enumerate(zip(_AXES, tops, self.speeds, strict=True))
        ]
