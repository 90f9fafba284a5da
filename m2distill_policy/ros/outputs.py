"""What the policy node publishes. Commands go out while the node is active; ``~/status`` and /diagnostics always."""

from __future__ import annotations

from control_msgs.msg import GripperCommand
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from m2distill_msgs.msg import PolicyAction, PolicyStatus
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos_overriding_options import QoSOverridingOptions

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.cycle import Output
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.ros.parameters import NodeSettings


class Outputs:
    """Publishers of a configured node; the command publishers are managed by its lifecycle."""

    def __init__(self, node: LifecycleNode, contract: Contract, settings: NodeSettings) -> None:
        self._node = node
        self._contract = contract
        self._settings = settings
        profile = qos.lockstep() if settings.lockstep else qos.reliable(10)
        overriding = QoSOverridingOptions.with_default_policies()

        def command(kind: type, topic: str) -> LifecyclePublisher:
            return node.create_lifecycle_publisher(kind, topic, profile, qos_overriding_options=overriding)

        self._action = command(PolicyAction, topics.ACTION)
        self._twist = command(TwistStamped, topics.TWIST)
        self._target = command(PoseStamped, topics.TARGET_POSE)
        self._gripper = command(GripperCommand, topics.GRIPPER_COMMAND)
        self._commands = [self._action, self._twist, self._target, self._gripper]
        handshake = qos.latched() if settings.lockstep else qos.reliable(10)
        self._status: Publisher = node.create_publisher(
            PolicyStatus, topics.STATUS, handshake, qos_overriding_options=overriding
        )
        self._health: Publisher = node.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, 10)

    def close(self) -> None:
        """End the publishers."""
        for publisher in self._commands:
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._status)
        self._node.destroy_publisher(self._health)

    def publish(self, output: Output) -> None:
        """Everything that a cycle says, ``~/status`` last."""
        frame, now = self._contract.action.frame, output.sent
        if output.twist is not None:
            self._twist.publish(MESSAGES.twist(output.twist, now, frame))
        if output.target is not None:
            self._target.publish(MESSAGES.pose(output.target, now, frame))
        if output.gripper is not None:
            self._gripper.publish(MESSAGES.gripper(output.gripper, self._settings.arm.gripper.max_effort))
        if output.action:
            self._action.publish(MESSAGES.action(output, self._contract))
        self._status.publish(MESSAGES.status(output, self._contract))

    def publish_health(self, output: Output, stamp: int) -> None:
        """/diagnostics, where it is time; stamp: ns."""
        if output.health is not None:
            self._health.publish(MESSAGES.diagnostics(output.health, stamp))

    def publish_status_alone(self, output: Output) -> None:
        """While the node is not active."""
        self._status.publish(MESSAGES.status(output, self._contract))
