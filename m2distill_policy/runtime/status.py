"""The status that the policy server reports in every cycle."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class StatusCode(enum.IntEnum):
    """The state of the policy, or its fault. The numbers go over the wire: never reuse one."""

    #: The policy drives.
    RUNNING = 0
    #: The policy answers but sends no command: it is not enabled.
    DISABLED = 1
    #: No instruction has been given.
    NO_INSTRUCTION = 2
    #: The instruction is not one that the bundle knows.
    UNKNOWN_INSTRUCTION = 3
    #: The next observation has not come yet; it is not late enough to halt.
    WAITING = 4
    #: No observation comes.
    MISSING_OBSERVATION = 5
    #: The observation is too old.
    STALE_OBSERVATION = 6
    #: An observation carries the same stamp as the one before it.
    REPEATED_STAMP = 7
    #: An observation is older than the one before it.
    OUT_OF_ORDER = 8
    #: The observation's stamp lies in the future.
    FUTURE_STAMP = 9
    #: A view shows no new image although the arm moved.
    FROZEN_VIEW = 10
    #: A view or reading is missing, of a wrong form, not finite, out of range or contradicted.
    BAD_OBSERVATION = 11
    #: The network's answer cannot be used.
    BAD_OUTPUT = 12
    #: The network could not be run.
    ENGINE_FAILED = 13
    #: A halt was asked for.
    HALT_REQUESTED = 14
    #: A fault has passed, but the policy resumes only when it is enabled again.
    HELD = 15
    #: The emergency stop is pressed.
    EMERGENCY_STOP = 16
    #: The dead-man switch is not held, or sends nothing any more.
    DEAD_MAN = 17
    #: Decisions took longer than a period several times in a row.
    DEADLINE_MISSED = 18
    #: The workspace is limited and where the end effector is is not known.
    NO_POSE = 19
    #: Every stream comes, but their stamps are too far apart to belong together, or one comes too slowly.
    UNSYNCHRONISED = 20
    #: The joint readings do not change although motion is commanded.
    FROZEN_JOINTS = 21
    #: A command was not finite or outside the limits just before it would have been sent; it was not.
    BAD_COMMAND = 22
    #: The end effector's pose is one that it cannot have reached, or does not change although motion is commanded.
    BAD_POSE = 23
    #: Another publisher sends commands to the same arm.
    OTHER_PUBLISHER = 24

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong, as opposed to a policy that is not enabled or has no instruction."""
        return self not in _NO_FAULTS


_NO_FAULTS = frozenset({StatusCode.RUNNING, StatusCode.DISABLED, StatusCode.NO_INSTRUCTION, StatusCode.WAITING})


class SwapState(enum.IntEnum):
    """Where the latest hot swap stands. The numbers go over the wire: never reuse one."""

    NONE = 0
    LOADING = 1
    READY = 2
    SWITCHED = 3
    REFUSED = 4


@dataclass(frozen=True)
class SwapReport:
    """The latest hot swap: its state, one message, and the bundle (identifier, or empty while unknown)."""

    state: SwapState = SwapState.NONE
    message: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class Status:
    """One cycle's status.

    code, message: the state or fault, and what to do; stamp: of the observation answered (s), None without one.
    motion: ``running``, ``halting`` or ``halted``. bundle: identifier of the network that answered.
    tasks: names of the tasks it has learned, in order. instruction: the present one, or "".
    window: how many steps the answer was based on, this one included (0 when there was no answer).
    latency: s from being handed the observation to the decision. overruns: decisions so far that took over one period.
    window_cleared: why the window was last cleared. swap: the latest hot swap. warning: a message that stays until
    its cause is gone (a provider's fall-back), or "".
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
