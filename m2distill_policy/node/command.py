"""Make the arm's commands from a decision. Every command of every transport is made and checked here."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.node.gripper import GripperProfile, GripperSwitch
from m2distill_policy.node.pose_source import PoseSource
from m2distill_policy.node.problems import Problems
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.command_check import CommandCheck
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.safety import Motion, set_point_inside
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmCommand:
    """What one cycle sends to the arm.

    Attributes:
        is_sent: Whether this cycle sends commands. If not, ``twist``, ``target_pose`` and ``gripper`` are None.
        twist: Twist (6,) in m/s and rad/s, in the contract's frame.
        target_pose: Set-point (6,): m and rad, in the contract's frame.
        gripper: Position in m or rad; None while it does not change.
        gripper_count: Number of gripper commands so far; in lockstep, since the episode began.
    """

    is_sent: bool
    twist: NDArray[np.float64] | None = None
    target_pose: NDArray[np.float64] | None = None
    gripper: float | None = None
    gripper_count: int = 0


class CommandMaker:
    """Makes commands from the server's decisions. Commands that are not finite or not within the limits are not sent.

    Args:
        server: Gives the contract and the limits, and replaces a decision whose command is refused.
        gripper: Positions and threshold of the gripper.
        poses: Poses of the end effector, to which a set-point is relative.
        problems: Gets a message while set-points are missing.
    """

    def __init__(self, server: PolicyServer, gripper: GripperProfile, poses: PoseSource, problems: Problems) -> None:
        self._server = server
        self._poses = poses
        self._problems = problems
        self._profile = gripper
        self._gripper = GripperSwitch(gripper)
        self._gripper_count = 0
        self._check = self._new_check(server.contract)
        #: Whether the pose has jumped since the policy last drove. If so, the ramp to a halt must not use the pose.
        self._has_jumped = False
        #: Whether the newest command moved the arm, or ended a ramp.
        self._was_moving = False

    def _new_check(self, contract: Contract) -> CommandCheck:
        positions = (self._profile.open_position, self._profile.closed_position)
        return CommandCheck(self._server.limits, self._server.speeds, contract, positions)

    def reset_gripper(self) -> None:
        """Send the next gripper command even if it equals the last one, because the gripper's position is not known.

        An action within the dead band still gives no command.
        """
        self._gripper.reset()

    def begin_episode(self) -> None:
        """Count gripper commands from 0, and send the next one even if it equals the last one."""
        self._gripper.reset()
        self._gripper_count = 0

    def note_jump(self) -> None:
        """Send no set-point until the policy drives again, because the pose has jumped."""
        self._has_jumped = True

    def make(
        self,
        decision: Decision,
        *,
        is_sent: bool,
        pose: NDArray[np.float64] | None,
        pose_stamp: int,
        always_set_point: bool,
    ) -> tuple[Decision, ArmCommand]:
        """Make and check the command for ``decision``.

        Args:
            decision: Decision of the policy server.
            is_sent: Whether this cycle sends commands.
            pose: Pose (6,) of the end effector at ``pose_stamp``; None if unknown.
            pose_stamp: Stamp in ns for which the set-point needs a pose; 0 for the newest pose.
            always_set_point: Whether to send a set-point also while the arm stays halted.

        Returns:
            The decision, or the halt that replaces it if the command is refused; and the command.
        """
        self._has_jumped = self._has_jumped and decision.status.code is not StatusCode.RUNNING
        wants_set_point = False
        if is_sent:
            # The controller keeps the last set-point. If a halted arm got a new set-point from its current pose in
            # every cycle, a load would push it away little by little.
            moves = self._was_moving or decision.status.motion != Motion.HALTED.value
            wants_set_point = (always_set_point or moves) and not self._has_jumped
            is_lacking = pose is None and self._poses.expected
            self._problems.set(
                "pose",
                f"No pose on {self._poses.place} belongs to this cycle ({self._poses.absence(pose_stamp)}), so "
                "~/target_pose is not published; publish poses at the images' stamps or more often, see docs/ros2.md."
                if is_lacking
                else None,
                log_key="no pose",
            )
        self._problems.set("pose refused", self._poses.refused, log_key="a pose refused")
        decision, command = self._checked(decision, pose if wants_set_point else None, pose, is_sent=is_sent)
        self._was_moving = decision.status.motion != Motion.HALTED.value
        return decision, command

    def _checked(
        self,
        decision: Decision,
        start: NDArray[np.float64] | None,
        pose: NDArray[np.float64] | None,
        *,
        is_sent: bool,
    ) -> tuple[Decision, ArmCommand]:
        """Make the command for ``decision`` and check it.

        Args:
            decision: Decision of the policy server.
            start: Pose (6,) to which the set-point is relative; None sends no set-point.
            pose: Pose (6,) of the end effector; None if unknown.
            is_sent: Whether this cycle sends commands.

        Returns:
            As :meth:`make`.
        """
        # A hot swap may change the contract between two cycles.
        contract = self._server.contract
        if self._check.contract is not contract:
            self._check = self._new_check(contract)
        command = ArmCommand(is_sent)
        problem = None
        try:
            if is_sent:
                twist = drive.twist(decision.action, contract)
                target = None
                if start is not None:
                    target, problem = self._set_point(decision, start, contract)
                gripper = self._gripper.update(drive.gripper(decision.action))
                command = dataclasses.replace(command, twist=twist, target_pose=target, gripper=gripper)
            why = self._check.problem(decision.action, command.twist, command.target_pose, command.gripper, pose)
        except (ArithmeticError, TypeError, ValueError, IndexError, cv2.error) as error:
            why = f"it could not be computed ({type(error).__name__}: {error})"
        if why is not None:
            logger.error("a command was not sent: %s", why)
            problem = None
            self._gripper.reset()
            decision = self._server.refuse_command(decision, why)
            command = ArmCommand(is_sent, twist=np.zeros(6) if is_sent else None)
        if is_sent:
            self._problems.set("workspace", problem, log_key="outside the workspace")
        self._gripper_count += command.gripper is not None
        return decision, dataclasses.replace(command, gripper_count=self._gripper_count)

    def _set_point(
        self, decision: Decision, pose: NDArray[np.float64], contract: Contract
    ) -> tuple[NDArray[np.float64] | None, str | None]:
        """Return the set-point (6,) within the workspace and None; or None and the reason why there is no set-point."""
        limits = self._server.limits
        target = set_point_inside(drive.set_point(pose, decision.action, contract), pose, limits, contract)
        if target is not None:
            return target, None
        return None, (
            f"The end effector is at {np.round(pose[:3], 3).tolist()} m, outside the workspace "
            f"{limits.workspace_low} to {limits.workspace_high} m and farther than one action reaches; "
            "~/target_pose is not published: bring the arm back into the workspace."
        )
