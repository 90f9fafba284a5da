"""What the policy server says every cycle."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class StatusCode(enum.IntEnum):
    """Why the server does what it does. The numbers go over the wire: never reuse one."""

    RUNNING = 0
    DISABLED = 1
    NO_INSTRUCTION = 2
    UNKNOWN_INSTRUCTION = 3
    WAITING = 4
    MISSING_OBSERVATION = 5
    STALE_OBSERVATION = 6
    REPEATED_STAMP = 7
    OUT_OF_ORDER = 8
    FUTURE_STAMP = 9
    FROZEN_VIEW = 10
    BAD_OBSERVATION = 11
    BAD_OUTPUT = 12
    ENGINE_FAILED = 13
    HALT_REQUESTED = 14
    HELD = 15

    @property
    def meaning(self) -> str:
        """One sentence, for tables and for whoever reads the number alone."""
        return _MEANINGS[self]

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong, as opposed to not being told to drive."""
        return self not in _NO_FAULTS


_MEANINGS = {
    StatusCode.RUNNING: "The policy drives.",
    StatusCode.DISABLED: "The policy answers but sends no command: it is not enabled.",
    StatusCode.NO_INSTRUCTION: "No instruction has been given.",
    StatusCode.UNKNOWN_INSTRUCTION: "The instruction is not one that the bundle knows.",
    StatusCode.WAITING: "The next observation has not come yet; it is not late enough to halt.",
    StatusCode.MISSING_OBSERVATION: "No observation comes.",
    StatusCode.STALE_OBSERVATION: "The observation is too old.",
    StatusCode.REPEATED_STAMP: "An observation carries the same stamp as the one before it.",
    StatusCode.OUT_OF_ORDER: "An observation is older than the one before it.",
    StatusCode.FUTURE_STAMP: "The observation's stamp lies in the future.",
    StatusCode.FROZEN_VIEW: "A view shows the same picture although the arm moved.",
    StatusCode.BAD_OBSERVATION: "A view or reading is missing, of a wrong form, not finite or out of range.",
    StatusCode.BAD_OUTPUT: "The network's answer cannot be used.",
    StatusCode.ENGINE_FAILED: "The network could not be run.",
    StatusCode.HALT_REQUESTED: "A halt was asked for.",
    StatusCode.HELD: "A fault has passed, but the policy resumes only when it is enabled again.",
}
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
    """The latest hot swap: its state, one sentence, and the bundle (identifier, or empty while unknown)."""

    state: SwapState = SwapState.NONE
    sentence: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class Status:
    """One cycle's status.

    code, sentence: why the server does what it does; stamp: of the observation answered (s), None without one.
    motion: ``running``, ``halting`` or ``halted``. bundle: identifier of the network that answered.
    tasks: names of the tasks it has learned, in order. instruction: the present one, or "".
    window: how many steps the answer was based on, this one included (0 when there was no answer).
    latency: s from being handed the observation to the decision. overruns: decisions so far that took over one period.
    window_cleared: why the window was last cleared. swap: the latest hot swap. warning: a sentence that stays until
    its cause is gone (a provider's fall-back), or "".
    """

    code: StatusCode
    sentence: str
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
