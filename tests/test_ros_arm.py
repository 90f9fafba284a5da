"""Parts of an arm on ROS 2 other than topics: gripper action, transforms, RViz; and images by cv_bridge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")

import rclpy
from control_msgs.action import GripperCommand, ParallelGripperCommand
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.msg import Transition
from rclpy.action import ActionServer, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from tf2_ros import TransformBroadcaster
from visualization_msgs.msg import Marker, MarkerArray

from m2distill_policy.errors import ObservationError
from m2distill_policy.images.encodings import BYTES_PER_PIXEL, raw_to_rgb
from m2distill_policy.node import topics
from m2distill_policy.ros.images import message_to_rgb
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.ros.viewpoint_check import ViewpointCheck
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.ros_side import RosRobot
from tests.ros_support import policy_node
from tests.sides import PATIENCE
from tests.test_behaviour_real_time import drive_until

CONTRACT = toy_contract()
pytestmark = pytest.mark.usefixtures("own_domain")


@contextlib.contextmanager
def driven(tmp_path: Path, **parameters: object) -> Iterator[RosRobot]:
    """A robot with an active and enabled policy node in this process."""
    bundle = str(write_toy(tmp_path / "toy"))
    given = {"bundle": bundle, "instruction": INSTRUCTIONS[0], "enable": True, **parameters}
    with policy_node(**given), contextlib.closing(RosRobot(CONTRACT)) as robot:
        assert robot.operator.change(Transition.TRANSITION_CONFIGURE)
        yield robot


@pytest.mark.parametrize("kind", ["gripper_command", "parallel_gripper_command"])
def test_the_gripper_is_commanded_by_its_drivers_action(tmp_path: Path, kind: str) -> None:
    """A refused command is sent again. Without a driver, the status reports it."""
    gripper = {"gripper__interface": kind, "gripper__action": "/hand/command", "gripper__joint": "knuckle"}
    with driven(tmp_path, gripper__max_effort=5.0, sampling="sample", **gripper) as robot:
        assert robot.operator.change(Transition.TRANSITION_ACTIVATE)
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.drive(observations(CONTRACT, 20))
        assert any("No gripper driver offers the action '/hand/command'" in s.warning for s in robot.heard["status"])
        goals: list[Any] = []

        def take(goal: Any) -> GoalResponse:
            goals.append(goal)
            return GoalResponse.REJECT if len(goals) == 1 else GoalResponse.ACCEPT

        def execute(handle: ServerGoalHandle) -> Any:
            handle.succeed()
            return (GripperCommand if kind == "gripper_command" else ParallelGripperCommand).Result()

        action = GripperCommand if kind == "gripper_command" else ParallelGripperCommand
        server = ActionServer(robot.node, action, "/hand/command", execute_callback=execute, goal_callback=take)
        deadline = time.monotonic() + PATIENCE
        seed = 0
        while len(goals) < 3:
            assert time.monotonic() < deadline, f"{len(goals)} goals"
            seed += 1
            robot.drive(observations(CONTRACT, 8, seed=seed))
        assert any("refused a command" in s.warning for s in robot.heard["status"])
        robot.forget()
        robot.drive(observations(CONTRACT, 8, seed=99))
        assert not any("gripper" in s.warning for s in robot.heard["status"])
        for goal in goals:
            if kind == "gripper_command":
                assert goal.command.position in (0.0, 0.08) and goal.command.max_effort == 5.0
            else:
                assert list(goal.command.name) == ["knuckle"] and list(goal.command.effort) == [5.0]
                assert goal.command.position[0] in (0.0, 0.08)
        assert not robot.heard["gripper"], "one way to tell it, not two"
        server.destroy()


def test_poses_from_tf_and_mixture_markers(tmp_path: Path) -> None:
    with driven(tmp_path, pose__base_frame="arm_base", pose__end_effector_frame="hand") as robot:
        markers: list[MarkerArray] = []
        robot.node.create_subscription(MarkerArray, topics.resolve(topics.MARKERS), markers.append, 10)
        broadcaster = TransformBroadcaster(robot.node)

        def say_where() -> None:
            where = TransformStamped(header=MESSAGES.header(time.time_ns(), "arm_base"), child_frame_id="hand")
            where.transform.translation = MESSAGES.vector([0.4, 0.1, 0.3])
            where.transform.rotation.w = 1.0
            broadcaster.sendTransform(where)

        assert robot.operator.change(Transition.TRANSITION_ACTIVATE)
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.drive(observations(CONTRACT, 6))
        assert not robot.heard["target_pose"]
        wanted = "No pose on /tf from 'arm_base' to 'hand'"
        assert any(wanted in s.warning for s in robot.heard["status"])
        robot.drive(observations(CONTRACT, 20, seed=1), first=say_where)
        targets = robot.heard["target_pose"]
        assert len(targets) >= 8 and targets[-1].header.frame_id == "arm_base"
        place = targets[-1].pose.position
        scale = CONTRACT.action.translation_scale
        np.testing.assert_allclose([place.x, place.y, place.z], [0.4, 0.1, 0.3], atol=scale + 1e-6)
        assert robot.heard["twist"][-1].header.frame_id == "arm_base"
        assert markers, "somebody looks at the markers"
        arrows = markers[-1].markers
        assert len(arrows) == 3 and all(arrow.type == Marker.ARROW for arrow in arrows)
        assert arrows[0].header.frame_id == "arm_base"
        begin = arrows[0].points[0]
        np.testing.assert_allclose([begin.x, begin.y, begin.z], [0.4, 0.1, 0.3], atol=1e-9)
        # And an arm that says nothing any more is not where it was.
        robot.drive(observations(CONTRACT, 8, seed=2))
        robot.forget()
        robot.drive(observations(CONTRACT, 6, seed=3))
        assert not robot.heard["target_pose"]


def _image(encoding: str, height: int, width: int, step: int, data: bytes) -> Image:
    image = Image(encoding=encoding, height=height, width=width, step=step)
    image.data.frombytes(data)
    return image


@pytest.mark.parametrize("encoding", BYTES_PER_PIXEL)
@pytest.mark.parametrize("padding", [0, 3, 12])
def test_cv_bridge_and_recordings_give_the_same_pixels(encoding: str, padding: int) -> None:
    """Otherwise a policy would be trained with other images than it sees live."""
    rng = np.random.default_rng(0)
    height, width = 6, 8
    step = width * BYTES_PER_PIXEL[encoding] + padding
    data = rng.integers(0, 256, height * step, dtype=np.uint8)
    live = message_to_rgb(_image(encoding, height, width, step, data.tobytes()))
    np.testing.assert_array_equal(live, raw_to_rgb(encoding, height, width, step, data))


def test_invalid_images_are_refused_before_cv_bridge() -> None:
    for encoding, size, text in (
        ("rgb8", 5, "image is incomplete"),
        ("16UC1", 96, "encoding '16UC1' is not known"),
    ):
        with pytest.raises(ObservationError, match=text):
            message_to_rgb(_image(encoding, 4, 4, 12, bytes(size)))


def test_the_viewpoint_check_says_how_to_turn_a_camera(tmp_path: Path) -> None:
    contract = toy_contract(96)
    rng = np.random.default_rng(0)
    views = {
        name: np.asarray(
            cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (96, 96), interpolation=3), dtype=np.uint8
        )
        for name in contract.camera_names
    }
    bundle = write_toy(tmp_path / "toy", contract=contract, views=views)
    first, second = contract.camera_names
    rclpy.init()
    node = ViewpointCheck({"bundle": str(bundle)})
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    shown: list[Image] = []
    try:
        with contextlib.closing(RosRobot(contract)) as robot:
            robot.node.create_subscription(Image, "/viewpoint_check/agentview/overlay", shown.append, 1)
            turned = {first: np.roll(views[first], 8, axis=1), second: views[second]}
            deadline = time.monotonic() + PATIENCE
            while not (shown and len(node.said) == 2):
                assert time.monotonic() < deadline, node.said
                robot.say(observations(contract, 1)[0], time.time_ns(), without=(first, second))
                for name, picture in turned.items():
                    message = robot.image(time.time_ns(), 96, 96, "rgb8", 288, picture.tobytes())
                    robot.publish(topics.camera_topic(name), message)
                executor.spin_once(timeout_sec=0.05)
                robot.listen(0.05)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    assert "turn it right by" in node.said[first] and "fits the training image" in node.said[second]
    assert shown[0].height == shown[0].width == 480 and shown[0].encoding == "rgb8"
