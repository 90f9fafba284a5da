"""Settings of an arm, which no bundle contains: limits, watchdog, gripper and joints, from files and ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2distill_policy.config import from_dict, read_file
from m2distill_policy.errors import ConfigError
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.joints import JointSource, require_distinct
from m2distill_policy.node.topics import POLICY_NODE
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.settings.definitions import BY_NAME, PARAMETERS, find, with_defaults
from m2distill_policy.settings.parameter_files import flatten, is_for_all, is_parameter_file, sections_of, unknown

#: Groups of parameters that are an arm's settings, except those that only a node on ROS 2 uses.
_OF_THE_ARM = ("safety", "watch", "gripper", "joints", "joint_topics")
_OF_THE_NODE = ("gripper.interface", "gripper.action", "gripper.joint")


@dataclass(frozen=True)
class ArmSettings:
    """Settings of an arm.

    Attributes:
        safety: Limits of each axis, and the ramp to a halt.
        watch: Limits for late, early and frozen observations. Not used in lockstep, which has no clock.
        gripper: Positions and threshold of the gripper.
        joints: Joints whose name, sign or zero differs from the contract's.
        joint_topics: Topics of joint states in addition to ``/joint_states``, such as a gripper's.
    """

    safety: SafetyLimits = field(default_factory=SafetyLimits)
    watch: WatchLimits = field(default_factory=WatchLimits)
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    joint_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_distinct(self.joints)


def arm_from(values: Mapping[str, Any]) -> ArmSettings:
    """Make an arm's settings from parameter values.

    Args:
        values: Value of every parameter by name, already checked. Parameters of other groups are ignored.

    Raises:
        ConfigError: Values do not fit together.
    """
    data: dict[str, Any] = {"joints": _joints(values), "joint_topics": values["joint_topics"]}
    for parameter in PARAMETERS:
        group, _, key = parameter.name.partition(".")
        if group in ("safety", "watch", "gripper") and parameter.name not in _OF_THE_NODE:
            value = values[parameter.name]
            data.setdefault(group, {})[key] = None if parameter.is_off(value) else value
    return from_dict(ArmSettings, data)


def load_arm(
    path: Path | None, overrides: Sequence[str] = (), namespace: str | None = None
) -> tuple[ArmSettings, dict[str, Any]]:
    """Read an arm's settings from a file.

    The file is TOML, YAML or JSON with the parameters' names as keys, or a ROS 2 parameter file such as those in
    ``config/arms``.

    Args:
        path: The file; None for the defaults.
        overrides: ``name=value`` pairs, which override the file.
        namespace: Namespace of the node, "" or of the form "/a"; None if it is not known. It selects the sections of a
            parameter file, see :func:`m2distill_policy.settings.parameter_files.sections_of`.

    Returns:
        The settings, and those parameters of the file that are not an arm's settings, sorted by name.

    Raises:
        ConfigError: The file cannot be read, has no section for the node, or a value is not allowed.
    """
    content = {} if path is None else read_file(path)
    try:
        values = _of_this_node(content, namespace) if is_parameter_file(content) else flatten(content, "file")
        given = with_defaults(values)
        arm_from(given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    arm = arm_from({**given, **_read(overrides)})
    others = sorted(name for name in values if name.partition(".")[0] not in _OF_THE_ARM or name in _OF_THE_NODE)
    return arm, {name: given[name] for name in others}


def _read(overrides: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` words of a command line. The last value of a name is used."""
    values: dict[str, Any] = {}
    for word in overrides:
        name, sign, text = word.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"override '{word}' must have the form name=value, such as safety.halt_time=0.5")
        values[name.strip()] = find(name.strip()).read(text.strip())
    return values


def _of_this_node(content: Mapping[str, Any], namespace: str | None) -> dict[str, Any]:
    """Return the policy node's parameters in a ROS 2 parameter file. Later sections override earlier ones."""
    values: dict[str, Any] = {}
    for section, parameters in sections_of(content, POLICY_NODE, namespace):
        if is_for_all(section):
            refused = unknown(parameters, BY_NAME, ())
            values.update({name: v for name, v in parameters.items() if name in BY_NAME or name in refused})
        else:
            values.update(parameters)
    return {name: value for name, value in values.items() if name in BY_NAME or unknown([name], BY_NAME, [name])}


def _joints(p: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries, names = p["joints.entries"], p["joints.names"]
    scales = p["joints.scales"] or [1.0] * len(entries)
    offsets = p["joints.offsets"] or [0.0] * len(entries)
    if not len(entries) == len(names) == len(scales) == len(offsets):
        raise ConfigError(
            f"joints.entries has {len(entries)} entries, joints.names {len(names)}, joints.scales {len(scales)} and "
            f"joints.offsets {len(offsets)}; they need the same number of entries"
        )
    return [
        {"entry": entry, "name": name, "scale": scale, "offset": offset}
        for entry, name, scale, offset in zip(entries, names, scales, offsets, strict=True)
    ]
