"""Settings that belong to an arm and not to a bundle: limits, watchdog, gripper, joints; from files and ``--set``."""

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
from m2distill_policy.settings.parameter_files import flatten, is_for_all, is_parameter_file, sections_of, unknown
from m2distill_policy.settings.table import BY_NAME, PARAMETERS, find, with_defaults

#: Groups of parameters that belong to an arm, without those that only a node on ROS 2 uses.
_OF_THE_ARM = ("safety", "watch", "gripper", "joints", "joint_topics")
_OF_THE_NODE = ("gripper.interface", "gripper.action", "gripper.joint")


@dataclass(frozen=True)
class ArmSettings:
    """Settings of an arm.

    Attributes:
        safety: limits of each axis, and the ramp to a halt.
        watch: what is late, early or frozen. A lockstep has no clock and does not use it.
        gripper: positions and hysteresis.
        joints: joints whose name, sign or zero differs from the contract's.
        joint_topics: topics of joint states in addition to ``/joint_states``, such as a gripper's.
    """

    safety: SafetyLimits = field(default_factory=SafetyLimits)
    watch: WatchLimits = field(default_factory=WatchLimits)
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    joint_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_distinct(self.joints)


def arm_from(values: Mapping[str, Any]) -> ArmSettings:
    """Make an arm's settings.

    Args:
        values: of all parameters by name, each checked; others than the arm's are ignored.

    Raises:
        ConfigError: values do not fit together.
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

    The file is TOML, YAML or JSON with the parameters' names as keys, or a ROS 2 parameter file as those in
    ``config/arms``.

    Args:
        path: of the file; None for the defaults.
        overrides: ``name=value``, which replace what the file says.
        namespace: of the node that the settings are for, "" or of the form "/a"; None where it was not given. It says
            which sections of a parameter file count, see
            :func:`m2distill_policy.settings.parameter_files.sections_of`.

    Returns:
        The settings; and, in order of name, those parameters of the file that are not an arm's settings.

    Raises:
        ConfigError: the file cannot be read, has no fitting section, or a value does not fit.
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
    """The values in ``name=value`` words of a command line, later ones over earlier ones."""
    values: dict[str, Any] = {}
    for word in overrides:
        name, sign, text = word.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"override '{word}' is not of the form name=value, such as safety.halt_time=0.5")
        values[name.strip()] = find(name.strip()).read(text.strip())
    return values


def _of_this_node(content: Mapping[str, Any], namespace: str | None) -> dict[str, Any]:
    """The parameters of a ROS 2 parameter file that are the policy node's, later sections over earlier ones."""
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
            f"joints.offsets {len(offsets)}; one of each is needed for every joint"
        )
    return [
        {"entry": entry, "name": name, "scale": scale, "offset": offset}
        for entry, name, scale, offset in zip(entries, names, scales, offsets, strict=True)
    ]
