"""The profiles of arms: every parameter is one that the node has, and all of them together make sense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import ConfigError
from m2distill_policy.node.joints import JointMap
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.settings.arm import ArmSettings, load_arm
from m2distill_policy.settings.node import settings_from

PROFILES = sorted((Path(__file__).resolve().parent.parent / "config" / "arms").glob("*.yaml"))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_one_for_an_arm(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "on hardware" in text.splitlines()[0], "the first line says whether it has run on hardware"
    settings = settings_from({"bundle": "/b", **_flat(yaml.safe_load(text)["/**"]["ros__parameters"])})
    safety = settings.arm.safety
    assert settings.frames is not None and safety.needs_pose and safety.speed is not None
    assert not settings.enable and settings.sampling == "low_noise" and settings.swap_when == "idle"
    assert settings.arm.watch.dead_man is not None, "somebody holds a switch"
    contract = libero_contract(64)
    joints = JointMap(contract, settings.arm.joints)
    for closed in (False, True):
        names = {source.name for source in settings.arm.joints}
        gripper = settings.arm.gripper
        position = gripper.closed_position if closed else gripper.open_position
        arm = dict.fromkeys(names, 0.1)
        arm |= {name: position for name in names if "finger" in name or name == "drive_joint"}
        proprioception, absent = joints.proprioception(list(arm), list(arm.values()))
        assert not absent
        np.testing.assert_allclose(proprioception["gripper_states"], [0.0, 0.0] if closed else [0.04, -0.04], atol=1e-6)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_serves_without_ros_2_as_well(path: Path) -> None:
    """What import-bag and serve take of it is what the node on ROS 2 takes."""
    values = {"bundle": "/b", **_flat(yaml.safe_load(path.read_text(encoding="utf-8"))["/**"]["ros__parameters"])}
    arm, others = load_arm(path)
    assert arm == settings_from(values).arm
    assert list(others) == [
        "gripper.action", "gripper.interface", "pose.base_frame", "pose.end_effector_frame", "resume"
    ]  # fmt: skip
    assert others["resume"] == "enable" and others["pose.base_frame"] == values["pose.base_frame"] != "base"
    slower, _ = load_arm(path, ["safety.halt_time=0.1"])
    assert slower == replace(arm, safety=replace(arm.safety, halt_time=0.1))


def test_invalid_parameter_file_gives_one_error(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    for content, message in (
        ("/**:\n  ros__parameters:\n    safety: {halt_tyme: 0.1}\n", "'safety.halt_tyme' is not known.*halt_time"),
        (
            "a:\n  ros__parameters: {}\nb:\n  ros__parameters: {}\n",
            r"parameters of 2 nodes \(a, b\), but only one node",
        ),
        ("safety: {halt_tyme: 0.1}\n", "halt_tyme"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_arm(file)
    file.write_text("safety: {halt_time: 0.1}\n")
    assert load_arm(file) == (ArmSettings(safety=SafetyLimits(halt_time=0.1)), {})
    assert load_arm(None) == (ArmSettings(), {})


def test_there_are_profiles_for_set_points_and_for_velocities() -> None:
    assert {path.stem for path in PROFILES} >= {"fr3_cartesian_impedance", "fr3_moveit_servo", "xarm7_moveit_servo"}


def test_a_robot_with_ros_has_the_pins_of_one_without() -> None:
    folder = Path(__file__).resolve().parent.parent / "requirements"

    def pins(name: str) -> set[str]:
        return {line for line in (folder / name).read_text().splitlines() if "==" in line}

    ours = pins("robot-ros.txt")
    assert ours < pins("robot.txt") | pins("robot-common.txt")
    assert not any(line.startswith(("numpy", "opencv")) for line in ours)
