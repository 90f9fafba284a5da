"""Bundles that never answer or are not signed, on a real ROS 2."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")

from lifecycle_msgs.msg import Transition
from m2distill_msgs.srv import LoadPolicy

from m2distill_policy.bundle import open_bundle
from m2distill_policy.bundle_signature import write_new_key
from m2distill_policy.bundle_writer import sign_bundle
from m2distill_policy.node import topics
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.ros_side import RosRobot
from tests.ros_support import policy_node
from tests.sides import PATIENCE
from tests.test_runtime_loading import hanging

CONTRACT = toy_contract()
pytestmark = pytest.mark.usefixtures("own_domain")


def test_a_bundle_that_never_answers_blocks_no_other(tmp_path: Path) -> None:
    first, second = write_toy(tmp_path / "first", seed=0), write_toy(tmp_path / "second", seed=1)
    never = hanging(tmp_path / "never")
    settings: dict[str, object] = {"instruction": INSTRUCTIONS[0], "enable": True, "swap_when": "now"}
    with policy_node(bundle=str(first), **settings) as node, contextlib.closing(RosRobot(CONTRACT)) as there:
        assert there.operator.change(Transition.TRANSITION_CONFIGURE)
        assert there.operator.change(Transition.TRANSITION_ACTIVATE)
        there.meet()
        client = there.node.create_client(LoadPolicy, topics.resolve("~/load_policy"))
        waiting = client.call_async(LoadPolicy.Request(path=str(never)))
        begin = time.monotonic()
        while time.monotonic() - begin < 1.0:
            there.drive(observations(CONTRACT, 2, seed=int(time.monotonic() * 1000)))
        assert not waiting.done()
        future = client.call_async(LoadPolicy.Request(path=str(second)))
        while not future.done():
            assert time.monotonic() - begin < PATIENCE
            there.drive(observations(CONTRACT, 2, seed=int(time.monotonic() * 1000)))
        assert future.result().success, future.result()
        assert node.policy.server is not None and node.policy.server.bundle.digest == open_bundle(second).digest
        assert there.heard["status"][-1].code == StatusCode.RUNNING
        client.call_async(LoadPolicy.Request(path=str(never)))
        there.drive(observations(CONTRACT, 10, seed=9))
        begin = time.monotonic()
        assert there.operator.change(Transition.TRANSITION_DEACTIVATE)
        assert there.operator.change(Transition.TRANSITION_CLEANUP)
        assert time.monotonic() - begin < 5


def test_with_a_public_key_unsigned_bundles_are_refused(tmp_path: Path) -> None:
    public = write_new_key(tmp_path / "key.pem")
    bundle, other = write_toy(tmp_path / "toy", seed=0), write_toy(tmp_path / "other", seed=1)
    with (
        policy_node(bundle=str(bundle), public_key=str(public)) as node,
        contextlib.closing(RosRobot(CONTRACT)) as there,
    ):
        assert not there.operator.change(Transition.TRANSITION_CONFIGURE)
        assert node.policy.server is None
        sign_bundle(bundle, tmp_path / "key.pem")
        assert there.operator.change(Transition.TRANSITION_CONFIGURE)
        request = LoadPolicy.Request(path=str(other))
        answer = there.operator.call(LoadPolicy, "load_policy", request)
        assert not answer.success and "not signed" in answer.message
        sign_bundle(other, tmp_path / "key.pem")
        assert there.operator.call(LoadPolicy, "load_policy", request).success
