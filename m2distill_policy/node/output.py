"""What one cycle of the policy loop publishes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.command import ArmCommand
from m2distill_policy.node.diagnostics import CycleReport
from m2distill_policy.runtime.decision import Decision


@dataclass(frozen=True)
class Output:
    """The result of one cycle. Every cycle publishes a status.

    Attributes:
        decision: Decision of the policy server.
        stamp: Stamp in ns of the observation that was answered, or of the episode that begins; 0 without either.
        command_stamp: Stamp of the commands, ns.
        publishes_action: Whether ``~/action`` is published.
        command: What is sent to the arm.
        pose: Pose (6,) of the end effector at ``stamp``, in m and rad; None if unknown.
        report: Counters, warnings and diagnostics.
    """

    decision: Decision
    stamp: int
    command_stamp: int
    publishes_action: bool
    command: ArmCommand
    pose: NDArray[np.float64] | None
    report: CycleReport
