"""The names of the topics, as ROS 2 shows them. ``~/x`` is private to the policy node: ``/m2distill_policy/x``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m2distill_policy.errors import ConfigError

#: Name of the policy node.
POLICY_NODE = "m2distill_policy"

JOINT_STATES = "/joint_states"
#: Pose of the end effector in the contract's frame. Optional; without it there is no ~/target_pose.
END_EFFECTOR_POSE = "/end_effector_pose"
#: Commands to the gripper: control_msgs/GripperCommand.
GRIPPER_COMMAND = "/gripper_command"
DIAGNOSTICS = "/diagnostics"

INSTRUCTION = "~/instruction"
EPISODE = "~/episode"
#: Let commands out, or ramp to a halt. ROS 2 has a service of this name too, which answers.
ENABLE = "~/enable"
EMERGENCY_STOP = "~/emergency_stop"
DEAD_MAN = "~/dead_man"
ACTION = "~/action"
STATUS = "~/status"
TWIST = "~/twist"
TARGET_POSE = "~/target_pose"
#: The mixture for RViz; ROS 2 alone has it.
MARKERS = "~/markers"


def camera_topic(view: str) -> str:
    """Topic of the pictures of the contract's view ``view``: ``agentview_rgb`` -> ``/camera/agentview/image_raw``."""
    return f"/camera/{view.removesuffix('_rgb')}/image_raw"


def camera_info_topic(view: str) -> str:
    """Topic of the intrinsics of the contract's view ``view``."""
    return f"/camera/{view.removesuffix('_rgb')}/camera_info"


def joint_topics(further: Sequence[str]) -> tuple[str, ...]:
    """Every topic of joint states: ``/joint_states`` and those of ``further``, each once."""
    return tuple(dict.fromkeys((JOINT_STATES, *further)))


def resolve(topic: str, remap: Mapping[str, str] | None = None) -> str:
    """The full name of ``topic``, after remapping; raises :class:`ConfigError` for a relative name."""
    full = _expand(topic)
    return (remap or {}).get(full, full)


def parse_remappings(rules: Sequence[str]) -> dict[str, str]:
    """``FROM:=TO`` rules, as ROS 2 writes them, as full names; raises :class:`ConfigError` for anything else."""
    remap = {}
    for rule in rules:
        source, separator, target = rule.partition(":=")
        if not separator:
            raise ConfigError(
                f"remapping '{rule}' is not of the form FROM:=TO, such as /joint_states:=/arm/joint_states"
            )
        remap[_expand(source)] = _expand(target)
    return remap


def _expand(topic: str) -> str:
    full = f"/{POLICY_NODE}/{topic[2:]}" if topic.startswith("~/") else topic
    if not full.startswith("/") or "//" in full or full.endswith("/"):
        raise ConfigError(f"topic '{topic}' is not a full name; write it as '/a/b' or '~/b'")
    return full
