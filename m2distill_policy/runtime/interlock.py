"""The interlock: what prevents the arm from being driven, apart from the observation itself.

It holds the operator's switches, and latched faults: those that last until the policy is enabled again.
"""

from __future__ import annotations

import logging
from typing import Literal

from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, Watchdog

logger = logging.getLogger(__name__)

Resume = Literal["auto", "enable"]

NO_INSTRUCTION = Fault(StatusCode.NO_INSTRUCTION, "No instruction has been given; send one.")
EMERGENCY_STOP = Fault(StatusCode.EMERGENCY_STOP, "The emergency stop is pressed; release it, then enable the policy.")
NO_POSE = Fault(
    StatusCode.NO_POSE,
    "The workspace is limited and no pose of the end effector belongs to this observation; check that it is published.",
)
SHADOW = Fault(StatusCode.DISABLED, "The policy is not enabled: it answers, but sends no command.")
#: Faults of the observation and its answer: each cycle finds them anew.
_OF_OBSERVATIONS = frozenset(StatusCode) - {
    StatusCode.RUNNING,
    StatusCode.DISABLED,
    StatusCode.NO_INSTRUCTION,
    StatusCode.UNKNOWN_INSTRUCTION,
    StatusCode.WAITING,
    StatusCode.MISSING_OBSERVATION,
    StatusCode.HALT_REQUESTED,
    StatusCode.HELD,
    StatusCode.EMERGENCY_STOP,
    StatusCode.DEAD_MAN,
    StatusCode.DEADLINE_MISSED,
    StatusCode.FROZEN_JOINTS,
    StatusCode.OTHER_PUBLISHER,
    StatusCode.BAD_COMMAND,
    StatusCode.BAD_POSE,
}


