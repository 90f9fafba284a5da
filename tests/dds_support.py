"""For tests over real DDS in real processes: `m2distill` as a child process, and a robot that says what it is told to.

Each test takes a domain of its own, so that tests which run at the same time do not meet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.m2distill_msgs import Episode, PolicyAction, PolicyStatus
from m2distill_policy.dds.participant import Participant, Reader, Writer
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.robot_link import DdsLink
from m2distill_policy.dds.types import GripperCommand, Header, JointState, String, Time, TwistStamped
from m2distill_policy.node import topics
from m2distill_policy.node.messages import optical_frame
from m2distill_policy.observation import Observation
from m2distill_policy.sim.world import Task, World
from m2distill_policy.sim_robot.robot import RobotOptions, SimRobot
from tests.bundles import INSTRUCTIONS, observations

ROOT = Path(__file__).resolve().parent.parent
#: s that anything here may take before the test fails; generous, because the machine may be busy.
PATIENCE = 20.0
_MAIN = "import sys; from m2distill_policy.cli import main; sys.exit(main(sys.argv[1:]))"


class Child:
    """A running ``m2distill`` command. ``output`` is what it has said so far, on both streams."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._log = folder / f"{arguments[0]}.log"
        settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={"MUJOCO_GL": "osmesa", **os.environ, **settings, "PYTHONPATH": str(ROOT)},
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Until the child has said ``text``."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"'{text}' from the child")
        assert text in self.output, self.output

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code. A child that does not end says where it hangs."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once the child has ended."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER: every thread's stack goes to the log
            self.process.wait(PATIENCE)
            raise AssertionError(f"the child did not end within {timeout:g} s:\n{self.output}") from None


@contextlib.contextmanager
def child(folder: Path, *arguments: object) -> Iterator[Child]:
    """Run ``m2distill`` with ``arguments``; killed at the end if it is still there."""
    running = Child([str(argument) for argument in arguments], folder)
    try:
        if arguments[0] == "serve":
            running.wait_for("serving bundle")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(PATIENCE)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Until ``condition()``; fails the test, naming ``what``, after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.01)


