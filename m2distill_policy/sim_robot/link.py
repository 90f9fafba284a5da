"""The connection of the simulated robot to the policy. Plain DDS and ROS 2 each implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node import topics
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.observation import Observation

Follow = Literal["action", "target_pose", "twist"]

#: Kind of command -> topic of the commands that a robot follows.
FOLLOWED: dict[Follow, str] = {
    "action": topics.ACTION,
    "target_pose": topics.TARGET_POSE,
    "twist": topics.TWIST,
}


@dataclass(frozen=True)
class StatusSnapshot:
    """The parts of a ~/status that the robot needs. stamp: that of the answered observation or episode, ns."""

    stamp: int
    episode: int
    code: int
    message: str
    command: bool
    gripper_commands: int
    bundle: str
    instruction: str

    @staticmethod
    def of(status: Any) -> StatusSnapshot:
        """Make a snapshot from a PolicyStatus message of any library."""
        return StatusSnapshot(
            stamp=nanoseconds_of(status),
            episode=status.episode,
            code=status.code,
            message=status.message,
            command=status.command,
            gripper_commands=status.gripper_commands,
            bundle=status.bundle,
            instruction=status.instruction,
        )


@dataclass(frozen=True)
class Command:
    """A command to execute. value: (7,) action, (6,) target pose or (6,) twist; stamp: ns; arrived: monotonic s."""

    value: NDArray[np.float64]
    stamp: int
    arrived: float


class Link(ABC):
    """The robot's connection to the policy: it publishes observations, and returns each received message once."""

    #: Where topics are, for messages, such as "in DDS domain 3".
    where: str = ""
    #: Whether the robot publishes the end effector's pose.
    wants_pose: bool = False

    @abstractmethod
    def wait_for_policy(self, timeout: float, stop: Callable[[], bool]) -> None:
        """Wait until every topic has a peer.

        Raises:
            TransportError: A topic has no peer after ``timeout`` s. The message says how to start a policy.
        """

    @property
    @abstractmethod
    def policy_is_there(self) -> bool:
        """Whether there is a publisher of ~/status."""

    @abstractmethod
    def observe(self, observation: Observation, pose: NDArray[np.float64] | None, stamp: int) -> None:
        """Publish images, joint states and, if given, the pose, all with one stamp (ns); the joint states last."""

    @abstractmethod
    def send_instruction(self, instruction: str) -> None:
        """Publish ~/instruction."""

    @abstractmethod
    def begin_episode(self, number: int, instruction: str, seed: int, random_stream: int, stamp: int) -> None:
        """Publish ~/episode."""

    @abstractmethod
    def statuses(self) -> list[StatusSnapshot]:
        """Return every ~/status that has arrived."""

    @abstractmethod
    def commands(self) -> list[Command]:
        """Return every usable command that has arrived."""

    @abstractmethod
    def gripper_commands(self) -> list[float]:
        """Return every gripper position (m) that has arrived; none if the robot follows ~/action, which includes it."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Sleep until a message arrives or peers change, at most ``timeout`` s, or less so that signals are handled."""

    @abstractmethod
    def sleep(self, timeout: float) -> None:
        """Sleep for ``timeout`` s or less. Messages that arrive do not end the sleep."""

    @abstractmethod
    def full_name(self, topic: str) -> str:
        """Return the full name of a topic of :mod:`m2distill_policy.node.topics`, after remapping."""

    @abstractmethod
    def problem(self, topic: str) -> str:
        """Return what was wrong with the newest unreadable message on ``topic``, or ""."""