class Interlock:
    """Decides whether the arm may be driven. Not thread-safe: the policy server holds its lock.

    Args:
        watchdog: knows the dead-man switch.
        enabled: whether commands are sent; False is shadow mode.
        resume: ``auto`` drives on when a fault has passed; ``enable`` latches every fault.
        needs_pose: whether the limits need the end effector's pose.
    """

    def __init__(self, watchdog: Watchdog, *, enabled: bool, resume: Resume, needs_pose: bool) -> None:
        self._watchdog = watchdog
        self._resume = resume
        self._needs_pose = needs_pose
        self.enabled = enabled
        #: A fault that only :meth:`enable` clears, or a requested halt; the arm stays halted meanwhile.
        self.latched: Fault | None = None
        #: What replaces it when it is cleared.
        self._next_latched: Fault | None = None
        #: Why the newest instruction was refused.
        self.refused_instruction: Fault | None = None
        #: Why the answers are not sent yet, see :meth:`PolicyServer.set_not_ready`.
        self.not_ready: Fault | None = None
        #: Why another publisher of commands keeps this policy from driving.
        self.other_publisher: Fault | None = None
        self._is_stopped = False
        #: What the newest cycle reported, what was missing in it, and whether its observation had a pose.
        self.newest_fault: Fault | None = None
        self.missing: Fault | None = None
        self.has_pose: bool | None = None

    # --- latched faults ----------------------------------------------------------------------------------------------

    @property
    def _may_latch(self) -> bool:
        """Whether nothing is latched but a requested halt, which every fault outranks."""
        return self.latched is None or self.latched.code is StatusCode.HALT_REQUESTED

    @property
    def blocking_fault(self) -> Fault | None:
        """The fault that keeps the arm halted until :meth:`enable`, the pressed emergency stop included, or None. A
        requested halt does not count: a new instruction ends it too."""
        if self._is_stopped:
            return EMERGENCY_STOP
        return None if self._may_latch else self.latched

    def enable(self) -> None:
        """Send commands, and clear the latched fault."""
        self.enabled = True
        self.latched, self._next_latched = self._next_latched, None

    def request_halt(self, reason: str) -> None:
        """Halt until :meth:`enable`, :meth:`release_halt` or a new instruction. A stricter latched fault stays."""
        if self._may_latch:
            self.latched = _halt(reason)

    def release_halt(self) -> None:
        """End a requested halt; a latched fault stays."""
        self._next_latched = None
        if self.latched is not None and self.latched.code is StatusCode.HALT_REQUESTED:
            self.latched = None

    def request_halt_after_enable(self, reason: str) -> None:
        """Request a halt that begins once the latched fault is cleared; now, where there is none."""
        if self.latched is None and not self._is_stopped:
            self.latched = _halt(reason)
        else:
            self._next_latched = _halt(reason)

    def latch_pose_jump(self, message: str, *, has_instruction: bool) -> None:
        """Latch a jump of the pose, where the policy drives."""
        if self.enabled and has_instruction and self._may_latch:
            self.latched = Fault(StatusCode.BAD_POSE, message)

    def latch_for_resume(self, fault: Fault, *, has_instruction: bool) -> None:
        """Latch ``fault`` where ``resume`` is "enable" and the policy drives."""
        is_driving = self.enabled and has_instruction and self.latched is None
        if self._resume == "enable" and is_driving and fault.code.is_fault:
            self.latched = Fault(StatusCode.HELD, f"{fault.message} Enable the policy to go on.")

    def set_emergency_stop(self, is_pressed: bool) -> None:
        """Set the emergency stop. Released, it leaves a latched fault, whatever ``resume`` says: nobody must be
        surprised by an arm that moves again."""
        if is_pressed and not self._is_stopped:
            logger.warning("emergency stop")
        if self._is_stopped and not is_pressed:
            self.latched = Fault(StatusCode.HELD, "The emergency stop was released. Enable the policy to go on.")
        self._is_stopped = is_pressed

    # --- what prevents driving ---------------------------------------------------------------------------------------

    def check_switches(self, monotonic: float, *, is_halted: bool) -> Fault | None:
        """What the operator's switches, and another publisher, say against moving; None for nothing.

        In shadow mode with a halted arm nobody has to hold a switch, and another node may drive.
        """
        if self._is_stopped:
            return EMERGENCY_STOP
        if not self.enabled and is_halted:
            return None
        return self._watchdog.check_deadman(monotonic) or self.other_publisher

    def check_task(self, *, has_instruction: bool) -> Fault | None:
        """Why there is nothing to drive for: no instruction, or shadow mode; None where there is."""
        if self.refused_instruction is not None:
            return self.refused_instruction
        if not has_instruction:
            return NO_INSTRUCTION
        return None if self.enabled else SHADOW

    def obstacles(self, monotonic: float, *, has_instruction: bool) -> list[Fault]:
        """Everything that keeps the policy from driving now, the strictest first."""
        found = self._lasting(monotonic, has_instruction=has_instruction)
        if self.latched is not None:
            found.insert(0, self.latched)
        if not self.enabled:
            found.append(SHADOW)
        return found

    def refusal_to_enable(self, monotonic: float, *, has_instruction: bool) -> str:
        """Why :meth:`enable` would have no effect now; "" where it would have one."""
        if self._is_stopped:
            return EMERGENCY_STOP.message
        lasting = self._lasting(monotonic, has_instruction=has_instruction)
        found = next((fault for fault in lasting if fault.code.is_fault), None)
        if self._resume == "enable" and has_instruction and found is not None:
            return f"{found.message} Then enable the policy."
        return ""

    def _lasting(self, monotonic: float, *, has_instruction: bool) -> list[Fault]:
        """:meth:`obstacles` without those that :meth:`enable` ends."""
        found = [EMERGENCY_STOP] if self._is_stopped else []
        deadman = self._watchdog.check_deadman(monotonic)
        found += [fault for fault in (deadman, self.other_publisher) if fault is not None]
        if self.refused_instruction is not None:
            found.append(self.refused_instruction)
        elif not has_instruction:
            found.append(NO_INSTRUCTION)
        newest = self.newest_fault
        if self.missing is not None:
            found.append(self.missing)
        elif newest is not None and newest.code in _OF_OBSERVATIONS:
            found.append(newest)
        elif self._needs_pose and self.has_pose is False:
            found.append(NO_POSE)
        if self.not_ready is not None:
            found.append(self.not_ready)
        return found


def _halt(reason: str) -> Fault:
    return Fault(StatusCode.HALT_REQUESTED, f"Halted: {reason}.")
