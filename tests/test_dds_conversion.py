"""Messages against what the runtime speaks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.contract import libero_contract
from m2distill_policy.dds import conversion, domain
from m2distill_policy.dds.domain import domain_id, reserve_domain
from m2distill_policy.dds.types import PoseStamped, Quaternion
from m2distill_policy.errors import ConfigError, ObservationError
from m2distill_policy.runtime import drive

CONTRACT = libero_contract(32)


def test_set_point_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pose = np.concatenate([rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3) * rng.uniform(0, 1.7)])
        action = np.concatenate([rng.uniform(-1, 1, 6), [1.0]])
        message = conversion.pose_message(drive.set_point(pose, action, CONTRACT), 5, "base")
        back = drive.motion_to(conversion.pose_of(message), pose, CONTRACT)
        np.testing.assert_allclose(back, action[:6], atol=1e-9)


def test_a_pose_that_is_none_is_refused() -> None:
    message = PoseStamped()
    assert not conversion.pose_of(message).any()
    message.pose.orientation = Quaternion(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ObservationError, match="quaternion of length 0"):
        conversion.pose_of(message)
    message.pose.orientation = Quaternion()
    message.pose.position.x = math.nan
    with pytest.raises(ObservationError, match="not finite"):
        conversion.pose_of(message)


def test_twist_round_trip() -> None:
    velocity = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
    message = conversion.twist_message(velocity, 7, "base")
    np.testing.assert_array_equal(conversion.twist_of(message), velocity)
    assert message.header.frame_id == "base" and message.header.stamp.nanoseconds == 7


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
