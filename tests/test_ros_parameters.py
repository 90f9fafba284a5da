"""The policy node's parameters: one table that declares, checks and documents them. Needs no ROS 2."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2distill_policy.errors import ConfigError
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.settings.arm import load_arm
from m2distill_policy.settings.definitions import BY_NAME, PARAMETERS, check, markdown
from m2distill_policy.settings.node import settings_from
from m2distill_policy.settings.parameter import Parameter
from m2distill_policy.settings.parameter_files import given_by_name, likely_misspelt, unknown

BUNDLE = {"bundle": "/bundles/three-tasks"}


def test_defaults_are_those_of_an_arm() -> None:
    settings = settings_from(BUNDLE)
    assert settings.bundle == Path("/bundles/three-tasks")
    assert settings.sampling == "low_noise" and settings.swap_when == "idle" and not settings.enable
    assert settings.arm.safety.speed is None and settings.arm.watch.dead_man is None
    assert settings.watch_folder is None and settings.loop.slop == 0.02


def test_every_default_fits_its_own_rules() -> None:
    for parameter in PARAMETERS:
        assert parameter.check(parameter.default) == parameter.default
    assert len(BY_NAME) == len(PARAMETERS)


def test_every_parameter_changes_the_settings() -> None:
    """Otherwise it would be accepted without effect."""
    others: dict[str, Any] = {
        "gripper.open_position": 0.5, "gripper.closed_position": 0.3, "watch.frozen_after": 4,
        "safety.workspace_low": [0.0, 0.0, 0.0], "safety.workspace_high": [1.0, 1.0, 1.0],
        "joints.entries": ["a"], "joints.names": ["b"], "joints.scales": [2.0], "joints.offsets": [0.5],
        "joint_topics": ["/gripper/joint_states"],
        **{f"safety.{name}": [1.0] * 6 for name in ("speed", "acceleration", "jerk")},
    }  # fmt: skip
    together: dict[str, dict[str, Any]] = {
        "safety.workspace_low": {"safety.workspace_high": [2.0, 2.0, 2.0]},
        "safety.workspace_high": {"safety.workspace_low": [-1.0, -1.0, -1.0]},
        "joints.entries": {"joints.names": ["x"]}, "joints.names": {"joints.entries": ["x"]},
        **{f"joints.{n}": {"joints.entries": ["x"], "joints.names": ["y"]} for n in ("scales", "offsets")},
        "gripper.interface": {"gripper.joint": "x"},
    }  # fmt: skip
    base: dict[str, Any] = {"joints.entries": ["q"], "joints.names": ["p"], **BUNDLE}
    for parameter in PARAMETERS:
        default = parameter.default
        value = others.get(parameter.name)
        if value is None and isinstance(default, bool):
            value = not default
        elif value is None and isinstance(default, (int, float)):
            value = type(default)(min(default + 1, parameter.high) if default < parameter.high else parameter.low)
        elif value is None:
            value = next((c for c in parameter.choices if c != default), "/else")
        company: dict[str, Any] = {**BUNDLE, **together.get(parameter.name, {})}
        if parameter.name.startswith("joints."):
            with_it = settings_from({**company, parameter.name: value})
            assert with_it != settings_from(base), parameter.name
            continue
        if parameter.name.startswith("pose."):
            frames = {"pose.base_frame": "base", "pose.end_effector_frame": "hand"}
            assert settings_from({**BUNDLE, **frames, parameter.name: value}) != settings_from({**BUNDLE, **frames})
            continue
        if parameter.name.startswith("safety.workspace"):
            assert settings_from({**company, parameter.name: value}).arm.safety.needs_pose
            continue
        assert settings_from({**company, parameter.name: value}) != settings_from(company), parameter.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bundel": "x"}, "parameter 'bundel' is not known.*'bundle'"),
        ({"bundle": ""}, "parameter 'bundle' is empty"),
        ({**BUNDLE, "pose.base_frame": "base"}, "pose.end_effector_frame ''; give both, or neither"),
        (
            {**BUNDLE, "lockstep": True, "pose.base_frame": "base", "pose.end_effector_frame": "hand"},
            "in lockstep, poses come from /end_effector_pose",
        ),
        ({**BUNDLE, "gripper.interface": "parallel_gripper_command"}, "'gripper.joint' is empty"),
        (
            {**BUNDLE, "gripper.interface": "gripper_command", "gripper.action": ""},
            "'gripper.action' is empty; gripper_command needs",
        ),
        ({"bundle": 3}, "parameter 'bundle' is 3; a string is needed"),
        ({"enable": "yes"}, "parameter 'enable' is 'yes'; a bool is needed"),
        ({"sampling": "best"}, "parameter 'sampling' is 'best'; choose one of sample, low_noise, mode"),
        ({"threads": 0}, "parameter 'threads' is 0; allowed is at least 1"),
        ({"threads": True}, "parameter 'threads' is True; an integer is needed"),
        ({"slop": math.nan}, "parameter 'slop' is nan"),
        ({"slop": 0.0}, "slop' is 0.0; allowed is 1e-06 to"),
        ({"safety.halt_time": 9.0}, "parameter 'safety.halt_time' is 9.0; allowed is 0 to 5"),
        ({"safety.speed": [1.0]}, "safety limit 'speed' has 1 entries"),
        ({"safety.speed": [1.0, "fast"]}, r"parameter 'safety.speed' is .*; a double\[\] is needed"),
        ({"safety.workspace_low": [0.0, 0.0, 0.0]}, "belong together"),
        ({"watch.frozen_after": 1}, r"'watch.frozen_after' is 1; allowed is 2 to 1e\+06; 0 is off"),
        ({"gripper.open_position": 0.0}, "open and closed position of the gripper are both 0.0"),
        ({"joints.entries": ["a"]}, "joints.entries has 1 entries, joints.names 0"),
    ],
)
def test_invalid_settings_give_one_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from({**BUNDLE, **values})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GripperProfile)])
@pytest.mark.parametrize("value", [-5.0, -1e-9, 0.0, 0.5, 0.999, 0.9995, 1.0, 300.0, math.inf, -math.inf, math.nan])
def test_gripper_numbers_have_the_same_bounds_on_every_path(tmp_path: Path, name: str, value: float) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n    gripper:\n      {name}: {str(value).replace('inf', '.inf')}\n")
    own = tmp_path / "arm.json"
    own.write_text(json.dumps({"gripper": {name: value}}))
    makers: list[Callable[[], object]] = [
        lambda: GripperProfile(**{name: value}),
        lambda: settings_from({**BUNDLE, f"gripper.{name}": value}),
        lambda: load_arm(None, [f"gripper.{name}={value}"]),
        lambda: load_arm(path),
        lambda: load_arm(own),
    ]
    refused = []
    for make in makers:
        try:
            make()
            refused.append(False)
        except ConfigError:
            refused.append(True)
    assert len(set(refused)) == 1, refused
    assert refused[0] or math.isfinite(value)


def test_a_joint_that_is_given_twice_is_refused() -> None:
    entries = {"joints.entries": ["panda_joint1", "panda_joint1"], "joints.names": ["a", "b"]}
    with pytest.raises(ConfigError, match="'panda_joint1': 'a' and 'b'"):
        settings_from({**BUNDLE, **entries})


def test_zero_and_empty_switch_a_limit_off() -> None:
    watch = settings_from({**BUNDLE, "watch.stale_after": 0.0, "watch.frozen_after": 0}).arm.watch
    assert watch.stale_after is None and watch.frozen_after is None


OFF = [parameter for parameter in PARAMETERS if parameter.has_off]


@pytest.mark.parametrize("parameter", OFF, ids=lambda parameter: parameter.name)
def test_off_is_written_the_same_everywhere(tmp_path: Path, parameter: Parameter) -> None:
    name = parameter.name
    off: object = [] if parameter.kind == "floats" else 0
    group, key = name.split(".")
    file, own = tmp_path / "arm.yaml", tmp_path / "arm.json"
    file.write_text(f"/**:\n  ros__parameters:\n    {group}: {{{key}: {off}}}\n")
    own.write_text(json.dumps({group: {key: off}}))
    arms = [
        settings_from({**BUNDLE, name: off}).arm,
        load_arm(None, [f"{name}={off}"])[0],
        load_arm(file)[0],
        load_arm(own)[0],
    ]
    assert [getattr(getattr(arm, group), key) for arm in arms] == [None] * 4
    for wrong in (None, "off", False):
        own.write_text(json.dumps({name: wrong}))
        with pytest.raises(ConfigError, match=f"'{name}'"):
            load_arm(own)
    with pytest.raises(ConfigError, match=f"'{name}'"):
        load_arm(None, [f"{name}=null"])


def test_whole_numbers_are_numbers() -> None:
    assert check("slop", 1) == 1.0 and isinstance(check("slop", 1), float)


def test_the_table_names_every_parameter() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", markdown(), re.MULTILINE)
    assert rows == [parameter.name for parameter in PARAMETERS]


def test_the_guide_has_this_markdown() -> None:
    guide = (Path(__file__).resolve().parent.parent / "docs/ros2.md").read_text(encoding="utf-8")
    assert guide.split("<!-- parameters -->\n")[1].split("\n<!-- /parameters -->")[0] == markdown()


def test_the_table_needs_no_ros_2() -> None:
    code = "import sys, m2distill_policy.settings.definitions; print('rclpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- what does not fit is refused by name ---------------------------------------------------------------------------

#: A value of every type that a parameter file can hold, and of those that it cannot.
VALUES: tuple[object, ...] = (
    *(None, True, 7, -1.5, math.nan, math.inf, 10**400, "", "fast", "0.1", b"x", {}, {"a": 1}),
    *([], [True], [1], [0.1], ["a"], [0.1, "a"], [[0.1]], [None], [math.nan] * 6, [0.1] * 7, ("a", 1)),
)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_every_parameter_takes_a_value_or_refuses_it_by_name(parameter: Parameter) -> None:
    for value in VALUES:
        try:
            settings_from({**BUNDLE, parameter.name: value})
        except ConfigError as error:
            group, _, key = parameter.name.rpartition(".")
            named = parameter.name in str(error) or (group and key.rstrip("s") in str(error))
            assert named or parameter.name.startswith("gripper."), f"{parameter.name} = {value!r}: {error}"


def _misspelt(name: str) -> list[str]:
    return [name[:-1], name + "s", name[:-2] + name[-1] + name[-2], name.upper(), f"{name}.x"]


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_every_misspelling_is_refused_by_name(parameter: Parameter) -> None:
    for wrong in _misspelt(parameter.name):
        if wrong in BY_NAME:
            continue
        refused = unknown([wrong, "use_sim_time"], BY_NAME, [wrong])
        assert list(refused) == [wrong] and f"'{wrong}'" in refused[wrong]
        if "." in parameter.name and wrong.partition(".")[0] == parameter.name.partition(".")[0]:
            assert unknown([wrong], BY_NAME, []) == refused, "its group is ours, whoever gave it"


def test_what_is_given_to_all_nodes_may_be_for_others() -> None:
    theirs = [
        "use_sim_time",
        "update_rate",
        "qos_overrides./x.subscription.depth",
        "frequency",
        "moveit.group",
        "enabled",
    ]
    assert unknown(theirs, BY_NAME, []) == {}
    assert "did you mean 'enable'" in likely_misspelt(theirs, BY_NAME)["enabled"]
    assert set(likely_misspelt(theirs, BY_NAME)) == {"enabled"}


def test_what_a_command_line_gives_by_name(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "/**: {ros__parameters: {everybody: 1}}\n"
        "m2distill_policy: {ros__parameters: {bundel: x, safety: {sped: [1]}}}\n"
        "/left: {m2distill_policy: {ros__parameters: {seeed: 1}}}\n"
        "/other: {ros__parameters: {theirs: 1}}\n"
    )
    words = ["node", "-p", "not_ros:=1", "--ros-args", "-p", "a:=1", "-p", "m2distill_policy:b:=1", "-r", "x:=y"]
    words += ["-p", "other:c:=1"]
    launch = tmp_path / "launch_params_x"
    launch.write_text("/m2distill_policy:\n  ros__parameters:\n    resum: enable\n")
    words += ["--params-file", str(launch), "--params-file", str(tmp_path)]
    words += ["--params-file", str(file), "--params-file", str(tmp_path / "none.yaml"), "--", "-p", "d:=1"]
    found = given_by_name(words, "/m2distill_policy")
    assert found.names == {"a", "b", "bundel", "safety.sped", "resum"} and not found.refused
    assert given_by_name(["--ros-args", "-p"], "/m2distill_policy").names == {""}
    left = given_by_name(words, "/left/m2distill_policy")
    assert left.names == {"a", "seeed"} and len(left.refused) == 2, "-p and launch's file name the node without /left"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("/**: {ros__parameters: {safety: {sped: [0.1]}}}", "'safety.sped' is not known.*safety.speed"),
        ("m2distill_policy: {ros__parameters: {resum: enable}}", "'resum' is not known.*'resume'"),
        ("an_arm: {ros__parameters: {resum: enable}}", "'resum' is not known"),
        ("/**: {ros__parameters: {safety: {speed: 0.1}}}", r"'safety.speed' is 0.1; a double\[\] is needed"),
        ("/**: {ros__parameters: {safety: {speed: }}}", r"'safety.speed' is None; a double\[\] is needed"),
        ("/**: {ros__parameters: {safety: 3}}", "'safety' is not known"),
        ("/**: {ros__parameters: 3}", "ros__parameters"),
        ("/**: {ros_parameters: {safety: {halt_time: 0.1}}}", "ros__parameters"),
        ("/**:", "ros__parameters"),
    ],
)
def test_invalid_parameter_file_gives_one_error_without_ros_2(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_arm(file)
    assert str(file) in str(caught.value)


def test_an_empty_list_and_other_nodes_are_no_reason_to_refuse_a_file(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(
        "/**: {ros__parameters: {safety: {speed: []}, joints: {names: []}, update_rate: 100, moveit: {group: arm}}}\n"
        "m2distill_policy: {ros__parameters: {safety: {halt_time: 0.5}, use_sim_time: true}}\n"
        "controller: {ros__parameters: {gains: {p: 1}}}\n"
    )
    arm, others = load_arm(file)
    assert arm.safety.speed is None and arm.safety.halt_time == 0.5 and others == {}
