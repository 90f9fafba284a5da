"""All settings of the policy node, checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.bundle_files import bundle_folder
from m2distill_policy.errors import ConfigError
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.settings.arm import ArmSettings, arm_from
from m2distill_policy.settings.definitions import with_defaults


@dataclass(frozen=True)
class GripperInterface:
    """How the gripper is commanded.

    Attributes:
        kind: topic, gripper_command or parallel_gripper_command.
        action: Name of the driver's action.
        joint: Name of the gripper's joint in a goal.
    """

    kind: str
    action: str
    joint: str


@dataclass(frozen=True)
class Frames:
    """Frame names in tf2: the frame of the actions, and that of the end effector."""

    base: str
    end_effector: str


@dataclass(frozen=True)
class NodeSettings:
    """All parameters, checked together; :data:`m2distill_policy.settings.definitions.PARAMETERS` describes each."""

    autostart: bool
    bundle: Path
    instruction: str
    enable: bool
    resume: str
    public_key: Path | None
    watch_folder: Path | None
    swap_when: str
    sampling: str
    temperature: float
    seed: int
    provider: str
    threads: int
    image_transport: str
    reliable_input: bool
    lockstep: bool
    arm: ArmSettings
    loop: LoopOptions
    gripper: GripperInterface
    frames: Frames | None


def settings_from(values: Mapping[str, object]) -> NodeSettings:
    """Make the settings from the parameters' values.

    Args:
        values: Value by name. Missing parameters have their defaults.

    Raises:
        ConfigError: A value is not allowed, or values do not fit together.
        BundleError: ``bundle`` is a run that has no bundle yet.
    """
    p: dict[str, Any] = with_defaults(values)
    if not p["bundle"]:
        raise ConfigError("parameter 'bundle' is empty; give the folder that 'm2distill export' wrote")
    arm = arm_from(p)
    return NodeSettings(
        bundle=bundle_folder(Path(p["bundle"]).expanduser()),
        public_key=Path(p["public_key"]).expanduser() if p["public_key"] else None,
        watch_folder=Path(p["watch_folder"]).expanduser() if p["watch_folder"] else None,
        arm=arm,
        loop=LoopOptions(
            slop=p["slop"],
            timeout=p["timeout"],
            gripper=arm.gripper,
            joints=arm.joints,
            allow_other_publishers=p["allow_other_publishers"],
            joint_topics=arm.joint_topics,
        ),
        gripper=_gripper(p),
        frames=_frames(p),
        **{
            name: p[name]
            for name in (
                *("instruction", "enable", "resume", "swap_when", "sampling", "temperature", "seed", "provider"),
                *("threads", "image_transport", "reliable_input"),
                *("lockstep", "autostart"),
            )
        },
    )


def _gripper(p: Mapping[str, Any]) -> GripperInterface:
    found = GripperInterface(p["gripper.interface"], p["gripper.action"], p["gripper.joint"])
    if found.kind == "parallel_gripper_command" and not found.joint:
        raise ConfigError("parameter 'gripper.joint' is empty; parallel_gripper_command needs the gripper's joint")
    if found.kind != "topic" and not found.action:
        raise ConfigError(f"parameter 'gripper.action' is empty; {found.kind} needs the name of the driver's action")
    return found


def _frames(p: Mapping[str, Any]) -> Frames | None:
    base, end_effector = p["pose.base_frame"], p["pose.end_effector_frame"]
    if bool(base) != bool(end_effector):
        raise ConfigError(
            f"pose.base_frame is '{base}' and pose.end_effector_frame '{end_effector}'; give both, or neither"
        )
    if base and p["lockstep"]:
        raise ConfigError("in lockstep, poses come from /end_effector_pose; leave pose.base_frame empty")
    return Frames(base, end_effector) if base else None
