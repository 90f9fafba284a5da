"""The table of every setting of the policy node. Everything that reads, declares or documents settings uses it."""

from __future__ import annotations

from collections.abc import Mapping

from m2distill_policy.errors import ConfigError, closest
from m2distill_policy.node.gripper import LARGEST_THRESHOLD, GripperProfile
from m2distill_policy.options import LARGEST_SLOP, LONGEST_WAIT, SHORTEST_SLOP, SHORTEST_WAIT
from m2distill_policy.runtime.safety import LARGEST_WORKSPACE, LIMIT_RANGES, SafetyLimits
from m2distill_policy.runtime.watchdog import WATCH_RANGES, WatchLimits
from m2distill_policy.settings.parameter import KINDS, Parameter, Value

_SAFETY, _WATCH, _GRIPPER = SafetyLimits(), WatchLimits(), GripperProfile()


def _axes(name: str, unit: str, text: str) -> Parameter:
    low, high, _ = LIMIT_RANGES[name]
    return Parameter(f"safety.{name}", "floats", [], unit, text, low=low, high=high, has_off=True)


def _watch(name: str, unit: str, text: str) -> Parameter:
    low, high, _ = WATCH_RANGES[name]
    default = getattr(_WATCH, name)
    kind = "int" if isinstance(low, int) else "float"
    off = 0 if kind == "int" else 0.0
    return Parameter(
        f"watch.{name}", kind, off if default is None else default, unit, text, low=low, high=high,
        has_off=name != "frozen_motion",
    )  # fmt: skip


