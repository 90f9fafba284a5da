"""The robot's end of a transport: plain DDS and ROS 2 each bring one."""

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

#: The topic of the commands that a robot follows.
FOLLOWED: dict[Follow, str] = {
    "action": topics.ACTION,
    "target_pose": topics.TARGET_POSE,
    "twist": topics.TWIST,
}


@dataclass(frozen=True)
class StatusSnapshot:
    """What of a ~/status the robot needs; stamp: ns, of the observation or episode that it answers."""

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
        """Of a PolicyStatus, whichever library's."""
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
    """A command to follow. value: (7,) action, (6,) target pose or (6,) twist; stamp: ns; arrived: monotonic s."""

    value: NDArray[np.float64]
    stamp: int
    arrived: float


class Link(ABC):
    """The robot's end of a transport: what it publishes, and what it hears, each message handed over once."""

    #: For messages: what stands behind a topic's name, such as "in DDS domain 3".
    where: str = ""
    #: Whether it publishes the end effector's pose.
    wants_pose: bool = False

    @abstractmethod
    def wait_for_policy(self, timeout: float, stop: Callable[[], bool]) -> None:
        """Sleep until every topic has a peer; :class:`TransportError`, which says how to start a policy, when that
        takes too long."""

    @property
    @abstractmethod
    def policy_is_there(self) -> bool:
        """Whether somebody publishes ~/status."""

    @abstractmethod
    def observe(self, observation: Observation, pose: NDArray[np.float64] | None, stamp: int) -> None:
        """Publish everything the robot sees and feels under one stamp (ns), the joints last."""

    @abstractmethod
    def instruct(self, instruction: str) -> None:
        """Publish ~/instruction."""

    @abstractmethod
    def begin_episode(self, number: int, instruction: str, seed: int, draw: int, stamp: int) -> None:
        """Publish ~/episode."""

    @abstractmethod
    def statuses(self) -> list[StatusSnapshot]:
        """Every ~/status that has come."""

    @abstractmethod
    def commands(self) -> list[Command]:
        """Every command that has come and can be followed."""

    @abstractmethod
    def grips(self) -> list[float]:
        """Every gripper command that has come: positions in m; none where the action holds the gripper's entry."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Sleep until something comes or a peer comes or leaves, ``timeout`` s at most, and never for long."""

    @abstractmethod
    def sleep(self, timeout: float) -> None:
        """Sleep ``timeout`` s, or less, whatever comes."""

    @abstractmethod
    def full_name(self, topic: str) -> str:
        """The name of a topic of :mod:`m2distill_policy.node.topics` here, after remapping."""

    @abstractmethod
    def problem(self, topic: str) -> str:
        """What was wrong with the newest message on ``topic`` that could not be read, or nothing."""
