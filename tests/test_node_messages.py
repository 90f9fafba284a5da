"""Conversion between messages and the runtime's types, with the types of plain DDS."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2distill_policy.contract import libero_contract
from m2distill_policy.dds import types
from m2distill_policy.dds.m2distill_msgs import PolicyAction
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.types import PoseStamped, Quaternion
from m2distill_policy.errors import ObservationError
from m2distill_policy.node.diagnostics import Health
from m2distill_policy.node.messages import Messages, action_of, nanoseconds_of, pose_of, twist_of
from m2distill_policy.runtime import drive

CONTRACT = libero_contract(32)


def test_set_point_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pose = np.concatenate([rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3) * rng.uniform(0, 1.7)])
        action = np.concatenate([rng.uniform(-1, 1, 6), [1.0]])
        message = MESSAGES.pose(drive.set_point(pose, action, CONTRACT), 5, "base")
        back = drive.motion_to(pose_of(message), pose, CONTRACT)
        np.testing.assert_allclose(back, action[:6], atol=1e-9)


def test_invalid_pose_is_refused() -> None:
    message = PoseStamped()
    assert not pose_of(message).any()
    message.pose.orientation = Quaternion(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ObservationError, match="quaternion of length 0"):
        pose_of(message)
    message.pose.orientation = Quaternion()
    message.pose.position.x = math.nan
    with pytest.raises(ObservationError, match="not finite"):
        pose_of(message)


def test_twist_round_trip() -> None:
    velocity = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
    message = MESSAGES.twist(velocity, 7, "base")
    np.testing.assert_array_equal(twist_of(message), velocity)
    assert message.header.frame_id == "base" and message.header.stamp.nanoseconds == 7
    assert nanoseconds_of(message) == 7


def test_action_that_is_not_a_command_gives_none() -> None:
    action = [0.1] * 7
    followed = action_of(PolicyAction(command=True, action=action), 7)
    assert followed is not None and followed.tolist() == action
    assert action_of(PolicyAction(command=False, action=action), 7) is None
    assert action_of(PolicyAction(command=True, action=action[:6]), 7) is None
    assert action_of(PolicyAction(command=True, action=[math.inf, *action[1:]]), 7) is None


def test_stamps_are_whole_nanoseconds() -> None:
    assert nanoseconds_of(MESSAGES.joints([], [], 1_700_000_000_123_456_789, "base")) == 1_700_000_000_123_456_789


def test_byte_fields_are_converted_by_the_transport() -> None:
    """ROS 2 in Python holds a field of type ``byte`` as ``bytes``."""
    messages = Messages(types, byte=lambda number: bytes([number]))
    health = Health(level=2, name="n", message="s", hardware="h", values=(("k", "v"),))
    entry = messages.diagnostics(health, 1).status[0]
    assert entry.level == b"\x02" and entry.values[0].key == "k"
    assert MESSAGES.diagnostics(health, 1).status[0].level == 2
