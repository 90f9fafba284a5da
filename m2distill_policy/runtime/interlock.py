"""The interlock: every reason not to drive the arm, apart from a bad observation.

It keeps the state of the operator's switches, and latched faults, which last until the policy is enabled again.
"""

from __future__ import annotations

import logging
from typing import Literal

from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, Watchdog

logger = logging.getLogger(__name__)

Resume = Literal["auto", "enable"]

NO_INSTRUCTION = Fault(StatusCode.NO_INSTRUCTION, "There is no instruction; send one.")
EMERGENCY_STOP = Fault(StatusCode.EMERGENCY_STOP, "The emergency stop is pressed; release it, then enable the policy.")
NO_POSE = Fault(
    StatusCode.NO_POSE,
    "The workspace is limited, but this observation has no pose of the end effector; check that the pose is published.",
)
SHADOW = Fault(StatusCode.DISABLED, "The policy is not enabled: it computes actions but sends no commands.")
#: Faults of an observation or of its answer, which are checked in each cycle.
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
        watchdog: Checks the dead-man switch.
        enabled: Whether commands are sent; False is shadow mode.
        resume: ``auto`` drives on when a fault has passed; ``enable`` latches every fault.
        needs_pose: Whether the limits need the end effector's pose.
    """

    def __init__(self, watchdog: Watchdog, *, enabled: bool, resume: Resume, needs_pose: bool) -> None:
        self._watchdog = watchdog
        self._resume = resume
        self._needs_pose = needs_pose
        self.enabled = enabled
        #: Whether the arm was driven since it was enabled. Before that, the arm may belong to another node.
        self.has_driven = False
        #: A fault that only :meth:`enable` clears, or a requested halt. While it is set, the arm stays halted.
        self.latched: Fault | None = None
        #: The halt that replaces the latched fault when that is cleared.
        self._next_latched: Fault | None = None
        #: Why the newest instruction was refused.
        self.refused_instruction: Fault | None = None
        #: Why commands are not sent yet, see :meth:`PolicyServer.set_not_ready`.
        self.not_ready: Fault | None = None
        #: Set while another node publishes commands.
        self.other_publisher: Fault | None = None
        self._is_stopped = False
        #: State of the newest cycle: its fault, what was missing in it, and whether its observation had a pose.
        self.newest_fault: Fault | None = None
        self.missing: Fault | None = None
        self.has_pose: bool | None = None

    # --- latched faults ----------------------------------------------------------------------------------------------

    @property
    def _may_latch(self) -> bool:
        """Whether a fault may be latched: nothing is latched yet, or only a requested halt, which is less severe."""
        return self.latched is None or self.latched.code is StatusCode.HALT_REQUESTED

    @property
    def blocking_fault(self) -> Fault | None:
        """The fault that keeps the arm halted until :meth:`enable`, or the pressed emergency stop, or None.

        A requested halt does not count, because a new instruction ends it too.
        """
        if self._is_stopped:
            return EMERGENCY_STOP
        return None if self._may_latch else self.latched

    def enable(self) -> None:
        """Send commands, and clear the latched fault."""
        self.enabled, self.has_driven = True, False
        self.latched, self._next_latched = self._next_latched, None

    def request_halt(self, reason: str) -> None:
        """Halt until :meth:`enable`, :meth:`release_halt` or a new instruction. A latched fault stays."""
        if self._may_latch:
            self.latched = _halt(reason)

    def release_halt(self) -> None:
        """End a requested halt. A latched fault stays."""
        self._next_latched = None
        if self.latched is not None and self.latched.code is StatusCode.HALT_REQUESTED:
            self.latched = None

    def request_halt_after_enable(self, reason: str) -> None:
        """Request a halt that begins once the latched fault is cleared, or now if there is none."""
        if self.latched is None and not self._is_stopped:
            self.latched = _halt(reason)
        else:
            self._next_latched = _halt(reason)

    def latch_pose_jump(self, message: str, *, has_instruction: bool) -> None:
        """Latch a jump of the pose, if the policy drives."""
        if self.enabled and has_instruction and self._may_latch:
            self.latched = Fault(StatusCode.BAD_POSE, message)

    def latch_for_resume(self, fault: Fault, *, has_instruction: bool) -> None:
        """Latch ``fault`` if ``resume`` is "enable" and the policy drives."""
        is_driving = self.enabled and has_instruction and self.latched is None
        if self._resume == "enable" and is_driving and fault.code.is_fault:
            self.latched = Fault(StatusCode.HELD, f"{fault.message} Enable the policy to go on.")

    def set_emergency_stop(self, is_pressed: bool) -> None:
        """Set the emergency stop.

        Releasing it leaves a latched fault, whatever ``resume`` is, because the arm must not move again without
        :meth:`enable`.
        """
        if is_pressed and not self._is_stopped:
            logger.warning("emergency stop")
        if self._is_stopped and not is_pressed:
            self.latched = Fault(StatusCode.HELD, "The emergency stop was released. Enable the policy to go on.")
        self._is_stopped = is_pressed

    # --- what prevents driving ---------------------------------------------------------------------------------------

    def check_switches(self, monotonic: float, *, is_halted: bool) -> Fault | None:
        """Return the fault of the operator's switches or of another publisher, or None.

        In shadow mode with a halted arm no switch is needed, and another node may drive.
        """
        if self._is_stopped:
            return EMERGENCY_STOP
        if not self.enabled and is_halted:
            return None
        return self._watchdog.check_deadman(monotonic) or self.other_publisher

    def check_task(self, *, has_instruction: bool) -> Fault | None:
        """Return the fault of a refused or missing instruction, or of shadow mode, else None."""
        if self.refused_instruction is not None:
            return self.refused_instruction
        if not has_instruction:
            return NO_INSTRUCTION
        return None if self.enabled else SHADOW

    def obstacles(self, monotonic: float, *, has_instruction: bool) -> list[Fault]:
        """Return every reason why the policy does not drive now, the most severe first."""
        found = self._lasting(monotonic, has_instruction=has_instruction)
        if self.latched is not None:
            found.insert(0, self.latched)
        if not self.enabled:
            found.append(SHADOW)
        return found

    def refusal_to_enable(self, monotonic: float, *, has_instruction: bool) -> str:
        """Return why :meth:`enable` would have no effect now, or "" if it would have one."""
        if self._is_stopped:
            return EMERGENCY_STOP.message
        lasting = self._lasting(monotonic, has_instruction=has_instruction)
        found = next((fault for fault in lasting if fault.code.is_fault), None)
        if self._resume == "enable" and has_instruction and found is not None:
            return f"{found.message} Then enable the policy."
        return ""

    def _lasting(self, monotonic: float, *, has_instruction: bool) -> list[Fault]:
        """Return the obstacles that remain after :meth:`enable`."""
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
