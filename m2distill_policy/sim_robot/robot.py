"""A simulated robot without its transport. It has the same interface as a real robot.

It follows one of three streams of commands:

* ``action`` (drive ``osc``): ``~/action``, the normalised set-point delta, as in training;
* ``target_pose`` (drive ``osc``): ``~/target_pose`` and the gripper topic, as a Cartesian impedance controller does;
* ``twist`` (drive ``velocity``): ``~/twist`` and the gripper topic, as a velocity-driven arm does.

In real time, the simulation advances by one period every period, with the newest command. After ``command_timeout``
without a command, the arm stops. In lockstep, the next observation is sent only after the ``~/status`` that answers the
last one, and an episode begins only after the ``~/status`` that answers its ``~/episode``.

Plain DDS and ROS 2 each implement a :class:`Link`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ConfigError, TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.observation import Observation
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.sim.env import SimEnv
from m2distill_policy.sim_robot.link import FOLLOWED, Command, Follow, Link, StatusSnapshot

logger = logging.getLogger(__name__)

#: Nanoseconds between the last stamp of an episode and the first stamp of the next one: longer than any gap within an
#: episode.
_BETWEEN_EPISODES = 1_000_000_000
#: Seconds without an answer after which a lockstep robot sends its observation again. Writers and readers discover each
#: other one side at a time, so the first message on a topic can be lost, even on a reliable topic.
_REPEAT_AFTER = 2.0
#: Periods without observations before a rollout in real time: more than the 1.5 periods after which a policy clears its
#: window.
_PAUSE = 2.5


@dataclass(frozen=True)
class RobotOptions:
    """What the robot follows, and how long it waits.

    Attributes:
        follow: Stream of commands, see the docstring of this module.
        instruction: Instruction for the policy; None for the task's own.
        instruction_task: Name of the task to which the instruction belongs, if it is not the environment's task. Then a
            rollout also ends when that task is done, as in an evaluation.
        timeout: Seconds to wait for a policy, and in lockstep for an answer.
        command_timeout: Seconds without a command after which the arm stops in real time.
        gripper: Positions of the open and the closed gripper.
        record_actions: Whether the reports contain the executed actions.
    """

    follow: Follow = "action"
    instruction: str | None = None
    instruction_task: str | None = None
    timeout: float = 60.0
    command_timeout: float = 0.2
    gripper: GripperProfile = field(default_factory=GripperProfile)
    record_actions: bool = False

    def __post_init__(self) -> None:
        if self.follow not in get_args(Follow):
            raise ConfigError(f"a robot follows one of {', '.join(get_args(Follow))}; got '{self.follow}'")
        for name in ("timeout", "command_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)} s; it must be positive and finite")


@dataclass(frozen=True)
class Rollout:
    """A rollout. ``state_seed`` sets the initial state, ``seed`` and ``random_stream`` the policy's random numbers."""

    state_seed: int
    seed: int
    random_stream: int


