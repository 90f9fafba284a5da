"""What belongs to an arm and not to a bundle: limits, watchdog, gripper, joints; from a file or ``key=value``."""

from __future__ import annotations

from dataclasses import dataclass, field

from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.joints import JointSource, require_distinct
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.watchdog import WatchLimits


@dataclass(frozen=True)
class ArmConfig:
    """safety: limits an axis and the ramp to a halt. watch: what is late, early or frozen (a lockstep has no clock and
    leaves it aside). gripper: positions and hysteresis. joints: where the arm's joints have other names, signs or zeros
    than the contract's readings. joint_topics: topics of joint states beside ``/joint_states``, such as a gripper's."""

    safety: SafetyLimits = field(default_factory=SafetyLimits)
    watch: WatchLimits = field(default_factory=WatchLimits)
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    joint_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_distinct(self.joints)
