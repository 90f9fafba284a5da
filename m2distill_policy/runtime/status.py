"""The status that the policy server reports in every cycle."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class StatusCode(enum.IntEnum):
    """The state of the policy, or its fault. The numbers are part of the messages: never reuse one."""

    #: The policy drives.
    RUNNING = 0
    #: Shadow mode: the policy answers but sends no commands, because it is not enabled.
    DISABLED = 1
    #: There is no instruction.
    NO_INSTRUCTION = 2
    #: The bundle does not know the instruction.
    UNKNOWN_INSTRUCTION = 3
    #: The next observation has not arrived yet; it is not late enough to halt.
    WAITING = 4
    #: No observation arrives.
    MISSING_OBSERVATION = 5
    #: The observation is too old.
    STALE_OBSERVATION = 6
    #: An observation has the same stamp as the one before it.
    REPEATED_STAMP = 7
    #: An observation is older than the one before it.
    OUT_OF_ORDER = 8
    #: The observation's stamp is in the future.
    FUTURE_STAMP = 9
    #: A view has no new image although the arm moved.
    FROZEN_VIEW = 10
    #: An image or joint position is missing, has a wrong shape, is not finite, out of range or contradicted.
    BAD_OBSERVATION = 11
    #: The network's answer cannot be used.
    BAD_OUTPUT = 12
    #: The network failed to run.
    ENGINE_FAILED = 13
    #: A halt was requested.
    HALT_REQUESTED = 14
    #: A fault has passed, but the policy resumes only when it is enabled again.
    HELD = 15
    #: The emergency stop is pressed.
    EMERGENCY_STOP = 16
    #: The dead-man switch is not held, or sends nothing.
    DEAD_MAN = 17
    #: Decisions took longer than a period several times in a row.
    DEADLINE_MISSED = 18
    #: The workspace is limited, but the end effector's pose is not known.
    NO_POSE = 19
    #: All streams arrive, but their stamps are too far apart for one observation, or one stream is too slow.
    UNSYNCHRONISED = 20
    #: The joint positions do not change although motion is commanded.
    FROZEN_JOINTS = 21
    #: A command was not finite or outside the limits in the check before sending; it was not sent.
    BAD_COMMAND = 22
    #: The end effector's pose is impossible, or does not change although motion is commanded.
    BAD_POSE = 23
    #: Another publisher sends commands to the same arm.
    OTHER_PUBLISHER = 24

    @property
    def is_fault(self) -> bool:
        """Whether this is a fault; waiting, shadow mode and a missing instruction are not."""
        return self not in _NO_FAULTS


_NO_FAULTS = frozenset({StatusCode.RUNNING, StatusCode.DISABLED, StatusCode.NO_INSTRUCTION, StatusCode.WAITING})


class SwapState(enum.IntEnum):
    """State of the latest hot swap. The numbers are part of the messages: never reuse one."""

    NONE = 0
    LOADING = 1
    READY = 2
    SWITCHED = 3
    REFUSED = 4


@dataclass(frozen=True)
class SwapReport:
    """The latest hot swap: its state, one message, and the bundle's identifier (empty while unknown)."""

    state: SwapState = SwapState.NONE
    message: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class Status:
    """The status of one cycle.

    Attributes:
        code: State or fault.
        message: What the code means and what to do.
        stamp: Stamp of the observation that was answered, s; None without one.
        motion: ``running``, ``halting`` or ``halted``.
        bundle: Identifier of the bundle that answered.
        tasks: Names of the tasks that the bundle has learned, in order.
        instruction: Current instruction, or "".
        window: Number of steps that the answer is based on, including this one; 0 without an answer.
        latency: Seconds from the observation to the decision.
        overruns: Decisions so far that took longer than a period.
        window_cleared: Why the window was last cleared.
        swap: The latest hot swap.
        warning: A message that stays until its cause is gone, such as a provider's fall-back, or "".
    """

    code: StatusCode
    message: str
    stamp: float | None
    motion: str
    bundle: str
    tasks: tuple[str, ...]
    instruction: str
    window: int
    latency: float
    overruns: int
    window_cleared: str
    swap: SwapReport
    warning: str
