"""The largest speed of commands: as configured, or the top speed of the bundle that the policy was started with."""

from __future__ import annotations

from dataclasses import dataclass

from m2distill_policy.bundle import Bundle
from m2distill_policy.contract import ACTION_AXES
from m2distill_policy.errors import M2DistillError
from m2distill_policy.runtime.safety import SafetyLimits

#: A bundle is refused if its top speed exceeds the limit by more than this factor.
MOST_FASTER = 1.25
#: A bundle is never refused for a difference up to this, in m/s or rad/s. Fits of an axis that hardly moves differ by
#: more than 25 %.
SLACK = 0.005
#: The same slack for the size of an action, which is at most 1.
SIZE_SLACK = 0.02

_AXES = ACTION_AXES[:6]


class SpeedError(M2DistillError):
    """A bundle would move the arm much faster than the limit."""


@dataclass(frozen=True)
class SpeedLimit:
    """The speed limit of the commands of all bundles.

    Attributes:
        speeds: Speeds (6,) that no command exceeds: m/s for x, y, z and rad/s for rx, ry, rz.
        first: The bundle that the policy was started with.
        stated: Whether ``speeds`` come from ``safety.speed``; otherwise they are the top speeds of ``first``.
        allow_faster: Whether a much faster bundle may be loaded; its commands are limited to ``speeds`` too.
    """

    speeds: tuple[float, ...]
    first: Bundle
    stated: bool
    allow_faster: bool

    @staticmethod
    def of(limits: SafetyLimits, bundle: Bundle) -> SpeedLimit:
        """Make the limit of a server with these limits that starts with ``bundle``."""
        if limits.speed is not None:
            return SpeedLimit(tuple(float(v) for v in limits.speed), bundle, True, limits.allow_faster_bundle)
        return SpeedLimit(bundle.contract.action.response.top_speeds, bundle, False, limits.allow_faster_bundle)

    def require(self, new: Bundle) -> None:
        """Check that ``new`` is not much faster than the limit. With ``allow_faster``, every bundle passes.

        Raises:
            SpeedError: Without ``safety.speed``: the top speed of ``new`` on an axis is more than 25 % above that of
                the first bundle. With ``safety.speed``: to reach that speed, ``new`` needs an action that is more than
                25 % larger than with the first bundle.
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
                f"{self.first.identifier} with which the policy was started; at most 25 % more is allowed. Start "
                "the policy with the new bundle, set 'safety.speed', or set 'safety.allow_faster_bundle' to load it "
                "with the current limit"
            )

    def _require_lead(self, new: Bundle) -> None:
        """Raise :class:`SpeedError` if ``new`` needs much larger actions for the speed limit than the first bundle.

        Arm and controller are the same, so larger actions move the arm faster than the limit.
        """
        before, after = self.first.contract.action, new.contract.action
        farther = []
        for i, (axis, speed) in enumerate(zip(_AXES, self.speeds, strict=True)):
            was, would = before.response.size_for(i, speed), after.response.size_for(i, speed)
            if would > was * MOST_FASTER * (1 + 1e-9) and would - was > SIZE_SLACK:
                farther.append(f"{would:.0%} instead of {was:.0%} of an action in '{axis}'")
        if farther:
            raise SpeedError(
                f"for the speed of 'safety.speed', bundle {new.identifier} needs {', '.join(farther)}, compared with "
                f"bundle {self.first.identifier} with which the policy was started: on the same arm it would move "
                "faster than the limit; at most 25 % more is allowed. Start the policy with the new bundle, or set "
                "'safety.allow_faster_bundle'"
            )

    def warning(self, bundle: Bundle) -> str:
        """Return the warning that ``bundle`` is slowed down, or "" if it is not."""
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
