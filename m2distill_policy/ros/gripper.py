"""Command the gripper through the action of its driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from control_msgs.action import GripperCommand as GripperCommandAction
from control_msgs.action import ParallelGripperCommand
from control_msgs.msg import GripperCommand
from rclpy.action import ActionClient
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future
from sensor_msgs.msg import JointState

from m2distill_policy.settings.node import GripperInterface


class GripperDriver:
    """Sends goals to the action server of a gripper's driver, without waiting for it.

    Args:
        max_effort: Largest effort in N; 0 for the gripper's default.
        problem: Called with a message when the gripper does not accept a command, and with None when it does again.
        lost: Called when a command was not accepted, so that it is sent again.
    """

    def __init__(
        self,
        node: LifecycleNode,
        interface: GripperInterface,
        max_effort: float,
        *,
        problem: Callable[[str | None], None],
        lost: Callable[[], None],
    ) -> None:
        self._interface = interface
        self._max_effort = max_effort
        self._report, self._lost = problem, lost
        self._parallel = interface.kind == "parallel_gripper_command"
        kind: Any = ParallelGripperCommand if self._parallel else GripperCommandAction
        self._client = ActionClient(node, kind, interface.action)

    def close(self) -> None:
        """End the client."""
        self._client.destroy()

    def command(self, position: float) -> None:
        """Send a goal for ``position`` (m or rad). The driver replaces a goal that is still active."""
        if not self._client.server_is_ready():
            self._failed(f"No gripper driver offers the action '{self._interface.action}'; start the driver.")
            return
        self._client.send_goal_async(self._goal(position)).add_done_callback(self._answered)

    def _goal(self, position: float) -> Any:
        if not self._parallel:
            return GripperCommandAction.Goal(command=GripperCommand(position=position, max_effort=self._max_effort))
        effort = [self._max_effort] if self._max_effort else []
        command = JointState(name=[self._interface.joint], position=[position], effort=effort)
        return ParallelGripperCommand.Goal(command=command)

    def _answered(self, future: Future) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            self._failed(f"The gripper driver at '{self._interface.action}' refused a command; check its log.")
            return
        self._report(None)
        # The result is ignored: a grasp of an object never reaches its goal, and drivers differ in whether that is a
        # success.
        handle.get_result_async().add_done_callback(self._ended)

    def _ended(self, future: Future) -> None:
        result = future.result()
        if result is not None and result.status == GoalStatus.STATUS_ABORTED and not result.result.stalled:
            self._report(f"The gripper driver at '{self._interface.action}' aborted a command; check its log.")

    def _failed(self, message: str) -> None:
        self._report(message)
        self._lost()
