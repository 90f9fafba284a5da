"""From a decision to what is sent to an arm. Every command of every transport comes from here, checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.node.gripper import GripperProfile, GripperSwitch
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.command_check import CommandCheck
from m2distill_policy.runtime.safety import set_point_inside
from m2distill_policy.runtime.server import Decision, PolicyServer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmCommand:
    """What one cycle sends to the arm; None each where it is not sent.

    twist: (6,) m/s and rad/s; target: (6,) m and rad; both in the contract's frame. gripper: position in its own unit.
    trouble: why there is no ``target`` although there is a pose, or None.
    """

    twist: NDArray[np.float64] | None = None
    target: NDArray[np.float64] | None = None
    gripper: float | None = None
    trouble: str | None = None


class CommandMaker:
    """Makes commands from a server's decisions, and lets none through that is not finite and inside the limits."""

    def __init__(self, server: PolicyServer, gripper: GripperProfile) -> None:
        self._server = server
        self._profile = gripper
        self._gripper = GripperSwitch(gripper)
        self._check = self._checked_with(server.contract)

    def _checked_with(self, contract: Contract) -> CommandCheck:
        positions = (self._profile.open_position, self._profile.closed_position)
        return CommandCheck(self._server.limits, self._server.speeds, contract, positions)

    def forget_gripper(self) -> None:
        """What the gripper does is not known: the next clear wish is sent again."""
        self._gripper.forget()

    def make(
        self, decision: Decision, pose: NDArray[np.float64] | None, *, send: bool, set_point: bool
    ) -> tuple[Decision, ArmCommand]:
        """The command for ``decision``; and the decision, or the halt that replaces it where the command is refused.

        Args:
            pose: (6,) of the end effector, which the set-point is relative to; None where it is not known.
            send: whether commands go out in this cycle.
            set_point: whether a set-point is wanted.
        """
        # One swap of the bundle later the contract is another one; between two cycles only.
        contract, limits = self._server.contract, self._server.limits
        if self._check.contract is not contract:
            self._check = self._checked_with(contract)
        command = ArmCommand()
        try:
            if send:
                twist = drive.twist(decision.action, contract)
                target = trouble = None
                if pose is not None and set_point:
                    wanted = drive.set_point(pose, decision.action, contract)
                    target = set_point_inside(wanted, pose, limits, contract)
                    if target is None:
                        trouble = (
                            f"The end effector is at {np.round(pose[:3], 3).tolist()} m, outside the workspace "
                            f"{limits.workspace_low} to {limits.workspace_high} m and farther than one action reaches; "
                            "~/target_pose is not published: bring the arm back into the workspace."
                        )
                command = ArmCommand(twist, target, self._gripper.update(drive.gripper(decision.action)), trouble)
            why = self._check.trouble(decision.action, command.twist, command.target, command.gripper, pose)
        except (ArithmeticError, TypeError, ValueError, IndexError, cv2.error) as error:
            why = f"it could not be made ({type(error).__name__}: {error})"
        if why is None:
            return decision, command
        logger.error("a command was not sent: %s", why)
        self._gripper.forget()
        return self._server.refuse_command(decision, why), ArmCommand(twist=np.zeros(6) if send else None)
