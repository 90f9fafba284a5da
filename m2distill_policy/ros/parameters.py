"""Every parameter of the policy node, in one table: it declares them, checks them, and writes the guide's table.

Imports no ROS, so that the table can be read and checked anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.config import from_dict, load_config, override, read_file
from m2distill_policy.errors import ConfigError, closest
from m2distill_policy.node.config import ArmConfig
from m2distill_policy.node.gripper import LARGEST_THRESHOLD, GripperProfile
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.topics import POLICY_NODE
from m2distill_policy.options import LARGEST_SLOP, LONGEST_WAIT, SHORTEST_SLOP, SHORTEST_WAIT
from m2distill_policy.ros.overrides import is_for_all, is_parameter_file, sections_of, unknown
from m2distill_policy.runtime.safety import LARGEST_WORKSPACE, LIMIT_RANGES, SafetyLimits
from m2distill_policy.runtime.watchdog import WATCH_RANGES, WatchLimits

Value = bool | int | float | str | list[float] | list[str]

_LARGEST_INTEGER = 2**63 - 1

#: Type of a parameter -> how ROS 2 names it.
KINDS = {
    "bool": "bool",
    "int": "integer",
    "float": "double",
    "string": "string",
    "floats": "double[]",
    "strings": "string[]",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    kind: a key of :data:`KINDS`. choices: allowed strings, empty for any. low, high: allowed numbers, both included;
    positive: only those above 0.
    live: whether it may be set while the node is configured; all others are read when it configures. fixed: read when
    the process starts, never set later.
    """

    name: str
    kind: str
    default: Value
    unit: str
    text: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    positive: bool = False
    live: bool = False
    fixed: bool = False

    @property
    def allowed(self) -> str:
        """What is allowed, for people."""
        if self.choices:
            return ", ".join(self.choices)
        if self.positive:
            return "more than 0"
        if self.low > -math.inf and self.high < math.inf:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low > -math.inf else ""

    def check(self, value: object) -> Value:
        """``value`` as this parameter holds it; raises :class:`ConfigError` where type or range do not fit."""
        found = self._typed(value)
        if self.choices and found not in self.choices:
            raise ConfigError(f"parameter '{self.name}' is '{found}'; choose one of {', '.join(self.choices)}")
        numbers = found if isinstance(found, list) else [found]
        for number in numbers:
            if not isinstance(number, (int, float)):
                continue
            if not (math.isfinite(number) and self.low <= number <= self.high) or (self.positive and number <= 0):
                raise ConfigError(
                    f"parameter '{self.name}' is {number}; allowed is {self.allowed or 'a finite number'}"
                )
        return found

    def _typed(self, value: object) -> Value:
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, int) and abs(number) > _LARGEST_INTEGER for number in numbers):
            raise ConfigError(f"parameter '{self.name}' has more digits than a number of ROS 2 can have (64 bits)")
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "string" and isinstance(value, str):
            return value
        if self.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            return value
        if self.kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if self.kind in ("floats", "strings") and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            entries = list(value)
            if self.kind == "strings" and all(isinstance(entry, str) for entry in entries):
                return entries
            numeric = all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in entries)
            if self.kind == "floats" and numeric:
                return [float(entry) for entry in entries]
        raise ConfigError(
            f"parameter '{self.name}' is {value!r}; {'an' if self.kind == 'int' else 'a'} {KINDS[self.kind]} is needed"
        )


#: Groups of parameters that are an arm's settings, but for those that say how a node reaches its gripper.
_OF_THE_ARM = ("safety", "watch", "gripper", "joints", "joint_topics")
_OF_THE_NODE = ("gripper.interface", "gripper.action", "gripper.joint")

_SAFETY, _WATCH, _GRIPPER = SafetyLimits(), WatchLimits(), GripperProfile()


def _axes(name: str, unit: str, what: str = "", empty: str = "no limit") -> Parameter:
    return Parameter(
        f"safety.{name}", "floats", [], unit, f"largest {name} of {what}x, y, z, rx, ry, rz; empty for {empty}",
        low=LIMIT_RANGES[name][0], high=LIMIT_RANGES[name][1],
    )  # fmt: skip


