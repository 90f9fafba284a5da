"""Names of the topics, as ROS 2 shows them. ``~/x`` is private to the policy node: ``/m2distill_policy/x``.

The names are those of a node without a namespace. In the namespace ``/left`` they begin with ``/left``, except
``/diagnostics``, which is shared by all nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from m2distill_policy.errors import ConfigError

#: Name of the policy node.
POLICY_NODE = "m2distill_policy"

JOINT_STATES = "/joint_states"
#: Pose of the end effector in the contract's frame. Optional, but ~/target_pose needs it.
END_EFFECTOR_POSE = "/end_effector_pose"
#: Commands to the gripper: control_msgs/GripperCommand.
GRIPPER_COMMAND = "/gripper_command"
DIAGNOSTICS = "/diagnostics"
_OF_NO_NAMESPACE = frozenset({DIAGNOSTICS})

INSTRUCTION = "~/instruction"
EPISODE = "~/episode"
#: Enable commands, or ramp to a halt. On ROS 2 there is also a service of this name, which replies.
ENABLE = "~/enable"
EMERGENCY_STOP = "~/emergency_stop"
DEAD_MAN = "~/dead_man"
ACTION = "~/action"
STATUS = "~/status"
TWIST = "~/twist"
TARGET_POSE = "~/target_pose"
#: The mixture for RViz, only on ROS 2.
MARKERS = "~/markers"


def camera_topic(view: str) -> str:
    """Return the image topic of the contract's view: ``agentview_rgb`` -> ``/camera/agentview/image_raw``."""
    return f"/camera/{view.removesuffix('_rgb')}/image_raw"


def camera_info_topic(view: str) -> str:
    """Return the topic of the intrinsics of the contract's view ``view``."""
    return f"/camera/{view.removesuffix('_rgb')}/camera_info"


def joint_topics(further: Sequence[str]) -> tuple[str, ...]:
    """Return every topic of joint states: ``/joint_states`` and those of ``further``, each once."""
    return tuple(dict.fromkeys((JOINT_STATES, *further)))


def relative(topic: str, *, own: bool = False) -> str:
    """Return ``topic`` relative to a node's namespace. Topics without a namespace stay as they are.

    ``/joint_states`` becomes ``joint_states``. ``~/twist`` becomes ``m2distill_policy/twist`` for other nodes, and
    stays as it is for the policy node itself (``own``).
    """
    if topic in _OF_NO_NAMESPACE or (own and topic.startswith("~/")):
        return topic
    return _expand(topic)[1:]


def resolve(topic: str, remap: Mapping[str, str] | None = None, namespace: str = "") -> str:
    """Return the full name of ``topic`` in ``namespace`` ("" or of the form "/a"), after remapping.

    Raises:
        ConfigError: The name does not have the form ``/a/b`` or ``~/b``.
    """
    full = _expand(topic, namespace)
    return (remap or {}).get(full, full)


def parse_remappings(rules: Sequence[str], namespace: str = "") -> dict[str, str]:
    """Read ``FROM:=TO`` rules, as ROS 2 writes them, into full names.

    As in ROS 2, ``/a`` is a full name also in a namespace, and ``~/a`` and ``a`` are in the namespace.

    Raises:
        ConfigError: A rule has another form.
    """
    remap = {}
    for rule in rules:
        source, separator, target = rule.partition(":=")
        if not separator:
            raise ConfigError(
                f"remapping '{rule}' must have the form FROM:=TO, such as /joint_states:=/arm/joint_states"
            )
        remap[_placed(source, namespace)] = _placed(target, namespace)
    return remap


def parse_namespace(text: str) -> str:
    """Return a namespace, given with or without its first slash, in the form that :func:`resolve` needs.

    Raises:
        ConfigError: ROS 2 does not allow it.
    """
    name = text.strip("/")
    if name and not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name, re.ASCII):
        raise ConfigError(
            f"namespace '{text}' is not allowed: use letters, digits and '_', with '/' between parts, such as /left"
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
