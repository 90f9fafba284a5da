"""Run the same behaviour tests on plain DDS and on ROS 2: the interface that both sides implement.

A side starts the policy as a process of its own, and gives a robot and a link for a simulated one. Whoever writes a
test here writes it for both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.messages import Messages, nanoseconds_of
from m2distill_policy.observation import Observation
from m2distill_policy.sim_robot.link import Follow, Link
from tests.bundles import Tremor

ROOT = Path(__file__).resolve().parent.parent
#: s that any wait may take before the test fails; generous, because the machine may be busy.
PATIENCE = 20.0

#: What a robot receives: name used here -> topic.
HEARD = {
    "action": topics.ACTION,
    "status": topics.STATUS,
    "twist": topics.TWIST,
    "target_pose": topics.TARGET_POSE,
    "gripper": topics.GRIPPER_COMMAND,
    "diagnostics": topics.DIAGNOSTICS,
}
#: What a robot publishes in addition to its views, their intrinsics, and its joints.
SAID = (topics.END_EFFECTOR_POSE, topics.INSTRUCTION, topics.EPISODE, topics.EMERGENCY_STOP, topics.DEAD_MAN)


class Child:
    """A running process. ``output`` is its output so far, on both streams."""

    def __init__(self, command: Sequence[object], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    "MUJOCO_GL": "osmesa",
                    "PYTHONUNBUFFERED": "1",
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONFAULTHANDLER": "1",
                    **environment,
                },
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until the child has printed ``text``."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"'{text}' from the child")
        assert text in self.output, self.output

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code. If the child does not end, report where it hangs."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end of the child and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER: every thread's stack goes to the log
            self.process.wait(PATIENCE)
            raise AssertionError(f"the child did not end within {timeout:g} s:\n{self.output}") from None

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


@contextlib.contextmanager
def running(command: Sequence[object], log: Path, **environment: str) -> Iterator[Child]:
    """Run a child process, and kill it at the end if it still runs."""
    child = Child(command, log, environment)
    try:
        yield child
    finally:
        child.close()


def wait_until(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Wait until ``condition()`` is true. After ``timeout`` s fail the test, naming ``what``."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.01)


class Robot(ABC):
    """Publishes and receives as a robot does. heard: received messages, by the names of :data:`HEARD`, oldest first."""

    #: Makes this side's messages.
    messages: Messages

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.heard: dict[str, list[Any]] = {name: [] for name in HEARD}
        self._tremor = Tremor()

    # --- what a side implements --------------------------------------------------------------------------------------

    @abstractmethod
    def publish(self, topic: str, message: Any) -> None:
        """Publish on ``topic``, named as in :mod:`m2distill_policy.node.topics`."""

    @abstractmethod
    def publish_bytes(self, topic: str, data: bytes) -> bool:
        """Publish any serialised bytes as a message on ``topic``. Return False if the side refuses them."""

    @abstractmethod
    def serialised(self, message: Any) -> bytes:
        """Return the serialised bytes of a message."""

    @abstractmethod
    def image(self, stamp: int, height: int, width: int, encoding: str, step: int, data: bytes) -> Any:
        """Return an image message with these fields."""

    @abstractmethod
    def announce_joints(self, topic: str) -> None:
        """Publish joint states on ``topic`` too, once the policy subscribes to it."""

    @abstractmethod
    def string(self, text: str) -> Any:
        """Return a std_msgs/String."""

    @abstractmethod
    def flag(self, value: bool) -> Any:
        """Return a std_msgs/Bool."""

    @abstractmethod
    def latched_flag(self, topic: str) -> Callable[[bool], None]:
        """Return another publisher of std_msgs/Bool on ``topic``, whose last message late subscribers receive too."""

    @abstractmethod
    def commander(self, topic: str) -> Callable[[], None]:
        """Return a publisher of a command's ``topic`` as of another program; each call sends one message."""

    @abstractmethod
    def meet(self) -> None:
        """Wait until the policy is connected on every topic, and active."""

    @abstractmethod
    def listen(self, timeout: float) -> None:
        """Receive messages for ``timeout`` s."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Receive the messages that have arrived; without any, wait for one, at most ``timeout`` s."""

    @abstractmethod
    def close(self) -> None:
        """Leave."""

    # --- what all robots do ------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget the received messages."""
        self.listen(0.0)
        for kept in self.heard.values():
            kept.clear()

    def instruct(self, instruction: str) -> None:
        """Send the instruction."""
        self.publish(topics.INSTRUCTION, self.string(instruction))

    def command(self, topic: str) -> Any:
        """Return a message for a command's ``topic``."""
        if topic == topics.TWIST:
            return self.messages.twist(np.full(6, 0.01), time.time_ns(), "base")
        if topic == topics.TARGET_POSE:
            return self.messages.pose(np.full(6, 0.1), time.time_ns(), "base")
        return self.messages.gripper(0.02, 0.0)

    def enable(self, wanted: bool) -> None:
        """Enable or disable commands by the topic."""
        self.publish(topics.ENABLE, self.flag(wanted))

    def enable_again(self) -> None:
        """Enable: true counts only after false, so false is sent first."""
        self.enable(False)
        self.enable(True)

    def say(self, observation: Observation, stamp: int, *, without: Sequence[str] = ()) -> None:
        """Publish an observation with stamp ``stamp`` (ns), except the parts in ``without``."""
        for name in self.contract.camera_names:
            if name not in without:
                pixels = observation.images[name]
                height, width = pixels.shape[:2]
                image_message = self.image(stamp, height, width, "rgb8", 3 * width, pixels.tobytes())
                self.publish(topics.camera_topic(name), image_message)
        if "joint_states" not in without:
            names, values = self.joint_state(observation)
            self.publish(topics.JOINT_STATES, self.messages.joints(names, values, stamp, "base"))

    def joint_state(self, observation: Observation) -> tuple[list[str], list[float]]:
        """Return names and values of an observation's joint state."""
        names = [entry for group in self.contract.proprioception for entry in group.entries]
        groups = [observation.proprioception[group.name] for group in self.contract.proprioception]
        return names, np.concatenate(groups).astype(np.float64).tolist()

    def at(self, pose: NDArray[np.float64], stamp: int) -> None:
        """Publish the end effector's pose; as on a real arm it is never exactly the same twice."""
        self.publish(topics.END_EFFECTOR_POSE, self.messages.pose(self._tremor(pose), stamp, "base"))

    def drive(
        self,
        observations: Sequence[Observation],
        *,
        without: Sequence[str] = (),
        hz: float = 20.0,
        first: Callable[[], object] = lambda: None,
        shift: float = 0.0,
    ) -> list[int]:
        """In real time: say one observation a period; returns their stamps (ns): the present time plus ``shift`` s.

        first: called before each.
        """
        stamps = []
        due = time.monotonic()
        for observation in observations:
            due += 1 / hz
            first()
            stamps.append(time.time_ns() + round(shift * 1e9))
            self.say(observation, stamps[-1], without=without)
            self.listen(due - time.monotonic())
        return stamps

    def until(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Receive until ``condition()`` is true, and return it. Otherwise fail the test, naming ``what``."""
        deadline = time.monotonic() + timeout
        self.listen(0.0)
        while not (found := condition()):
            left = deadline - time.monotonic()
            last = self.heard["status"][-1:] or "nothing"
            assert left > 0, f"waited {timeout:g} s for {what}; the last status was {last}"
            self.wait(min(left, 0.1))
        return found

    def status(self, fits: Callable[[Any], bool], what: str) -> Any:
        """Wait for the first status that fits, and return it."""
        return self.until(lambda: next((s for s in self.heard["status"] if fits(s)), None), what)

    def answers(self, name: str) -> dict[int, Any]:
        """Return the received messages ``name`` by the stamp that they answer (ns)."""
        return {nanoseconds_of(message): message for message in self.heard[name]}

    def begin(self, number: int, seed: int, random_stream: int, instruction: str, stamp: int) -> Any:
        """In lockstep: begin an episode and return the status that answers it."""
        self.publish(
            topics.EPISODE,
            self.messages.episode(
                number, instruction, seed=seed, random_stream=random_stream, stamp=stamp, frame="base"
            ),
        )
        return self.status(lambda s: nanoseconds_of(s) == stamp and s.episode == number, f"an answer to {number}")

    def ask(self, observation: Observation, stamp: int) -> tuple[Any, Any]:
        """In lockstep: publish an observation and return the one action and the one status that answer it."""
        self.say(observation, stamp)
        self.until(lambda: stamp in self.answers("status") and stamp in self.answers("action"), f"answer to {stamp}")
        actions = [a for a in self.heard["action"] if nanoseconds_of(a) == stamp]
        statuses = [s for s in self.heard["status"] if nanoseconds_of(s) == stamp]
        assert len(actions) == 1 and len(statuses) == 1
        return actions[0], statuses[0]


class Side(ABC):
    """A transport to the policy. All its processes use a domain of their own, separate from other tests."""

    name: str

    def __init__(self, folder: Path, domain: int) -> None:
        self.folder = folder
        self.domain = domain

    @abstractmethod
    def policy(self, bundle: Path, **settings: object) -> contextlib.AbstractContextManager[Child]:
        """The policy as a process of its own, told to drive.

        settings: the node's parameters by name, with two underscores for a dot; and ``namespace``, as "/left".
        """

    @abstractmethod
    def robot(self, contract: Contract, *, lockstep: bool = False, namespace: str = "") -> Robot:
        """Return a robot; close it at the end."""

    @abstractmethod
    def sim(self, *arguments: object) -> contextlib.AbstractContextManager[Child]:
        """Run the simulated robot in a process, with the options that both sides share."""

    @abstractmethod
    def link(self, contract: Contract, *, follow: Follow, lockstep: bool) -> contextlib.AbstractContextManager[Link]:
        """Return a simulated robot's link."""

    @contextlib.contextmanager
    def met(self, contract: Contract, bundle: Path, **settings: object) -> Iterator[tuple[Child, Robot]]:
        """Run a policy and a robot that are connected."""
        with (
            self.policy(bundle, **settings) as child,
            contextlib.closing(
                self.robot(
                    contract, lockstep=bool(settings.get("lockstep")), namespace=str(settings.get("namespace", ""))
                )
            ) as robot,
        ):
            robot.meet()
            yield child, robot