#: A number of 0 switches an optional limit off, as an empty list does: ROS 2 has no null.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "autostart", "bool", False, "",
        "configure and activate when the process starts, and end it where that fails; the launch files ask for it",
        fixed=True,
    ),
    Parameter("bundle", "string", "", "", "folder that 'm2distill export' wrote; needed to configure"),
    Parameter("instruction", "string", "", "", "what to do, told on activation and whenever it is set", live=True),
    Parameter("enable", "bool", False, "", "whether activation lets commands out; if not, ~/enable does"),
    Parameter(
        "resume", "string", "auto", "",
        "drive on when a fault has passed, or stay halted until ~/enable", choices=("auto", "enable"),
    ),
    Parameter(
        "public_key", "string", "", "", "PEM file of the key that every bundle must be signed with; empty: any bundle"
    ),
    Parameter("watch_folder", "string", "", "", "take over bundles that appear in this folder by rename"),
    Parameter(
        "swap_when", "string", "idle", "",
        "take over a new bundle while the arm is not driven, or between any two cycles", choices=("idle", "now"),
    ),
    Parameter(
        "sampling", "string", "low_noise", "", "how an action is drawn from the mixture",
        choices=("sample", "low_noise", "mode"),
    ),
    Parameter("temperature", "float", 1.0, "", "of the sampling 'sample'", positive=True),
    Parameter("seed", "int", 0, "", "of the random numbers; a lockstep's episodes bring theirs", low=0),
    Parameter(
        "provider", "string", "cpu", "", "what runs the network; a fall-back is announced in ~/status",
        choices=("cpu", "cuda", "tensorrt", "auto"),
    ),
    Parameter("threads", "int", 1, "", "of the network on the CPU", low=1),
    Parameter(
        "slop", "float", 0.02, "s", "how far pictures and the arm's joints of one set may be apart",
        low=SHORTEST_SLOP, high=LARGEST_SLOP,
    ),
    Parameter(
        "image_transport", "string", "raw", "", "sensor_msgs/Image, or CompressedImage on '<topic>/compressed'",
        choices=("raw", "compressed"),
    ),
    Parameter("reliable_input", "bool", False, "", "ask cameras and joints to send again what was lost"),
    Parameter(
        "allow_other_publishers", "bool", False, "",
        "drive although somebody else sends commands on the same topics, as in front of a multiplexer",
    ),
    Parameter("lockstep", "bool", False, "", "answer a simulated robot one by one, without a clock", fixed=True),
    Parameter(
        "timeout", "float", 60.0, "s", "without a sign of life before a lockstep gives up",
        low=SHORTEST_WAIT, high=LONGEST_WAIT,
    ),
    _axes("speed", "m/s, rad/s", "the twist in ", "the top speed of 'bundle'"),
    Parameter(
        "safety.allow_faster_bundle", "bool", False, "",
        "whether a bundle more than 25 % faster than the first may take over, at the first one's speed; without "
        "safety.speed",
    ),
    _axes("acceleration", "m/s2, rad/s2"),
    _axes("jerk", "m/s3, rad/s3"),
    Parameter(
        "safety.workspace_low", "floats", [], "m", "lowest x, y, z of a set-point; empty for no box",
        low=-LARGEST_WORKSPACE, high=LARGEST_WORKSPACE,
    ),
    Parameter(
        "safety.workspace_high", "floats", [], "m", "highest x, y, z of a set-point; empty for no box",
        low=-LARGEST_WORKSPACE, high=LARGEST_WORKSPACE,
    ),
    Parameter(
        "safety.halt_time", "float", _SAFETY.halt_time, "s", "from the decision to halt to standstill",
        low=0.0, high=5.0,
    ),
    Parameter(
        "watch.stale_after", "float", _WATCH.stale_after or 0.0, "s",
        "oldest stamp of any stream on arrival; 0 for any", low=0.0, high=WATCH_RANGES["stale_after"][1],
    ),
    Parameter(
        "watch.silent_after", "float", _WATCH.silent_after or 0.0, "s", "longest silence; 0 for any",
        low=0.0, high=WATCH_RANGES["silent_after"][1],
    ),
    Parameter(
        "watch.future_tolerance", "float", _WATCH.future_tolerance or 0.0, "s",
        "how far a stream's stamps may be ahead; 0 for any", low=0.0, high=WATCH_RANGES["future_tolerance"][1],
    ),
    Parameter(
        "watch.frozen_after", "int", _WATCH.frozen_after or 0, "steps",
        "no new picture while the arm moves, or the same joints or pose while it is commanded, at least 2; 0 for any "
        "number",
        low=0, high=WATCH_RANGES["frozen_after"][1],
    ),
    Parameter(
        "watch.frozen_motion", "float", _WATCH.frozen_motion, "rad or m",
        "how much a reading, or the command, must move for that",
        low=WATCH_RANGES["frozen_motion"][0], high=WATCH_RANGES["frozen_motion"][1],
    ),
    Parameter(
        "watch.dead_man", "float", 0.0, "s", "longest silence on ~/dead_man; 0 for no switch",
        low=0.0, high=WATCH_RANGES["dead_man"][1],
    ),
    Parameter(
        "watch.overruns_in_a_row", "int", _WATCH.overruns_in_a_row or 0, "",
        "late decisions that halt the arm until ~/enable; 0 for any number",
        low=0, high=WATCH_RANGES["overruns_in_a_row"][1],
    ),
    Parameter(
        "gripper.interface", "string", "topic", "",
        "how the gripper is told: control_msgs/GripperCommand on /gripper_command, or an action of its driver",
        choices=("topic", "gripper_command", "parallel_gripper_command"),
    ),
    Parameter(
        "gripper.action", "string", "gripper_controller/gripper_cmd", "", "name of that action, in the node's namespace"
    ),
    Parameter("gripper.joint", "string", "", "", "the gripper's joint, which parallel_gripper_command names"),
    Parameter("gripper.open_position", "float", _GRIPPER.open_position, "m or rad", "open"),
    Parameter("gripper.closed_position", "float", _GRIPPER.closed_position, "m or rad", "closed"),
    Parameter(
        "gripper.threshold", "float", _GRIPPER.threshold, "", "how clear the wish must be to change anything",
        low=0.0, high=LARGEST_THRESHOLD,
    ),
    Parameter("gripper.max_effort", "float", _GRIPPER.max_effort, "N", "0 for the gripper's own", low=0.0),
    Parameter(
        "pose.base_frame", "string", "", "",
        "frame of the actions, for the pose by tf2 and the commands' header; empty takes /end_effector_pose",
    ),
    Parameter("pose.end_effector_frame", "string", "", "", "frame of the end effector, for the pose by tf2"),
    Parameter("joints.entries", "strings", [], "", "readings of the contract that are other joints on this arm"),
    Parameter("joints.names", "strings", [], "", "for each, the arm's joint"),
    Parameter("joints.scales", "floats", [], "", "for each, its factor; empty for 1"),
    Parameter(
        "joint_topics", "strings", [], "", "topics of joint states beside /joint_states, such as the gripper's"
    ),
    Parameter("joints.offsets", "floats", [], "rad or m", "for each, what is added; empty for 0"),
)  # fmt: skip

BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


@dataclass(frozen=True)
class GripperInterface:
    """kind: topic, gripper_command or parallel_gripper_command. action: the action's name. joint: named in its goal."""

    kind: str
    action: str
    joint: str


@dataclass(frozen=True)
class Frames:
    """Frames in tf2: of the actions, and of the end effector."""

    base: str
    end_effector: str


@dataclass(frozen=True)
class NodeSettings:
    """The parameters, checked as a whole; see :data:`PARAMETERS` for each."""

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
    arm: ArmConfig
    loop: LoopOptions
    gripper: GripperInterface
    frames: Frames | None


def check(name: str, value: object) -> Value:
    """The value of parameter ``name``; raises :class:`ConfigError` where it is not known or does not fit."""
    parameter = BY_NAME.get(name)
    if parameter is None:
        raise ConfigError(f"parameter '{name}' is not known{closest(name, BY_NAME)}")
    return parameter.check(value)


def settings_from(values: Mapping[str, object]) -> NodeSettings:
    """All settings from the parameters' values (defaults where one is not given).

    Raises :class:`ConfigError` for a value that does not fit, alone or together with the others.
    """
    p: dict[str, Any] = {parameter.name: parameter.default for parameter in PARAMETERS}
    p.update({name: check(name, value) for name, value in values.items()})
    if not p["bundle"]:
        raise ConfigError("parameter 'bundle' is empty; name the folder that 'm2distill export' wrote")
    arm = _arm(p)
    return NodeSettings(
        bundle=Path(p["bundle"]).expanduser(),
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


def _arm(p: Mapping[str, Any]) -> ArmConfig:
    return from_dict(
        ArmConfig,
        {
            "safety": {
                **{key: p[f"safety.{key}"] or None for key in ("speed", "acceleration", "jerk")},
                **{key: p[f"safety.{key}"] or None for key in ("workspace_low", "workspace_high")},
                "halt_time": p["safety.halt_time"],
                "allow_faster_bundle": p["safety.allow_faster_bundle"],
            },
            "watch": {
                **{key: p[f"watch.{key}"] or None for key in ("stale_after", "silent_after", "future_tolerance")},
                **{key: p[f"watch.{key}"] or None for key in ("frozen_after", "dead_man", "overruns_in_a_row")},
                "frozen_motion": p["watch.frozen_motion"],
            },
            "gripper": {
                key: p[f"gripper.{key}"] for key in ("open_position", "closed_position", "threshold", "max_effort")
            },
            "joints": _joints(p),
            "joint_topics": p["joint_topics"],
        },
    )


def load_arm(
    path: Path | None, overrides: Sequence[str] = (), namespace: str | None = None
) -> tuple[ArmConfig, dict[str, Any]]:
    """An arm's settings from its own file, or from a ROS 2 parameter file as those in ``config/arms``.

    Args:
        path: of the file; None for the defaults.
        overrides: ``key=value``, over either.
        namespace: of the node that the settings are for, "" or of the form "/a"; None where it was not given. It says
            which sections of a parameter file count, see :func:`m2distill_policy.ros.overrides.sections_of`.

    Returns:
        The settings and, in order of name, the parameters that are no arm's settings.

    Raises:
        ConfigError: a file that is neither, sections that do not fit, or a value that does not.
    """
    content = {} if path is None else read_file(path)
    if not is_parameter_file(content):
        return load_config(ArmConfig, path, overrides), {}
    try:
        values = _of_this_node(content, namespace)
        p: dict[str, Any] = {parameter.name: parameter.default for parameter in PARAMETERS}
        p.update({name: check(name, value) for name, value in values.items()})
        arm = _arm(p)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    others = sorted(name for name in values if name.partition(".")[0] not in _OF_THE_ARM or name in _OF_THE_NODE)
    return override(arm, overrides), {name: p[name] for name in others}


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
        raise ConfigError("a lockstep takes poses from /end_effector_pose; leave pose.base_frame empty")
    return Frames(base, end_effector) if base else None


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


def table() -> str:
    """The parameters as a Markdown table."""
    rows = ["| parameter | type | default | unit | allowed | set when | what it is |", "|---|---|---|---|---|---|---|"]
    for p in PARAMETERS:
        default = f"`{p.default}`" if p.default not in ("", []) else "(empty)"
        when = "start" if p.fixed else "any time" if p.live else "unconfigured"
        rows.append(f"| `{p.name}` | {KINDS[p.kind]} | {default} | {p.unit} | {p.allowed} | {when} | {p.text} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    print(table())


if __name__ == "__main__":
    main()
