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
#: The same for the size of an action, of 1.
SIZE_SLACK = 0.02

_AXES = ACTION_AXES[:6]


class SpeedError(M2DistillError):
    """A bundle would move the arm much faster than the limit."""


@dataclass(frozen=True)
class SpeedLimit:
    """speeds: (6,) m/s for x, y, z and rad/s for rx, ry, rz that no command exceeds.

    stated: whether ``safety.speed`` states them; otherwise they are the top speeds of ``first``. first: the bundle that
    the policy was started with. allow_faster: whether a much faster bundle may take over; its commands stay within
    ``speeds`` all the same.
    """

    speeds: tuple[float, ...]
    first: Bundle
    stated: bool
    allow_faster: bool

    @staticmethod
    def of(limits: SafetyLimits, bundle: Bundle) -> SpeedLimit:
        """The limit for a server that is configured with ``limits`` and ``bundle``."""
        if limits.speed is not None:
            return SpeedLimit(tuple(float(v) for v in limits.speed), bundle, True, limits.allow_faster_bundle)
        return SpeedLimit(bundle.contract.action.response.top_speeds, bundle, False, limits.allow_faster_bundle)

    def require(self, new: Bundle) -> None:
        """Check that ``new`` may take over.

        Raises:
            SpeedError: without ``safety.speed``, its top speed is more than 25 % above the first bundle's on an axis;
                with it, its response says that the arm follows so much more slowly that a set-point within the limit
                would be more than 25 % farther ahead of the arm. Nothing is raised with
                ``safety.allow_faster_bundle``.
        """
        if self.allow_faster:
            return
        if self.stated:
            self._require_lead(new)
            return
        faster = [
            text
            for top, limit, text in self._compared(new)
            if top > limit * MOST_FASTER * (1 + 1e-9) and top - limit > SLACK
        ]
        if faster:
            raise SpeedError(
                f"bundle {new.identifier} reaches {', '.join(faster)}, the top speed of bundle "
                f"{self.first.identifier} with which the policy was started; at most 25 % more is taken. Start "
                "the policy with the new bundle, state 'safety.speed', or set "
                "'safety.allow_faster_bundle' to take it at the present limit"
            )

    def _require_lead(self, new: Bundle) -> None:
        """The arm and its controller are the same as before: what one bundle calls slower is the same motion."""
        before, after = self.first.contract.action, new.contract.action
        farther = []
        for i, (axis, speed) in enumerate(zip(_AXES, self.speeds, strict=True)):
            was, would = before.response.size_for(i, speed), after.response.size_for(i, speed)
            if would > was * MOST_FASTER * (1 + 1e-9) and would - was > SIZE_SLACK:
                farther.append(f"{would:.0%} instead of {was:.0%} of an action in '{axis}'")
        if farther:
            raise SpeedError(
                f"bundle {new.identifier} takes {', '.join(farther)} for the speed of 'safety.speed', compared with "
                f"bundle {self.first.identifier} with which the policy was started: on the same arm it would move "
                "faster than the limit; at most 25 % more is taken. Start the policy with the new bundle, or set "
                "'safety.allow_faster_bundle'"
            )

    def warning(self, bundle: Bundle) -> str:
        """What to say while ``bundle`` drives and is slowed down; empty where it is not."""
        if self.stated:
            return ""
        slowed = [text for top, limit, text in self._compared(bundle) if top > limit * (1 + 1e-9)]
        if not slowed:
            return ""
        return (
            f"Bundle {bundle.identifier} would reach {', '.join(slowed)}, the top speed of bundle "
            f"{self.first.identifier} with which the policy was started: its commands are limited to "
            "that. Set 'safety.speed' for another limit."
        )

    def _compared(self, bundle: Bundle) -> list[tuple[float, float, str]]:
        tops = bundle.contract.action.response.top_speeds
        return [
            (top, limit, f"{top:.3g} {'m/s' if i < 3 else 'rad/s'} in '{axis}' instead of {limit:.3g}")
            for i, (axis, top, limit) in enumerate(zip(_AXES, tops, self.speeds, strict=True))
        ]