class Robot:
    """Speaks and listens as a robot does; what it heard is kept in lists."""

    def __init__(self, participant: Participant, contract: Contract, *, lockstep: bool = False) -> None:
        self.participant, self.contract = participant, contract
        profile = Profile.LOCKSTEP if lockstep else Profile.RELIABLE
        self.views: dict[str, Writer[Image]] = {
            name: participant.writer(topics.camera_topic(name), Image, profile) for name in contract.camera_names
        }
        self.joints = participant.writer(topics.JOINT_STATES, JointState, profile)
        self.instruction = participant.writer(topics.INSTRUCTION, String, Profile.LATCHED)
        self.episode = participant.writer(topics.EPISODE, Episode, Profile.HANDSHAKE)
        self.readers: dict[str, Reader[Any]] = {
            "action": participant.reader(topics.ACTION, PolicyAction, profile, depth=1000),
            "twist": participant.reader(topics.TWIST, TwistStamped, profile, depth=1000),
            "gripper": participant.reader(topics.GRIPPER_COMMAND, GripperCommand, profile, depth=1000),
            "status": participant.reader(
                topics.STATUS, PolicyStatus, Profile.HANDSHAKE if lockstep else profile, depth=1000
            ),
        }
        self.heard: dict[str, list[Any]] = {name: [] for name in self.readers}
        self._waiter = participant.waiter(self.readers.values())

    def meet(self) -> None:
        """Until the policy is there on every topic."""
        self.participant.wait_for_peers(
            [*self.views.values(), self.joints, self.instruction, self.episode, *self.readers.values()],
            PATIENCE,
            "the child should be there",
        )
        # Met is what this side knows. The other side learns of our readers a moment later, and what it says first is
        # lost until then; a real robot asks again, this one counts messages.
        time.sleep(0.5)

    def listen(self) -> None:
        """Take in what has come."""
        for name, reader in self.readers.items():
            self.heard[name] += reader.take()

    def say(self, observation: Observation, stamp: int, *, without: Sequence[str] = ()) -> None:
        """Publish all parts of an observation but those in ``without`` under ``stamp`` (ns)."""
        at = Time.from_nanoseconds(stamp)
        for name, writer in self.views.items():
            if name not in without:
                writer.write(Image.from_rgb(observation.images[name], at, optical_frame(name)))
        if "joint_states" not in without:
            names = [entry for group in self.contract.proprioception for entry in group.entries]
            values = np.concatenate([observation.proprioception[g.name] for g in self.contract.proprioception])
            self.joints.write(JointState(Header(at, "base"), names, values.astype(np.float64).tolist()))

    def status(self, fits: Callable[[PolicyStatus], bool], what: str) -> PolicyStatus:
        """The first status that fits, waiting for it."""
        deadline = time.monotonic() + PATIENCE
        seen = 0
        while True:
            self.listen()
            for status in self.heard["status"][seen:]:
                if fits(status):
                    return status
            seen = len(self.heard["status"])
            left = deadline - time.monotonic()
            last = self.heard["status"][-1] if self.heard["status"] else "nothing"
            assert left > 0, f"no status with {what} within {PATIENCE:g} s; the last one was {last}"
            self._waiter.wait(left)

    def ask(self, observation: Observation, stamp: int) -> tuple[PolicyAction, PolicyStatus]:
        """In lockstep: say an observation and return the one action and the one status that answer it."""
        self.say(observation, stamp)
        status = self.status(lambda s: s.header.stamp.nanoseconds == stamp, f"stamp {stamp}")
        wait_until(lambda: self._has_action(stamp), f"the action for stamp {stamp}")
        actions = [a for a in self.heard["action"] if a.header.stamp.nanoseconds == stamp]
        statuses = [s for s in self.heard["status"] if s.header.stamp.nanoseconds == stamp]
        assert len(actions) == 1 and len(statuses) == 1
        return actions[0], status

    def begin(self, number: int, seed: int, draw: int, instruction: str, stamp: int) -> PolicyStatus:
        """In lockstep: begin an episode and return the status that answers it."""
        self.episode.write(Episode(Header(Time.from_nanoseconds(stamp)), number, seed, draw, instruction))
        return self.status(lambda s: s.header.stamp.nanoseconds == stamp and s.episode == number, f"episode {number}")

    def drive(self, observations: Sequence[Observation], *, without: Sequence[str] = (), hz: float = 20.0) -> list[int]:
        """In real time: say one observation a period, stamped with the present time; returns the stamps (ns)."""
        stamps = []
        due = time.monotonic()
        for observation in observations:
            due += 1 / hz
            stamps.append(time.time_ns())
            self.say(observation, stamps[-1], without=without)
            while (left := due - time.monotonic()) > 0:
                self._waiter.wait(left)
                self.listen()
        return stamps

    def _has_action(self, stamp: int) -> bool:
        self.listen()
        return any(action.header.stamp.nanoseconds == stamp for action in self.heard["action"])


class StillWorld:
    """A world of random pictures, others for every seed and step, that no command changes: the least a robot has.

    before_step: number of a step since the start, from 1 -> what to do before it.
    """

    def __init__(self, contract: Contract, horizon: int = 30) -> None:
        self.contract = contract
        self.task = Task("test", 0, "still", INSTRUCTIONS[0], horizon)
        self.before_step: dict[int, Callable[[], object]] = {}
        self.steps = 0
        self._at = 0
        self._seen = observations(contract, 40)

    def reset(self, seed: int) -> Observation:
        self._seen = observations(self.contract, 40, seed)
        self._at = 0
        return self._seen[0]

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        self.steps += 1
        self._at += 1
        self.before_step.get(self.steps, lambda: None)()
        seen = self._seen[self._at % len(self._seen)]
        return Observation(seen.images, seen.proprioception, self._at * self.contract.period)

    def step_twist(self, twist: NDArray[np.floating[Any]], gripper: float) -> Observation:
        return self.step(twist)

    def success(self) -> bool:
        return False

    def achieved(self) -> tuple[str, ...]:
        return ()

    def lifted(self) -> tuple[str, ...]:
        return ()

    def end_effector(self) -> NDArray[np.float64]:
        return np.array([0.45, 0.02 * self._at, 0.3, 3.0, 0.1, -0.05])

    def reset_to(self, state: NDArray[np.float64]) -> Observation:
        raise NotImplementedError

    def state(self) -> NDArray[np.float64]:
        raise NotImplementedError

    def model_xml(self) -> str:
        raise NotImplementedError

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def sim_robot(
    participant: Participant, world: World, *, lockstep: bool, options: RobotOptions | None = None
) -> SimRobot:
    """A simulated robot on plain DDS."""
    options = options or RobotOptions()
    link = DdsLink(participant, world.contract, follow=options.follow, lockstep=lockstep)
    return SimRobot(link, world, lockstep=lockstep, options=options)