#: All settings, in the order of the documentation.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "autostart", "bool", False, "",
        "configure and activate when the process starts, and exit if that fails; the launch files set it",
        is_fixed=True,
    ),
    Parameter("bundle", "string", "", "", "folder of a bundle, or of a run (its last bundle); required to configure"),
    Parameter("instruction", "string", "", "", "task instruction; applied on activation and when set", is_live=True),
    Parameter("enable", "bool", False, "", "send commands on activation; otherwise wait for ~/enable"),
    Parameter(
        "resume", "string", "auto", "",
        "after a fault has passed: drive on, or stay halted until ~/enable", choices=("auto", "enable"),
    ),
    Parameter(
        "public_key", "string", "", "",
        "PEM file of the key with which every bundle must be signed; empty accepts any bundle",
    ),
    Parameter("watch_folder", "string", "", "", "load bundles that appear in this folder by rename"),
    Parameter(
        "swap_when", "string", "idle", "",
        "switch to a new bundle only while the arm is halted, or between any two cycles", choices=("idle", "now"),
    ),
    Parameter(
        "sampling", "string", "low_noise", "", "how an action is sampled from the mixture",
        choices=("sample", "low_noise", "mode"),
    ),
    Parameter("temperature", "float", 1.0, "", "temperature of the sampling 'sample'", is_positive=True),
    Parameter("seed", "int", 0, "", "random seed; in lockstep each episode supplies its own", low=0),
    Parameter(
        "provider", "string", "cpu", "", "execution provider of the network; ~/status warns if another one runs",
        choices=("cpu", "cuda", "tensorrt", "auto"),
    ),
    Parameter("threads", "int", 1, "", "threads of the network on the CPU", low=1),
    Parameter(
        "slop", "float", 0.02, "s", "largest difference between the stamps of one observation",
        low=SHORTEST_SLOP, high=LARGEST_SLOP,
    ),
    Parameter(
        "image_transport", "string", "raw", "", "sensor_msgs/Image, or CompressedImage on '<topic>/compressed'",
        choices=("raw", "compressed"),
    ),
    Parameter("reliable_input", "bool", False, "", "let cameras and joint states resend lost messages"),
    Parameter(
        "allow_other_publishers", "bool", False, "",
        "drive even if another node publishes on the command topics, for example before a multiplexer",
    ),
    Parameter("lockstep", "bool", False, "", "answer a simulated robot step by step, without a clock", is_fixed=True),
    Parameter(
        "timeout", "float", 60.0, "s", "longest time without a message in lockstep",
        low=SHORTEST_WAIT, high=LONGEST_WAIT,
    ),
    _axes("speed", "m/s, rad/s", "largest speed of x, y, z, rx, ry, rz; off uses the top speed of 'bundle'"),
    Parameter(
        "safety.allow_faster_bundle", "bool", False, "",
        "without safety.speed: accept a bundle that is more than 25 % faster than the first one, limited to the speed "
        "of the first one",
    ),
    _axes("acceleration", "m/s2, rad/s2", "largest acceleration of x, y, z, rx, ry, rz"),
    _axes("jerk", "m/s3, rad/s3", "largest jerk of x, y, z, rx, ry, rz"),
    Parameter(
        "safety.workspace_low", "floats", [], "m", "lower corner x, y, z of the workspace of set-points",
        low=-LARGEST_WORKSPACE, high=LARGEST_WORKSPACE, has_off=True,
    ),
    Parameter(
        "safety.workspace_high", "floats", [], "m", "upper corner x, y, z of the workspace",
        low=-LARGEST_WORKSPACE, high=LARGEST_WORKSPACE, has_off=True,
    ),
    Parameter(
        "safety.halt_time", "float", _SAFETY.halt_time, "s", "time from the decision to halt until zero velocity",
        low=0.0, high=5.0,
    ),
    _watch("stale_after", "s", "largest age of a message's stamp on arrival"),
    _watch("silent_after", "s", "longest time without an observation; then the arm halts"),
    _watch("future_tolerance", "s", "largest lead of a message's stamp over the clock"),
    _watch(
        "frozen_after", "steps",
        "steps without a new image while the arm moves, or with unchanged joints or pose while motion is commanded",
    ),
    _watch(
        "frozen_motion", "rad or m",
        "frozen_after applies if a joint moves, or the commands together ask for, more than this"
    ),
    _watch("dead_man", "s", "longest time without a message on ~/dead_man; off needs no dead-man switch"),
    _watch("overruns_in_a_row", "", "late decisions in a row after which the arm halts until ~/enable"),
    Parameter(
        "gripper.interface", "string", "topic", "",
        "control_msgs/GripperCommand on /gripper_command, or an action of the gripper's driver",
        choices=("topic", "gripper_command", "parallel_gripper_command"),
    ),
    Parameter(
        "gripper.action", "string", "gripper_controller/gripper_cmd", "", "name of the driver's action"
    ),
    Parameter("gripper.joint", "string", "", "", "name of the gripper's joint; required for parallel_gripper_command"),
    Parameter("gripper.open_position", "float", _GRIPPER.open_position, "m or rad", "position of the open gripper"),
    Parameter(
        "gripper.closed_position", "float", _GRIPPER.closed_position, "m or rad", "position of the closed gripper"
    ),
    Parameter(
        "gripper.threshold", "float", _GRIPPER.threshold, "",
        "the gripper moves only if the size of the action's gripper entry (-1 open, 1 closed) is above this",
        low=0.0, high=LARGEST_THRESHOLD,
    ),
    Parameter(
        "gripper.max_effort", "float", _GRIPPER.max_effort, "N", "largest effort; 0 leaves it to the gripper", low=0.0
    ),
    Parameter(
        "pose.base_frame", "string", "", "",
        "frame of the actions, for the pose from tf2 and the commands' header; empty uses /end_effector_pose",
    ),
    Parameter("pose.end_effector_frame", "string", "", "", "frame of the end effector, for the pose from tf2"),
    Parameter(
        "joints.entries", "strings", [], "", "joints of the contract whose name, sign or zero differs on this arm"
    ),
    Parameter("joints.names", "strings", [], "", "name of the arm's joint for each of joints.entries"),
    Parameter("joints.scales", "floats", [], "", "factor for each of joints.entries; empty for 1"),
    Parameter(
        "joint_topics", "strings", [], "", "topics of joint states in addition to /joint_states, such as the gripper's"
    ),
    Parameter("joints.offsets", "floats", [], "rad or m", "offset added to each of joints.entries; empty for 0"),
)  # fmt: skip

BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def find(name: str) -> Parameter:
    """Return the parameter ``name``.

    Raises:
        ConfigError: There is no such parameter; the message names the closest one.
    """
    parameter = BY_NAME.get(name)
    if parameter is None:
        raise ConfigError(f"parameter '{name}' is not known{closest(name, BY_NAME)}")
    return parameter


def check(name: str, value: object) -> Value:
    """Check the value of parameter ``name`` and return it with the parameter's type.

    Raises:
        ConfigError: The parameter is unknown, or the value is not allowed.
    """
    return find(name).check(value)


def with_defaults(values: Mapping[str, object]) -> dict[str, Value]:
    """Return the value of every parameter: the checked value in ``values``, or the default if there is none.

    Raises:
        ConfigError: See :func:`check`.
    """
    return {
        **{parameter.name: parameter.default for parameter in PARAMETERS},
        **{name: check(name, value) for name, value in values.items()},
    }


def markdown() -> str:
    """Return the parameters as a Markdown table."""
    rows = ["| parameter | type | default | unit | allowed | set when | what it is |", "|---|---|---|---|---|---|---|"]
    for p in PARAMETERS:
        default = f"`{p.default}`" if p.default not in ("", []) else "(empty)"
        when = "start" if p.is_fixed else "any time" if p.is_live else "unconfigured"
        rows.append(f"| `{p.name}` | {KINDS[p.kind]} | {default} | {p.unit} | {p.allowed} | {when} | {p.text} |")
    return "\n".join(rows)
