"""Plain DDS, see :mod:`tests.sides`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m2distill_policy.contract import Contract
from m2distill_policy.dds.images import Image
from m2distill_policy.dds.m2distill_msgs import Episode, PolicyAction, PolicyStatus
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Participant, Reader, Writer
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.robot_link import DdsLink
from m2distill_policy.dds.types import (
    Bool,
    CameraInfo,
    DiagnosticArray,
    GripperCommand,
    Header,
    JointState,
    PoseStamped,
    String,
    Time,
    TwistStamped,
)
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.sim_robot.link import Follow
from tests.sides import HEARD, PATIENCE, Child, Robot, Side, running

_MAIN = "import sys; from m2distill_policy.cli import main; sys.exit(main(sys.argv[1:]))"
_KINDS: dict[str, Any] = {
    "action": PolicyAction,
    "status": PolicyStatus,
    "twist": TwistStamped,
    "target_pose": PoseStamped,
    "gripper": GripperCommand,
    "diagnostics": DiagnosticArray,
}


@contextlib.contextmanager
def command(folder: Path, *arguments: object) -> Iterator[Child]:
    """Run ``m2distill`` with ``arguments`` in a process."""
    with running(
        [sys.executable, "-c", _MAIN, *arguments], folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
    ) as child:
        if arguments[0] == "serve":
            child.wait_for("serving bundle")
        yield child


class DdsRobot(Robot):
    """A robot on plain DDS, which closes its participant."""

    messages = MESSAGES

    def __init__(self, participant: Participant, contract: Contract, *, lockstep: bool = False) -> None:
        super().__init__(contract)
        self.participant = participant
        profile = Profile.LOCKSTEP if lockstep else Profile.RELIABLE
        self.writers: dict[str, Writer[Any]] = {}
        for view in contract.camera_names:
            self._writer(topics.camera_topic(view), Image, profile)
            self._writer(topics.camera_info_topic(view), CameraInfo, Profile.RELIABLE)
        self._writer(topics.JOINT_STATES, JointState, profile)
        if not lockstep:  # a robot that publishes its pose waits for set-points
            self._writer(topics.END_EFFECTOR_POSE, PoseStamped, profile)
        self._writer(topics.EMERGENCY_STOP, Bool, Profile.RELIABLE)
        self._writer(topics.DEAD_MAN, Bool, Profile.RELIABLE)
        self._writer(topics.ENABLE, Bool, Profile.RELIABLE)
        self._writer(topics.INSTRUCTION, String, Profile.LATCHED)
        self._writer(topics.EPISODE, Episode, Profile.HANDSHAKE)
        self.readers: dict[str, Reader[Any]] = {}
        for name, topic in HEARD.items():
            wanted = Profile.HANDSHAKE if lockstep and name == "status" else profile
            wanted = Profile.RELIABLE if name == "diagnostics" else wanted
            self.readers[name] = participant.reader(topic, _KINDS[name], wanted, depth=1000)
        self._waiter = participant.waiter(self.readers.values())

    def _writer(self, topic: str, kind: type[Any], profile: Profile) -> None:
        self.writers[topic] = self.participant.writer(topic, kind, profile)

    def publish(self, topic: str, message: Any) -> None:
        self.writers[topic].write(message)

    def publish_bytes(self, topic: str, data: bytes) -> bool:
        kind: Any = self.writers[topic].entity.data_type

        class Raw(kind):
            def serialize(self, *_: object, **__: object) -> bytes:
                return data

        try:
            self.writers[topic].write(Raw.__new__(Raw))
        except TransportError:
            return False
        return True

    def serialised(self, message: Any) -> bytes:
        return bytes(message.serialize())

    def image(self, stamp: int, height: int, width: int, encoding: str, step: int, data: bytes) -> Image:
        return Image(Header(Time.from_nanoseconds(stamp), "camera"), height, width, encoding, 0, step, data)

    def announce_joints(self, topic: str) -> None:
        self._writer(topic, JointState, Profile.RELIABLE)
        self.participant.wait_for_peers([self.writers[topic]], PATIENCE, "the policy should listen there")
        time.sleep(0.5)

    def string(self, text: str) -> String:
        return String(text)

    def flag(self, value: bool) -> Bool:
        return Bool(value)

    def latched_flag(self, topic: str) -> Callable[[bool], None]:
        writer = self.participant.writer(topic, Bool, Profile.LATCHED)
        return lambda value: writer.write(Bool(value))

    def commander(self, topic: str) -> Callable[[], None]:
        kind = next(_KINDS[name] for name, heard in HEARD.items() if heard == topic)
        writer = self.participant.writer(topic, kind)
        return lambda: writer.write(self.command(topic))

    def meet(self) -> None:
        self.participant.wait_for_peers(
            [*self.writers.values(), *self.readers.values()], PATIENCE, "the child should be there"
        )
        # Met is what this side knows. The other side learns of our readers a moment later, and what it says first is
        # lost until then; a real robot asks again, this one counts messages.
        time.sleep(0.5)

    def listen(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        while True:
            for name, reader in self.readers.items():
                self.heard[name] += reader.take()
            left = until - time.monotonic()
            if left <= 0:
                return
            self._waiter.wait(left)

    def wait(self, timeout: float) -> None:
        self._waiter.wait(timeout)
        self.listen(0.0)

    def close(self) -> None:
        self.participant.close()


class DdsSide(Side):
    """Run ``m2distill serve``."""

    name = "dds"

    @contextlib.contextmanager
    def policy(self, bundle: Path, **settings: object) -> Iterator[Child]:
        words: list[object] = []
        for name, value in settings.items():
            option = name.replace("__", ".")
            if name == "autostart":  # it always starts by itself
                continue
            if name == "enable":
                words += [] if value else ["--shadow"]
            elif "." in option or option == "joint_topics":
                words += ["--set", f"{option}={json.dumps(value) if isinstance(value, list) else value}"]
            elif isinstance(value, bool):
                words += [f"--{option.replace('_', '-')}"] if value else []
            else:
                words += [f"--{'watch' if option == 'watch_folder' else option.replace('_', '-')}", value]
        with command(self.folder, "serve", bundle, "--domain", self.domain, *words) as child:
            yield child

    def robot(self, contract: Contract, *, lockstep: bool = False, namespace: str = "") -> DdsRobot:
        return DdsRobot(Participant(self.domain, namespace=namespace), contract, lockstep=lockstep)

    def sim(self, *arguments: object) -> contextlib.AbstractContextManager[Child]:
        return command(self.folder, "sim", *arguments, "--domain", self.domain)

    @contextlib.contextmanager
    def link(self, contract: Contract, *, follow: Follow, lockstep: bool) -> Iterator[DdsLink]:
        with Participant(self.domain) as participant:
            yield DdsLink(participant, contract, follow=follow, lockstep=lockstep)
