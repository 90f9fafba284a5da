"""Settings of an import: topics, kind of commands, and how messages become an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from m2distill_policy.contract import Contract
from m2distill_policy.errors import RecordingError, closest
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.joints import JointMap, JointSource
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.runtime.watchdog import WatchLimits

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, POSE, TWIST = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"
GRIPPER = "control_msgs/msg/GripperCommand"
#: Largest shift of a topic's stamps, s.
LARGEST_SHIFT = 86_400.0

CommandKind = Literal["target_pose", "twist"]


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import.

    Attributes:
        command: Kind of the recorded commands to the arm: set-points (``target_pose``) or velocities (``twist``).
        slop: Largest time difference between the stamps of one observation, s.
        gripper: Positions and threshold of the gripper.
        joints: Joints whose name, sign or zero differs from the contract's.
        topic: Function that converts a topic of :mod:`m2distill_policy.node.topics` to its name in the recording.
        joint_topics: Topics of joint states in addition to ``/joint_states``.
        watch: Limits of late, early and frozen observations.
        shift: Topic -> seconds that are added to its stamps, to correct a known error of its clock.
        frame: Required frame of poses, set-points and velocities. If empty, any frame is allowed, but all must have the
            same frame.
    """

    command: CommandKind = "target_pose"
    slop: float = 0.02
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    topic: Callable[[str], str] = topics.resolve
    joint_topics: tuple[str, ...] = ()
    watch: WatchLimits = field(default_factory=WatchLimits)
    shift: Mapping[str, float] = field(default_factory=dict)
    frame: str = ""


def view_topics(contract: Contract, settings: ImportSettings) -> dict[str, str]:
    """Return a mapping: topic in the recording -> name of the view in the contract."""
    return {settings.topic(topics.camera_topic(name)): name for name in contract.camera_names}


def joint_topics(settings: ImportSettings) -> tuple[str, ...]:
    """Return the topics of joint states in the recording."""
    return tuple(settings.topic(topic) for topic in topics.joint_topics(settings.joint_topics))


def command_topic(settings: ImportSettings) -> str:
    """Return the topic of the motion commands in the recording."""
    return settings.topic(topics.TARGET_POSE if settings.command == "target_pose" else topics.TWIST)


def require_topics(bag: Bag, contract: Contract, settings: ImportSettings) -> None:
    """Check that a recording has every topic that a demonstration needs.

    Raises:
        RecordingError: A topic is missing, or has another type.
        ConfigError: A joint is given that is not in the contract.
    """
    JointMap(contract, settings.joints)
    for topic in view_topics(contract, settings):
        bag.require(topic, (IMAGE, COMPRESSED))
    for topic in joint_topics(settings):
        bag.require(topic, (JOINTS,))
    bag.require(command_topic(settings), (POSE,) if settings.command == "target_pose" else (TWIST,))
    bag.require(settings.topic(topics.GRIPPER_COMMAND), (GRIPPER,))
    pose = settings.topic(topics.END_EFFECTOR_POSE)
    if settings.command == "target_pose" or pose in bag.topics:
        bag.require(pose, (POSE,))
    _require_shifts(bag, settings, [*view_topics(contract, settings), *joint_topics(settings), pose])


def _require_shifts(bag: Bag, settings: ImportSettings, stamped: Sequence[str]) -> None:
    for topic, seconds in settings.shift.items():
        if topic not in stamped:
            raise RecordingError(
                f"{bag.path}: a shift is given for '{topic}'; the streams with stamps are {', '.join(stamped)}"
                f"{closest(topic, stamped)}"
            )
        if not abs(seconds) < LARGEST_SHIFT:
            raise RecordingError(f"{bag.path}: the shift of '{topic}' is {seconds} s; less than a day is needed")
