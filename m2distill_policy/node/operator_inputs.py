"""The operator's inputs: instruction, enable, emergency stop, dead-man switch; and other publishers of commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from m2distill_policy.errors import UnknownInstructionError
from m2distill_policy.node import topics
from m2distill_policy.node.other_publishers import OtherPublishers
from m2distill_policy.node.problems import Problems
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode

logger = logging.getLogger(__name__)


class OperatorInputs:
    """Passes the operator's inputs on to the policy server.

    Args:
        server: Receives the inputs.
        problems: Gets a message for each refusal and unsafe set-up.
        allow_other_publishers: Whether to drive even if another node publishes commands on the same topics.
        full_name: Converts a topic to its name after remapping, for messages.
        monotonic: Monotonic clock, s.
        measure_cameras: Called when the policy is enabled; measures again the rate of each camera that was too slow.
    """

    def __init__(
        self,
        server: PolicyServer,
        problems: Problems,
        *,
        allow_other_publishers: bool,
        full_name: Callable[[str], str],
        monotonic: Callable[[], float],
        measure_cameras: Callable[[], None],
    ) -> None:
        self._server = server
        self._problems = problems
        self._allow_other_publishers = allow_other_publishers
        self._full_name = full_name
        self._monotonic = monotonic
        self._measure_cameras = measure_cameras
        self._others = OtherPublishers()
        self._is_closed = False
        #: The newest value on the topic ~/enable.
        self._enable_message = False
        server.set_other_publisher(None)

    def close(self) -> None:
        """Refuse instructions and enabling from now on: the node shuts down, and both would end its final halt."""
        self._is_closed = True

    def set_instruction(self, instruction: str) -> None:
        """Set the instruction. A refusal is reported in every status. Does nothing once the node shuts down."""
        if self._is_closed:
            return
        try:
            self._server.set_instruction(instruction)
        except (UnknownInstructionError, EngineError) as error:
            logger.warning("%s", error)

    def enable(self, wanted: bool) -> tuple[bool, str]:
        """Enable commands, or ramp to a halt and continue in shadow mode.

        If a camera was too slow, enabling measures its rate again. While the node shuts down, or while a fault lasts,
        enabling is refused and nothing changes.

        Returns:
            Whether it was done, and a message: what still prevents commands, or why it was refused.
        """
        if self._is_closed:
            return False, "the node is shutting down and halts the arm"
        if not wanted:
            self._server.disable()
            return True, "ramping to a halt; the policy continues in shadow mode"
        self._others.release_quiet(self._monotonic())
        self._check_other_publishers()
        refusal = self._server.refusal_to_enable(self._monotonic())
        if refusal:
            return False, f"not enabled: {refusal}"
        self._measure_cameras()
        self._server.enable()
        obstacles = " ".join(dict.fromkeys(fault.message for fault in self._server.obstacles(self._monotonic())))
        return True, f"enabled, but no commands are sent yet: {obstacles}" if obstacles else "commands are sent"

    def enable_by_message(self, wanted: bool) -> None:
        """Enable or disable because of a message on ``~/enable``. A refusal is logged, and the status gives the reason.

        A repeated true has no effect until false is received. Otherwise a publisher that repeats its message would
        restart an arm that was halted in between.
        """
        is_repeated, self._enable_message = wanted and self._enable_message, wanted
        if is_repeated:
            codes = {fault.code for fault in self._server.obstacles(self._monotonic())}
            has_no_effect = self._server.blocking_fault is not None or codes & {
                StatusCode.DISABLED,
                StatusCode.HALT_REQUESTED,
            }
            message = f"True is repeated on {self._full_name(topics.ENABLE)}; to enable, send false, then true."
            self._problems.set("enable", message if has_no_effect else None)
            return
        self._problems.set("enable", None)
        is_done, message = self.enable(wanted)
        if not is_done:
            logger.warning("%s: %s", self._full_name(topics.ENABLE), message)

    def set_emergency_stop(self, pressed: bool, *, publishers: int = 1) -> None:
        """Set the emergency stop.

        Args:
            pressed: Whether the emergency stop is pressed.
            publishers: Number of publishers of its topic; with several, the stop is never released.
        """
        if not self._is_shared(topics.EMERGENCY_STOP, publishers) or pressed:
            self._server.set_emergency_stop(pressed)

    def set_dead_man(self, held: bool, *, publishers: int = 1) -> None:
        """Set the dead-man switch.

        Args:
            held: Whether the switch is held.
            publishers: Number of publishers of its topic; with several, the switch never counts as held.
        """
        is_shared = self._is_shared(topics.DEAD_MAN, publishers)
        self._server.set_dead_man(held and not is_shared, monotonic=self._monotonic())

    def _is_shared(self, topic: str, publishers: int) -> bool:
        """Return whether a switch has several publishers, and report it.

        Messages do not show their sender, so one publisher could release what another has pressed.
        """
        is_shared = publishers > 1
        self._problems.set(
            f"publishers of {topic}",
            f"{publishers} programs publish {self._full_name(topic)}, and messages do not show which one sent them. So "
            "an emergency stop stays pressed, and a dead-man switch counts as released. Use one publisher."
            if is_shared
            else None,
        )
        return is_shared

    def set_other_publishers(self, topic: str, names: Sequence[str]) -> None:
        """Set the names of other nodes that publish commands on ``topic``. Call it once a second, even without any."""
        self._others.set_publishers(self._full_name(topic), names)
        self._check_other_publishers()

    def other_command(self, topic: str) -> None:
        """Record that another node has sent a command on ``topic``."""
        self._others.add_command(self._full_name(topic), self._monotonic())
        self._check_other_publishers()

    def _check_other_publishers(self) -> None:
        if self._allow_other_publishers:
            return
        if not self._server.enabled:  # another node may drive meanwhile, if it stops before this one starts
            self._others.release_quiet(self._monotonic())
        self._server.set_other_publisher(self._others.fault)
        self._problems.set("other publishers", self._others.warning if self._server.enabled else None)
