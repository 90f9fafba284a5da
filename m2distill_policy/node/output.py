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
        decision: the policy server's decision.
        stamp: ns, of the observation that was answered; 0 for a cycle without one; of the episode where one begins.
        command_stamp: ns, of the commands.
        publishes_action: whether ``~/action`` is published.
        command: what is sent to the arm.
        pose: (6,) of the end effector at ``stamp``, in m and rad; None if unknown.
        report: counters, warnings and diagnostics.
    """

    decision: Decision
    stamp: int
    command_stamp: int
    publishes_action: bool
    command: ArmCommand
    pose: NDArray[np.float64] | None
    report: CycleReport
