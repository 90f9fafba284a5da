"""Messages against what the runtime speaks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.contract import Camera, libero_contract
from m2distill_policy.dds import conversion, domain
from m2distill_policy.dds.domain import domain_id, reserve_domain
from m2distill_policy.dds.gripper import GripperProfile, GripperSwitch
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.synchroniser import SynchronisedSet
from m2distill_policy.dds.topics import camera_info_topic, camera_topic, parse_remappings, resolve
from m2distill_policy.dds.types import Header, PoseStamped, Quaternion, Time
from m2distill_policy.errors import ConfigError, TransportError
from m2distill_policy.runtime import drive

CONTRACT = libero_contract(32)


def test_set_point_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pose = np.concatenate([rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3) * rng.uniform(0, 1.7)])
        action = np.concatenate([rng.uniform(-1, 1, 6), [1.0]])
        message = conversion.pose_message(drive.set_point(pose, action, CONTRACT), 5, "base")
        back = conversion.action_to(conversion.pose_of(message), pose, CONTRACT)
        np.testing.assert_allclose(back, action[:6], atol=1e-9)


def test_no_rotation_stays_exactly_none() -> None:
    pose = np.array([0.4, 0.0, 0.3, math.pi, 0.02, -0.01])
    action = np.array([0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 1.0])
    message = conversion.pose_message(drive.set_point(pose, action, CONTRACT), 5, "base")
    assert not conversion.action_to(conversion.pose_of(message), pose, CONTRACT)[3:].any()


def test_a_pose_that_is_none_is_refused() -> None:
    message = PoseStamped()
    assert not conversion.pose_of(message).any()
    message.pose.orientation = Quaternion(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(TransportError, match="quaternion of length 0"):
        conversion.pose_of(message)
    message.pose.orientation = Quaternion()
    message.pose.position.x = math.nan
    with pytest.raises(TransportError, match="not finite"):
        conversion.pose_of(message)


def test_twist_round_trip() -> None:
    velocity = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
    message = conversion.twist_message(velocity, 7, "base")
    np.testing.assert_array_equal(conversion.twist_of(message), velocity)
    assert message.header.frame_id == "base" and message.header.stamp.nanoseconds == 7


def test_field_of_view_is_compared_after_the_crop() -> None:
    camera = Camera("agentview_rgb", 32, 32, 45.0)
    assert conversion.fov_trouble(conversion.camera_info(camera, 480, 640, 0), camera) is None
    trouble = conversion.fov_trouble(
        conversion.camera_info(dataclasses.replace(camera, fov_y=60.0), 480, 640, 0), camera
    )
    assert trouble is not None and "60.0 degrees" in trouble and "45.0" in trouble
    # A portrait picture loses rows to a square crop, and with them field of view.
    tall = conversion.camera_info(camera, 640, 480, 0)
    assert conversion.fov_trouble(tall, camera) is not None
    uncalibrated = dataclasses.replace(tall, k=[0.0] * 9)
    assert conversion.fov_trouble(uncalibrated, camera) is None


def test_an_unusable_picture_is_left_out_and_named() -> None:
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    good = Image.from_rgb(picture, Time(), "")
    half = Image(Header(), 48, 64, "rgb8", 0, 192, bytes(100))
    joints = {g.name: np.zeros(g.size, dtype=np.float32) for g in CONTRACT.proprioception}
    names = CONTRACT.camera_names
    found = SynchronisedSet(2_000_000_000, {names[0]: good, names[1]: half}, joints, ("panda_joint4",))
    observation, troubles = conversion.observation_of(found, CONTRACT)
    assert observation.stamp == 2.0 and list(observation.images) == [names[0]]
    assert observation.images[names[0]].shape == (32, 32, 3)
    assert len(troubles) == 2 and "incomplete" in troubles[0] and "panda_joint4" in troubles[1]


def test_the_gripper_is_told_only_of_changes() -> None:
    switch = GripperSwitch(GripperProfile(threshold=0.2))
    told = [switch.update(v) for v in (0.1, -0.5, -0.9, 0.1, 0.2, 0.3, 1.0, -0.1, -0.3)]
    assert told == [None, 0.08, None, None, None, 0.0, None, None, 0.08]
    switch.forget()
    assert switch.update(-1.0) == 0.08
    profile = GripperProfile()
    assert [profile.entry(p) for p in (0.08, 0.05, 0.0, 0.03)] == [-1.0, -1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="threshold is 1"):
        GripperProfile(threshold=1.0)
    with pytest.raises(ConfigError, match="same position"):
        GripperProfile(open_position=0.0)


def test_topic_names() -> None:
    assert camera_topic("agentview_rgb") == "/camera/agentview/image_raw"
    assert camera_info_topic("eye_in_hand_rgb") == "/camera/eye_in_hand/camera_info"
    assert resolve("~/action") == "/m2distill_policy/action"
    remap = parse_remappings(["/joint_states:=/arm/joint_states", "~/twist:=/servo_node/delta_twist_cmds"])
    assert resolve("/joint_states", remap) == "/arm/joint_states"
    assert resolve("~/twist", remap) == "/servo_node/delta_twist_cmds"
    with pytest.raises(ConfigError, match="FROM:=TO"):
        parse_remappings(["/a=/b"])
    with pytest.raises(ConfigError, match="not a full name"):
        resolve("joint_states")


def test_domain_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    assert domain_id() == 0 and domain_id(17) == 17
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert domain_id() == 42 and domain_id(17) == 17
    monkeypatch.setenv("ROS_DOMAIN_ID", "many")
    with pytest.raises(ConfigError, match="ROS_DOMAIN_ID is 'many'"):
        domain_id()
    with pytest.raises(ConfigError, match="domain id is '233'; allowed are 0 to 232"):
        domain_id(233)


def test_small_receive_buffers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "rmem_max"
    monkeypatch.setattr(domain, "_RECEIVE_LIMIT", limit)
    assert domain.receive_buffer_trouble(921_600) is None  # not known
    limit.write_text("212992\n")
    assert domain.receive_buffer_trouble(128 * 128 * 3) is None
    trouble = domain.receive_buffer_trouble(640 * 480 * 3)
    assert trouble is not None and "212992" in trouble and "--reliable-input" in trouble
    limit.write_text("4194304\n")
    assert domain.receive_buffer_trouble(640 * 480 * 3) is None


def test_reserved_domains_differ() -> None:
    with reserve_domain() as first, reserve_domain() as second:
        assert first != second and min(first, second) >= 1 and max(first, second) <= 101
