"""What the policy node publishes: commands while the node is active; ``~/status`` and /diagnostics always."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from control_msgs.msg import GripperCommand
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from m2distill_msgs.msg import PolicyAction, PolicyStatus
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from visualization_msgs.msg import MarkerArray

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.other_publishers import LOOK_EVERY
from m2distill_policy.node.output import Output
from m2distill_policy.ros import qos
from m2distill_policy.ros.command_watch import CommandWatch
from m2distill_policy.ros.gripper import GripperDriver
from m2distill_policy.ros.markers import markers
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.settings.node import NodeSettings


class Outputs:
    """Publishers of a configured node. The publishers of commands publish only while the node is active.

    Args:
        report_gripper, gripper_lost: See :class:`GripperDriver`.
        publishers_changed, command_received: See :class:`CommandWatch`.
    """

    def __init__(
        self,
        node: LifecycleNode,
        contract: Contract,
        settings: NodeSettings,
        *,
        report_gripper: Callable[[str | None], None],
        gripper_lost: Callable[[], None],
        publishers_changed: Callable[[str, list[str]], None],
        command_received: Callable[[str], None],
    ) -> None:
        self._node = node
        self._contract = contract
        self._settings = settings
        profile = qos.lockstep() if settings.lockstep else qos.reliable(10)
        overriding = QoSOverridingOptions.with_default_policies()

        def command(kind: type, topic: str) -> LifecyclePublisher:
            here = topics.relative(topic, own=True)
            return node.create_lifecycle_publisher(kind, here, profile, qos_overriding_options=overriding)

        self._action = command(PolicyAction, topics.ACTION)
        self._twist = command(TwistStamped, topics.TWIST)
        self._target = command(PoseStamped, topics.TARGET_POSE)
        self._markers = command(MarkerArray, topics.MARKERS)
        self._commands = [self._action, self._twist, self._target, self._markers]
        self._gripper: LifecyclePublisher | None = None
        self._gripper_driver: GripperDriver | None = None
        effort = settings.arm.gripper.max_effort
        if settings.gripper.kind == "topic":
            self._gripper = command(GripperCommand, topics.GRIPPER_COMMAND)
            self._commands.append(self._gripper)
        else:
            self._gripper_driver = GripperDriver(
                node, settings.gripper, effort, problem=report_gripper, lost=gripper_lost
            )
        self._watch: CommandWatch | None = None
        self._watched = -LOOK_EVERY
        # There is no watch in lockstep, where the robot waits for each answer and there is no arm.
        if not settings.lockstep and not settings.loop.allow_other_publishers:
            kinds: dict[str, type] = {topics.TWIST: TwistStamped, topics.TARGET_POSE: PoseStamped}
            if self._gripper is not None:
                kinds[topics.GRIPPER_COMMAND] = GripperCommand
            self._watch = CommandWatch(
                node, kinds, publishers_changed=publishers_changed, command_received=command_received
            )
        self._frame = settings.frames.base if settings.frames is not None else contract.action.frame
        handshake = qos.latched() if settings.lockstep else qos.reliable(10)
        self._status: Publisher = node.create_publisher(
            PolicyStatus, topics.STATUS, handshake, qos_overriding_options=overriding
        )
        self._health: Publisher = node.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, 10)

    def close(self) -> None:
        """End the publishers."""
        if self._watch is not None:
            self._watch.close()
        for publisher in self._commands:
            self._node.destroy_lifecycle_publisher(publisher)
        if self._gripper_driver is not None:
            self._gripper_driver.close()
        self._node.destroy_publisher(self._status)
        self._node.destroy_publisher(self._health)

    def command(self, output: Output) -> None:
        """Publish the commands for the arm."""
        command, stamp, frame = output.command, output.command_stamp, self._frame
        if command.twist is not None:
            self._command(topics.TWIST, self._twist, MESSAGES.twist(command.twist, stamp, frame))
        if command.target_pose is not None:
            self._command(topics.TARGET_POSE, self._target, MESSAGES.pose(command.target_pose, stamp, frame))
        if command.gripper is not None and self._gripper is not None:
            effort = self._settings.arm.gripper.max_effort
            self._command(topics.GRIPPER_COMMAND, self._gripper, MESSAGES.gripper(command.gripper, effort))
        elif command.gripper is not None and self._gripper_driver is not None:
            self._gripper_driver.command(command.gripper)

    def report(self, output: Output) -> None:
        """Publish what people and recorders need, ``~/status`` last."""
        if output.publishes_action:
            self._action.publish(MESSAGES.action(output, self._contract))
        self._status.publish(MESSAGES.status(output, self._contract))

    def _command(self, topic: str, publisher: LifecyclePublisher, message: Any) -> None:
        if self._watch is not None:
            self._watch.sent(topic, message)
        publisher.publish(message)

    def watch_others(self) -> None:
        """Check once a second who else publishes commands. Called after our own commands are published."""
        now = time.monotonic()
        if self._watch is not None and now - self._watched >= LOOK_EVERY:
            self._watched = now
            self._watch.check()

    def publish_markers(self, output: Output) -> None:
        """Publish the mixture for RViz if there is a subscriber. Called after the commands are published."""
        if self._markers.get_subscription_count():
            found = markers(output, self._contract, self._frame)
            if found is not None:
                self._markers.publish(found)

    def publish_health(self, output: Output, stamp: int) -> None:
        """Publish /diagnostics once a second. stamp: ns."""
        if output.report.health is not None:
            self._health.publish(MESSAGES.diagnostics(output.report.health, stamp))

    def publish_status_alone(self, output: Output) -> None:
        """Publish ~/status while the node is not active."""
        self._status.publish(MESSAGES.status(output, self._contract))
