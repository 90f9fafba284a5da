"""The names of the topics, as ROS 2 shows them. ``~/x`` is private to the policy node: ``/m2distill_policy/x``.

They are those of a node without a namespace. In the namespace ``/left`` all of them begin with it, but for
``/diagnostics``, which is one topic for all nodes.
"""

from __future__ import annotations

import re
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
_OF_NO_NAMESPACE = frozenset({DIAGNOSTICS})

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
    """Topic of the images of the contract's view ``view``: ``agentview_rgb`` -> ``/camera/agentview/image_raw``."""
    return f"/camera/{view.removesuffix('_rgb')}/image_raw"


def camera_info_topic(view: str) -> str:
    """Topic of the intrinsics of the contract's view ``view``."""
    return f"/camera/{view.removesuffix('_rgb')}/camera_info"


def joint_topics(further: Sequence[str]) -> tuple[str, ...]:
    """Every topic of joint states: ``/joint_states`` and those of ``further``, each once."""
    return tuple(dict.fromkeys((JOINT_STATES, *further)))


def relative(topic: str, *, own: bool = False) -> str:
    """``topic`` as ROS 2 places it in the namespace of a node; what is of no namespace stays.

    ``/joint_states`` -> ``joint_states``; ``~/twist`` -> ``m2distill_policy/twist`` for other nodes of the namespace,
    and as it is for the policy node itself (``own``).
    """
    if topic in _OF_NO_NAMESPACE or (own and topic.startswith("~/")):
        return topic
    return _expand(topic)[1:]


def resolve(topic: str, remap: Mapping[str, str] | None = None, namespace: str = "") -> str:
    """The full name of ``topic`` in ``namespace`` ("" or of the form "/a"), after remapping.

    Raises :class:`ConfigError` for a name that is not of the form ``/a/b`` or ``~/b``.
    """
    full = _expand(topic, namespace)
    return (remap or {}).get(full, full)


def parse_remappings(rules: Sequence[str], namespace: str = "") -> dict[str, str]:
    """``FROM:=TO`` rules, as ROS 2 writes them, as full names; raises :class:`ConfigError` for anything else.

    As in ROS 2, ``/a`` is a full name also in a namespace, and ``~/a`` and ``a`` are in it.
    """
    remap = {}
    for rule in rules:
        source, separator, target = rule.partition(":=")
        if not separator:
            raise ConfigError(
                f"remapping '{rule}' is not of the form FROM:=TO, such as /joint_states:=/arm/joint_states"
            )
        remap[_placed(source, namespace)] = _placed(target, namespace)
    return remap


def parse_namespace(text: str) -> str:
    """A namespace as it is given, with or without its first slash, as :func:`resolve` takes it.

    Raises :class:`ConfigError` for one that ROS 2 would not take.
    """
    name = text.strip("/")
    if name and not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name, re.ASCII):
        raise ConfigError(
            f"namespace '{text}' is not one of ROS 2: letters, digits and '_', parts with '/' between, such as /left"
        )
    return f"/{name}" if name else ""


def _placed(name: str, namespace: str) -> str:
    if name.startswith("/"):
        return _expand(name)
    return _expand(name if name.startswith("~/") or not namespace else f"/{name}", namespace)


def _expand(topic: str, namespace: str = "") -> str:
    full = f"/{POLICY_NODE}/{topic[2:]}" if topic.startswith("~/") else topic
    if not full.startswith("/") or "//" in full or full.endswith("/"):
        raise ConfigError(f"topic '{topic}' is not a full name; write it as '/a/b' or '~/b'")
    return full if full in _OF_NO_NAMESPACE else namespace + full