@dataclass
class RolloutReport:
    """Result of one rollout.

    Attributes:
        rollout: Which rollout it was.
        success: Whether the task was done.
        steps: Number of control periods.
        achieved: Tasks of the suite that were done, whatever the instruction.
        lifted: Objects that were lifted.
        bundles: Identifiers of the bundles that answered, in order of appearance.
        steps_without_command: Periods without a command to follow.
        late: Periods that began over half a period late (real time).
        actions: Executed actions (steps, 7), if they are recorded.
    """

    rollout: Rollout
    success: bool = False
    steps: int = 0
    achieved: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    bundles: list[str] = field(default_factory=list)
    steps_without_command: int = 0
    late: int = 0
    actions: list[list[float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        plain = {
            "state_seed": self.rollout.state_seed,
            "seed": self.rollout.seed,
            "episode": self.rollout.random_stream,
            "success": self.success,
            "steps": self.steps,
            "achieved": list(self.achieved),
            "lifted": list(self.lifted),
            "bundles": self.bundles,
            "steps_without_command": self.steps_without_command,
            "late": self.late,
        }
        return {**plain, "actions": self.actions} if self.actions else plain


class SimRobot:
    """Runs a simulated environment with a policy at the other end of a link.

    Args:
        link: Connection to the policy. The caller closes it.
        env: The environment. The caller closes it.
        lockstep: Whether to run in lockstep, otherwise in real time.
        options: What the robot follows, and how long it waits.
    """

    def __init__(self, link: Link, env: SimEnv, *, lockstep: bool, options: RobotOptions | None = None) -> None:
        self.options = options or RobotOptions()
        self._link = link
        self._env = env
        self._contract = env.contract
        self._lockstep = lockstep
        self._stop = False
        # Stamps must be later than those of an earlier run, because the policy may have been running since then.
        self._clock = time.time_ns()
        self._published = 0.0
        self._last_observation: tuple[Observation, int] | None = None
        self._number = 0
        self._gripper_entry = -1.0
        self._gripper_count = 0
        self._gripper_position: float | None = None
        self._command: Command | None = None
        self._instruction = env.task.instruction if self.options.instruction is None else self.options.instruction

    def stop(self, reason: str = "") -> None:
        """End after the current period. May be called from a signal handler."""
        logger.info("the simulated robot stops%s", f": {reason}" if reason else "")
        self._stop = True

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop

    def run(
        self, rollouts: Sequence[Rollout], progress: Callable[[RolloutReport], None] = lambda report: None
    ) -> list[RolloutReport]:
        """Run the rollouts and return their reports. A rollout that :meth:`stop` interrupted is left out.

        Raises:
            TransportError: There is no policy, it refuses the instruction, or in lockstep it stopped answering. The
                message names the topic.
        """
        self._link.wait_for_policy(self.options.timeout, lambda: self._stop)
        if not self._lockstep:
            self._send_instruction(rollouts[0].state_seed)
        reports = []
        for rollout in rollouts:
            report = RolloutReport(rollout)
            if self._lockstep:
                self._roll_in_lockstep(report)
            else:
                self._roll_in_real_time(report)
            if self._stop:
                break
            report.achieved, report.lifted = self._env.achieved(), self._env.lifted()
            reports.append(report)
            progress(report)
        return reports

    def _send_instruction(self, state_seed: int) -> None:
        """Publish ~/instruction and wait until a ~/status contains it. Otherwise images could arrive before it.

        Meanwhile, images and joint states are published, as on a real robot.
        """
        deadline = time.monotonic() + self.options.timeout
        observation = self._env.reset(state_seed)
        self._link.send_instruction(self._instruction)
        due = time.monotonic()
        while not self._stop:
            self._publish(observation, time.time_ns())
            due += self._contract.period
            while (left := due - time.monotonic()) > 0:
                self._link.sleep(left)
            self._check_timeout(deadline, topics.STATUS, f"the instruction '{self._instruction}'")
            for status in self._link.statuses():
                if status.code == StatusCode.UNKNOWN_INSTRUCTION and self._instruction in status.message:
                    raise self._refusal(status)
                if status.instruction == self._instruction:
                    return

    def _refusal(self, status: StatusSnapshot) -> TransportError:
        return TransportError(f"the policy refuses the instruction '{self._instruction}': {status.message}")

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def _roll_in_lockstep(self, report: RolloutReport) -> None:
        observation = self._env.reset(report.rollout.state_seed)
        self._number += 1
        self._take_commands()
        self._gripper_count, self._gripper_position = 0, None
        self._command = self._last_observation = None
        self._clock += _BETWEEN_EPISODES
        rollout = report.rollout
        self._link.begin_episode(self._number, self._instruction, rollout.seed, rollout.random_stream, self._clock)
        status = self._answer(self._clock, self._link.full_name(topics.EPISODE))
        if status is not None and status.code == StatusCode.UNKNOWN_INSTRUCTION:
            raise self._refusal(status)
        self._clock += _BETWEEN_EPISODES
        start = self._clock
        for step in range(self._env.task.horizon):
            self._clock = start + round(step * self._contract.period * 1e9)
            self._publish(observation, self._clock)
            status = self._answer(self._clock, f"the observation stamped {self._clock / 1e9:.3f} s")
            if status is None:
                return
            self._note(report, status)
            observation = self._step(self._receive_command(status), report)
            if self._over(report):
                return

    def _answer(self, stamp: int, what: str) -> StatusSnapshot | None:
        """Wait for the ~/status that answers ``stamp`` (ns); None if the robot is stopped."""
        deadline = time.monotonic() + self.options.timeout
        while not self._stop:
            for status in self._link.statuses():
                if status.stamp == stamp and status.episode == self._number:
                    return status
            self._wait(deadline, topics.STATUS, what)
        return None

    def _receive_command(self, status: StatusSnapshot) -> NDArray[np.float64] | None:
        """Wait for the command of ``status`` and every gripper command up to it. Return None if it has no command."""
        deadline = time.monotonic() + self.options.timeout
        what = f"the observation stamped {status.stamp / 1e9:.3f} s"
        while status.command and not self._stop:
            self._take_commands()
            command = self._command
            if command is None or command.stamp != status.stamp:
                self._wait(deadline, FOLLOWED[self.options.follow], what)
            elif self.options.follow != "action" and self._gripper_count < status.gripper_commands:
                self._wait(deadline, topics.GRIPPER_COMMAND, what)
            else:
                return command.value
        return None

    def _wait(self, deadline: float, silent: str, what: str) -> None:
        self._check_timeout(deadline, silent, what)
        if self._last_observation is not None and time.monotonic() - self._published > _REPEAT_AFTER:
            self._publish(*self._last_observation)
        self._link.wait(deadline - time.monotonic())

    def _check_timeout(self, deadline: float, silent: str, what: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not self._link.policy_is_there:
            why = f"within {self.options.timeout:g} s" if left <= 0 else "and the policy has left"
            problem = self._link.problem(silent)
            raise TransportError(
                f"no answer to {what} came on {self._link.full_name(silent)} {why}, {self._link.where}"
                + (f" ({problem})" if problem else "")
            )

    # --- real time ---------------------------------------------------------------------------------------------------

    def _roll_in_real_time(self, report: RolloutReport) -> None:
        period = self._contract.period
        observation = self._env.reset(report.rollout.state_seed)
        # A gap in the stamps makes the policy clear its window, which still has the steps from before the reset.
        while (left := self._published + _PAUSE * period - time.monotonic()) > 0 and not self._stop:
            self._link.sleep(left)
        # Commands and statuses from before the reset are dropped.
        self._take_commands()
        self._link.statuses()
        self._command = None
        begin = time.time_ns()
        due = time.monotonic() + period
        self._publish(observation, begin)
        while report.steps < self._env.task.horizon:
            while (left := due - time.monotonic()) > 0 and not self._stop:
                self._link.sleep(left)
            if self._stop:
                return
            now = time.monotonic()
            self._take_commands()
            for status in self._link.statuses():
                self._note(report, status)
            command = self._command
            if command is not None and (command.stamp < begin or now - command.arrived > self.options.command_timeout):
                command = None
            observation = self._step(command.value if command is not None else None, report)
            self._publish(observation, time.time_ns())
            if self._over(report):
                return
            # After a delay of the machine, lost periods are not repeated in a burst.
            report.late += now - due > period / 2
            due = max(due + period, now)

    # --- both --------------------------------------------------------------------------------------------------------

    def _take_commands(self) -> None:
        for command in self._link.commands():
            self._command = command
        for position in self._link.gripper_commands():
            self._gripper_entry = self.options.gripper.entry(position)
            # Gripper commands are sent only on change. The same command again belongs to a repeated answer.
            self._gripper_count += position != self._gripper_position
            self._gripper_position = position

    def _step(self, command: NDArray[np.float64] | None, report: RolloutReport) -> Observation:
        """Run one period with ``command``; without one the arm stops and the gripper keeps its last command."""
        report.steps += 1
        follow = self.options.follow
        if command is None:
            report.steps_without_command += 1
        if follow == "twist":
            twist = np.zeros(6) if command is None else command
            if self.options.record_actions:
                report.actions.append([*twist.tolist(), self._gripper_entry])
            return self._env.step_twist(twist, self._gripper_entry)
        if command is None:
            action = np.array([0.0] * 6 + [self._gripper_entry])
        elif follow == "action":
            action = command
            self._gripper_entry = float(command[6])
        else:
            motion = drive.motion_to(command, self._env.end_effector(), self._contract)
            action = np.array([*np.clip(motion, -1, 1), self._gripper_entry])
        if self.options.record_actions:
            report.actions.append(action.tolist())
        return self._env.step(action)

    def _over(self, report: RolloutReport) -> bool:
        """Record whether the task is done, and return whether the rollout ends."""
        report.success = self._env.success()
        return report.success or (
            self.options.instruction_task is not None and self.options.instruction_task in self._env.achieved()
        )

    def _publish(self, observation: Observation, stamp: int) -> None:
        pose = self._env.end_effector() if self._link.wants_pose else None
        self._link.observe(observation, pose, stamp)
        self._last_observation = observation, stamp
        self._published = time.monotonic()

    def _note(self, report: RolloutReport, status: StatusSnapshot) -> None:
        if status.bundle and status.bundle not in report.bundles:
            report.bundles.append(status.bundle)
