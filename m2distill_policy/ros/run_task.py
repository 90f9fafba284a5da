"""The action ``~/run_task``: do one task until the timeout or until it is cancelled, then halt."""

from __future__ import annotations

import math
import time

from m2distill_msgs.action import RunTask
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode

from m2distill_policy.errors import UnknownInstructionError
from m2distill_policy.ros.policy_state import PolicyState
from m2distill_policy.ros.waiting import NextTurn
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.status import StatusCode

#: Faults for which a goal is refused, in addition to those that only ``~/enable`` ends. A new task cannot end them.
_REFUSES = frozenset({StatusCode.DISABLED, StatusCode.OTHER_PUBLISHER})


class RunTaskServer:
    """The action server. A new goal replaces the current one."""

    def __init__(self, node: LifecycleNode, state: PolicyState) -> None:
        self._node = node
        self._state = state
        self._newest = 0
        self._server = ActionServer(
            node,
            RunTask,
            "~/run_task",
            execute_callback=self._execute,
            goal_callback=self._goal,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )

    def _goal(self, goal: RunTask.Goal) -> GoalResponse:
        if not (math.isfinite(goal.timeout) and goal.timeout >= 0):
            self._node.get_logger().error(f"run_task: timeout is {goal.timeout} s; it must be at least 0 (no timeout)")
            return GoalResponse.REJECT
        if not goal.instruction:
            self._node.get_logger().error("run_task: the instruction is empty; give an instruction")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _refusal(self, goal: RunTask.Goal) -> str:
        """Return why ``goal`` cannot be done now, or "". Changes nothing; a current task continues."""
        server = self._state.server
        if server is None or not self._state.is_active:
            return "the node is not active; configure and activate it first"
        try:
            server.require_known(goal.instruction)
        except (UnknownInstructionError, EngineError) as error:
            return str(error)
        obstacles = server.obstacles(time.monotonic())
        found = server.blocking_fault or next((fault for fault in obstacles if fault.code in _REFUSES), None)
        if found is not None and found.code is StatusCode.DISABLED:
            return "the policy is not enabled; call ~/enable first"
        return "" if found is None else found.message

    async def _execute(self, handle: ServerGoalHandle) -> RunTask.Result:
        state, goal = self._state, handle.request
        began = time.monotonic()
        result = RunTask.Result()
        refusal, server = self._refusal(goal), state.server
        if not refusal and server is not None:
            try:
                server.set_instruction(goal.instruction, keep_on_refusal=True)
            except (UnknownInstructionError, EngineError) as error:
                refusal = str(error)
        if refusal or server is None:
            return self._refuse(handle, result, refusal)
        self._newest += 1
        mine = self._newest
        server.reset("a new task")
        server.release_halt()  # requested when the previous task ended
        seen, commands = state.last_output, 0
        while True:
            result.elapsed = time.monotonic() - began
            if mine != self._newest or server.instruction != goal.instruction:
                result.outcome, result.message = RunTask.Result.REPLACED, "Another task or instruction replaced it."
                handle.abort()
                break
            if handle.is_cancel_requested:
                server.halt("the task was cancelled")
                result.outcome, result.message = RunTask.Result.CANCELLED, "The task was cancelled; the arm halts."
                handle.canceled()
                break
            if not state.is_active:
                if state.server is server:
                    server.set_instruction("")  # otherwise the arm would continue once the node is active again
                result.outcome, result.message = RunTask.Result.FAULT, "The node is no longer active."
                handle.abort()
                break
            if goal.timeout and result.elapsed >= goal.timeout:
                server.halt(f"the task's timeout of {goal.timeout:g} s has passed")
                result.outcome, result.message = RunTask.Result.OVER, f"{goal.timeout:g} s have passed; the arm halts."
                handle.succeed()
                break
            if state.last_output is not None and state.last_output is not seen:
                seen = state.last_output
                commands += seen.command.is_sent
                status = seen.decision.status
                # A halt that somebody else requests ends a task too.
                held = server.blocking_fault
                if held is not None or status.code is StatusCode.HALT_REQUESTED:
                    # Enabling the policy later must not start the arm without a task and its timeout.
                    server.halt_after_enable(f"the task '{goal.instruction}' ended with a fault; send it again")
                    result.outcome = RunTask.Result.FAULT
                    result.message = held.message if held is not None else status.message
                    handle.abort()
                    break
                handle.publish_feedback(
                    RunTask.Feedback(elapsed=result.elapsed, status=status.code.name, message=status.message)
                )
            await NextTurn()
        result.commands = commands
        return result

    def _refuse(self, handle: ServerGoalHandle, result: RunTask.Result, message: str) -> RunTask.Result:
        result.outcome, result.message = RunTask.Result.REFUSED, message
        handle.abort()
        return result
