"""Options of the policy loop that do not belong to the bundle."""

from __future__ import annotations

from dataclasses import dataclass, field

from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.joints import JointSource
from m2distill_policy.options import LARGEST_SLOP, LONGEST_WAIT, SHORTEST_SLOP, SHORTEST_WAIT
from m2distill_policy.ranges import require_within


@dataclass(frozen=True)
class LoopOptions:
    """Options of a policy loop.

    Attributes:
        slop: Largest difference in s between the stamps of the images and joint states of one set, in real time.
        timeout: Seconds without a message after which a lockstep loop ends.
        gripper: Positions and threshold of the gripper.
        joints: Joints of the arm whose name, sign or zero differs from the contract's.
        allow_other_publishers: Whether to drive even if another node publishes commands on the same topics, for example
            before a multiplexer.
        joint_topics: Topics of joint states in addition to ``/joint_states``.
    """

    slop: float = 0.02
    timeout: float = 60.0
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    allow_other_publishers: bool = False
    joint_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_within("slop", self.slop, SHORTEST_SLOP, LARGEST_SLOP, "s")
        require_within("timeout", self.timeout, SHORTEST_WAIT, LONGEST_WAIT, "s")
