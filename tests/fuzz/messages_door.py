"""What the doors of messages share: a script of messages and pauses, and the checks on everything that is published.

An input is :data:`HEAD` bytes of options and then events, each ``<kind: u8> <microseconds before it: u32> <size: u16>
payload``. A kind below 32 is a topic of :data:`TOPICS` and the payload a serialised message; :data:`GOOD` is a number
of good observations, whose streams may be shifted in time, freeze, or name more joints than the policy needs.

What is published is looked at by itself (:class:`Published`), and compared with what was sent
(:mod:`tests.fuzz.expected`).
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m2distill_policy.bundle import Bundle
from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.loop import LONGEST_RAMP
from m2distill_policy.node.output import Output
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.runtime import controls as controls_module
from m2distill_policy.runtime import safety
from m2distill_policy.runtime.engine import Engine
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, toy_contract
from tests.fuzz.choice import Choice
from tests.fuzz.expected import Expected, Setup
from tests.fuzz.invariant import finite, require

CONTRACT: Contract = toy_contract(16)
#: ns; when every script begins.
BEGIN = 1_700_000_000_000_000_000
GOOD = 32
SPEED = (0.05, 0.05, 0.05, 0.2, 0.2, 0.2)
LOW, HIGH = (0.3, -0.2, 0.1), (0.5, 0.2, 0.5)
WHERE = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])
#: Cycles of one input at most; later events are left out.
MOST_CYCLES = 150
#: ms beyond the limits by which the stamps of pictures or joints may not be off while the policy drives.
OFF = 100
#: Bytes of options.
HEAD = 8
#: What the limits may be where the product does not say; from least to greatest.
_RANGES: dict[str, tuple[float, float]] = {"speed": (1e-4, 100.0), "acceleration": (0.01, 1000.0), "jerk": (0.1, 1e5)}
#: m by which the end effector is outside a wall of the workspace, a place each, and how far it swings there.
PLACES = (-0.02, -0.003, -0.001, 0.0005, 0.002, 0.01, 0.02, 0.03, 0.045, 0.049, 0.06, 0.3)
SWINGS = (0.05, 0.0, 0.01, 0.1)
#: What :attr:`Good.without` says, beside the streams that are left out (1, 2: views, 4: joints, 8: pose).
FROZEN_VIEWS, FROZEN_JOINTS, POSE_LAST, FROZEN_POSE = 16, 32, 64, 128
#: What :attr:`Good.form` says.
MORE_FIRST, REVERSED, PADDED, BGR, ONE_BY_ONE = 1, 2, 4, 8, 16
_EVENT = struct.Struct("<BIH")
_SHIFTS = struct.Struct("<BBiiiiHB")

TOPICS: tuple[str, ...] = (
    *(topics.camera_topic(name) for name in CONTRACT.camera_names),
    *(topics.JOINT_STATES, topics.END_EFFECTOR_POSE, topics.INSTRUCTION, topics.EMERGENCY_STOP, topics.DEAD_MAN),
    *(topics.camera_info_topic(name) for name in CONTRACT.camera_names),
    *(topics.EPISODE, topics.ENABLE),
    # Of another publisher of commands.
    *(topics.TWIST, topics.TARGET_POSE, topics.GRIPPER_COMMAND),
)


@dataclasses.dataclass(frozen=True)
class Event:
    """kind: index of a topic, or :data:`GOOD`. pause: microseconds before it. payload: see the module's text."""

    kind: int
    pause: int
    payload: bytes


@dataclasses.dataclass(frozen=True)
class Good:
    """``count`` observations, one a period; shifts in ms of what each stream's stamps say, and what is left out.

    more: joints beside those that the policy needs. form: how joints and pictures are written, all of it harmless.
    """

    count: int
    without: int = 0
    shifts: tuple[int, int, int, int] = (0, 0, 0, 0)
    more: int = 0
    form: int = 0

    def packed(self) -> bytes:
        """As a payload."""
        return _SHIFTS.pack(self.count, self.without, *self.shifts, self.more, self.form)

    @staticmethod
    def of(payload: bytes) -> Good:
        """What :meth:`packed` made, or damage to it."""
        count, without, *shifts, more, form = _SHIFTS.unpack(payload[: _SHIFTS.size].ljust(_SHIFTS.size, b"\0"))
        return Good(min(count, 60), without, (shifts[0], shifts[1], shifts[2], shifts[3]), more % 1000, form)


def packed(options: bytes, events: Sequence[Event]) -> bytes:
    """An input."""
    return options[:HEAD].ljust(HEAD, b"\0") + b"".join(
        _EVENT.pack(e.kind & 255, e.pause & 0xFFFFFFFF, len(e.payload[:65535])) + e.payload[:65535] for e in events
    )


def unpacked(data: bytes) -> tuple[bytes, list[Event]]:
    """Options and events of any bytes."""
    events, at = [], HEAD
    while at + _EVENT.size <= len(data):
        kind, pause, size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        events.append(Event(kind, pause, data[at : at + size]))
        at += size
    return data[:HEAD].ljust(HEAD, b"\0"), events


@dataclasses.dataclass(frozen=True)
class Options:
    """How the node is set up."""

    limits: SafetyLimits
    watch: WatchLimits
    lockstep: bool
    #: Whether the cameras' rates are known from the beginning: to measure them takes longer than most scripts.
    measured: bool
    enabled: bool
    resume: Any
    sampling: Any
    swap_when: Any = "now"

    #: Where the end effector is, and how far it swings, m.
    place: Any = None
    swing: float = SWINGS[0]
    #: Whether two publish the emergency stop, and the dead-man switch.
    shared: bool = False

    @staticmethod
    def of(raw: bytes) -> Options:
        """From an input's first bytes."""
        one, two, three, acceleration, jerk, speed, watch, place = raw[:HEAD]
        lockstep = one & 15 == 15
        box = bool(one & 32)
        return Options(
            limits=SafetyLimits(
                speed=_size("speed", speed, SPEED) if one & 16 else None,
                acceleration=_size("acceleration", acceleration, (1.0,) * 6) if one & 64 else None,
                jerk=_size("jerk", jerk, (20.0,) * 6) if one & 128 else None,
                workspace_low=LOW if box else None,
                workspace_high=HIGH if box else None,
                halt_time=(0.25, 0.0, 1.0, 2.0)[two & 3],
            ),
            watch=WatchLimits.lockstep()
            if lockstep
            else WatchLimits(
                dead_man=0.5 if two & 4 else None,
                frozen_after=(10, 2, 3, 20)[watch & 3],
                frozen_motion=(0.02, 0.005, 0.1, 0.02)[watch >> 2 & 3],
                stale_after=(0.2, 0.1, 0.5, 0.3)[watch >> 4 & 3],
                future_tolerance=(0.1, 0.05, 0.3, 0.1)[watch >> 6 & 3],
            ),
            lockstep=lockstep,
            measured=bool(three & 1),
            enabled=not two & 8,
            resume="enable" if two & 16 else "auto",
            sampling=("low_noise", "mode", "sample", "sample")[two >> 5 & 3],
            place=_place(place),
            swing=SWINGS[three >> 1 & 3],
            shared=bool(two & 128),
        )

    def within(self, shifts: Sequence[int]) -> bool:
        """Whether the clocks of pictures and joints, ms each, are not clearly off."""
        late, early = (self.watch.stale_after or 0.0) * 1000 + OFF, (self.watch.future_tolerance or 0.0) * 1000 + OFF
        return all(-late < shift < early for shift in shifts)


def _size(name: str, byte: int, usual: tuple[float, ...]) -> tuple[float, ...]:
    """A limit of ``name``: the usual one for 0, and otherwise one from the least to the greatest that is allowed."""
    if not byte:
        return usual
    least, greatest = getattr(safety, "LIMIT_RANGES", _RANGES)[name][:2]
    return (min(greatest, least * (greatest / least) ** ((byte - 1) / 254)),) * 6


def _place(byte: int) -> Any:
    """(6,) where the end effector is: in the middle of the workspace for 0, otherwise at one of its walls."""
    found = WHERE.copy()
    if byte:
        wall, place = (byte - 1) % 6, PLACES[(byte - 1) // 6 % len(PLACES)]
        axis, sign = wall % 3, 1 if wall < 3 else -1
        found[axis] = (HIGH if sign > 0 else LOW)[axis] + sign * place
    return found


class Clock:
    """Both clocks of a node, moved by hand; monotonic: s, wall: ns."""

    def __init__(self) -> None:
        self.monotonic_seconds = 1000.0
        self.wall_nanoseconds = BEGIN

    def monotonic(self) -> float:
        """s, monotonic."""
        return self.monotonic_seconds

    def wall(self) -> int:
        """ns."""
        return self.wall_nanoseconds

    def to(self, monotonic: float) -> None:
        """Let time pass."""
        ahead = max(0.0, monotonic - self.monotonic_seconds)
        self.monotonic_seconds += ahead
        self.wall_nanoseconds += round(ahead * 1e9)


class Published:
    """Looks at every message that a node publishes."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self.expected = Expected(
            Setup(
                options.limits, options.watch, CONTRACT, INSTRUCTIONS, options.lockstep, options.enabled, options.shared
            ),
            clock.monotonic,
        )  # fmt: skip
        self.count = 0
        self.statuses = 0
        #: Status codes, and twists that moved the arm, so that a test can see what a script reaches.
        self.codes: set[StatusCode] = set()
        self.moved = self.running = 0
        gripper = GripperProfile()
        self._grips = (gripper.open_position, gripper.closed_position)
        speed = options.limits.speed
        # Without a limit of the operator's: the top speed of the bundle that the operator configured.
        self._speed = np.array(speed) if speed is not None else CONTRACT.action.response.twist(np.ones(7))

    def publishers_of(self, topic: str) -> int:
        """How many send on ``topic``."""
        return 1 + (self._options.shared and topic in (topics.EMERGENCY_STOP, topics.DEAD_MAN))

    def see(self, topic: str, message: Any) -> None:
        """:class:`Violation` for what must never be sent."""
        self.count += 1
        self._look(topic, message)
        self.expected.see(topic, message)

    def _look(self, topic: str, message: Any) -> None:
        if topic == topics.TWIST:
            linear, angular = message.twist.linear, message.twist.angular
            twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
            finite("~/twist", twist, -self._speed, self._speed)
            self.moved += bool(twist.any())
        elif topic == topics.TARGET_POSE:
            place, turn = message.pose.position, message.pose.orientation
            position = np.array([place.x, place.y, place.z])
            finite("~/target_pose", position, -np.inf, np.inf)
            finite("~/target_pose orientation", np.array([turn.x, turn.y, turn.z, turn.w]), -1.0, 1.0)
            if self._options.limits.workspace_low is not None:
                finite("~/target_pose with a workspace", position, np.array(LOW), np.array(HIGH))
        elif topic == topics.GRIPPER_COMMAND:
            require(message.position in self._grips, "a gripper position", message.position)
            finite("gripper effort", np.array([message.max_effort]), 0.0, 1e6)
        elif topic == topics.ACTION:
            finite("~/action", np.array(message.action, dtype=np.float64), -1.0, 1.0)
            require(len(message.action) == 7, "~/action has not seven entries", len(message.action))
        elif topic == topics.STATUS:
            self.statuses += 1
            require(message.code in set(map(int, StatusCode)), "an unknown status", message.code)
            self.codes.add(StatusCode(message.code))
            self.running += message.code == StatusCode.RUNNING
            require(bool(message.message), "a status without a sentence", message.code)
            size = len(message.message) + len(message.warning) + len(message.swap_message)
            require(size < 10_000, "a status of many characters", size)
        elif topic == topics.DIAGNOSTICS:
            size = sum(len(v.key) + len(v.value) for s in message.status for v in s.values)
            size += sum(len(s.message) for s in message.status)
            require(size < 20_000, "diagnostics of many characters", size)


# --- making ----------------------------------------------------------------------------------------------------------


class Script:
    """Makes and changes scripts; ``write`` serialises a message of ``types``."""

    def __init__(self, types: Any, write: Callable[[Any], bytes], builder: Any) -> None:
        self._types, self._write, self._build = types, write, builder

    def seeds(self) -> list[bytes]:
        """Whole ones: driving, an instruction, the switches, a lockstep."""
        begin, drive, more = (Event(GOOD, 0, Good(count).packed()) for count in (26, 4, 3))
        told = self.message(4, lambda: self._types.String(data=INSTRUCTIONS[1]))
        unknown = self.message(4, lambda: self._types.String(data="lift the purple box"))
        pressed = self.message(5, lambda: self._types.Bool(data=True))
        let_go = self.message(5, lambda: self._types.Bool(data=False))
        held = self.message(6, lambda: self._types.Bool(data=True))
        enable = self.message(10, lambda: self._types.Bool(data=True))
        disable = self.message(10, lambda: self._types.Bool(data=False))
        joints = self.message(2, lambda: self._build.joints(_NAMES, [0.0] * 9, BEGIN + 200_000_000, ""))
        pose = self.message(3, lambda: self._build.pose(WHERE, BEGIN + 200_000_000, "base"))
        made = [
            packed(b"\x10\0\0", [begin]),
            packed(b"\x10\0\1", [drive]),
            packed(b"\x30\x20\1", [drive, told, more]),
            packed(b"\x50\x14\1", [held, drive, pressed, more, let_go, enable, held, more]),
            packed(b"\x10\0\1", [drive, pressed, more, let_go, more, enable, more, disable, more]),
            packed(b"\x10\0\1", [drive, unknown, more, enable, more]),
            packed(b"\x10\x80\1", [drive, pressed, let_go, enable, more, disable, enable, more]),
            packed(b"\x10\0\1", [enable, drive, pressed, more, let_go, enable, more, enable, more]),
            packed(b"\x70\x43\1", [drive, joints, pose, Event(GOOD, 400_000, Good(3).packed()), more]),
            *(packed(b"\x20\0\1", [drive, Event(GOOD, 0, Good(12, shifts=s).packed())]) for s in _SHIFTED),
            *(packed(b"\0\x08\1", [drive, Event(GOOD, 0, Good(6, without=w).packed())]) for w in (1, 4, 8)),
            *(
                packed(b"\x20\x40\1", [drive, Event(GOOD, 0, Good(24, without=w).packed())])
                for w in (FROZEN_VIEWS, FROZEN_JOINTS, FROZEN_POSE)
            ),
            # At the walls, inside and outside, and with limits of which nobody thinks first.
            *(packed(bytes([0x20, 0x40, 1, 0, 0, 0, 0, place]), [drive, more]) for place in (15, 21, 28, 39, 64)),
            *(packed(bytes([0xD0, 0x40, 1, a, j]), [drive, more]) for a, j in ((0, 0), (60, 200), (200, 1), (1, 255))),
            packed(b"\x10\0\1", [Event(GOOD, 0, Good(2, more=9, form=MORE_FIRST | REVERSED | PADDED).packed()),
                                  Event(GOOD, 0, Good(2, more=300, form=BGR | ONE_BY_ONE).packed())]),
        ]  # fmt: skip
        if "Episode" in dir(self._types):
            episode = self.message(
                9,
                lambda: self._build.episode(
                    1, INSTRUCTIONS[0], seed=1, random_stream=0, stamp=BEGIN - 10**9, frame="base"
                ),
            )
            made.append(packed(b"\x1f\0\0", [episode, more, Event(GOOD, 0, Good(4, shifts=(5, 0, 0, 0)).packed())]))
        return made

    def message(self, kind: int, make: Callable[[], Any], pause: int = 1000) -> Event:
        """An event of one message; an empty one where it cannot be serialised."""
        try:
            return Event(kind, pause, self._write(make()))
        except Exception:  # the library refuses to write it: then nobody can send it
            return Event(kind, pause, b"")

    def change(self, choice: Choice, data: bytes) -> bytes:
        """An input made of another one."""
        options, events = unpacked(data)
        if choice.chance(3):
            index = choice.integer(0, HEAD - 1)
            options = options[:index] + bytes([choice.integer(0, 255)]) + options[index + 1 :]
        for _ in range(choice.pick((1, 1, 2, 4))):
            index = choice.integer(0, len(events))
            kind = choice.integer(0, 9)
            if kind <= 3 or not events:
                events[index:index] = [
                    self._made(choice, _time(events[:index])) for _ in range(choice.pick((1, 1, 2, 6)))
                ]
            elif kind == 4:
                events.insert(index, Event(GOOD, choice.pick((0, 0, 1000, 30_000, 200_000)), self._good(choice)))
            elif index == len(events):
                events = events[: choice.integer(1, len(events))] if choice.chance(2) else events + events[-3:]
            elif kind == 5:
                events.insert(choice.integer(0, len(events)), events.pop(index))
            elif kind == 6:
                events.insert(index, events[index])
            elif kind == 7:
                pause = choice.pick((0, 1, 1000, 49_999, 50_000, 100_000, 250_000, 10**6, 10**7, 2**32 - 1))
                events[index] = dataclasses.replace(events[index], pause=pause)
            elif kind == 8:
                events[index] = dataclasses.replace(events[index], payload=choice.damaged(events[index].payload))
            else:
                del events[index]
        return packed(options, events[:80])

    @staticmethod
    def _good(choice: Choice) -> bytes:
        shift = (0, 0, 0, 5, 19, 21, 24, 100, 150, 250, 300, 500, 1000, 2000, -5, -19, -21, -100, -300, -1000, -30_000)
        return Good(
            choice.pick((1, 1, 2, 4, 12, 24)),
            choice.pick((0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128)),
            (0, 0, 0, 0)
            if choice.chance(2)
            else (choice.pick(shift), choice.pick(shift), choice.pick(shift), choice.pick(shift)),
            more=choice.pick((0, 0, 0, 1, 7, 31, 64, 257, 600)),
            form=choice.integer(0, 31) if choice.chance(2) else 0,
        ).packed()

    def _made(self, choice: Choice, now: int) -> Event:
        """An odd message."""
        types, build = self._types, self._build
        kind = choice.integer(0, len(TOPICS) - 1)
        stamp = self._stamp(choice, now)
        name = TOPICS[kind]
        make: Callable[[], Any]
        if kind < len(CONTRACT.cameras):
            make = lambda: self._image(choice, stamp)  # noqa: E731
        elif name == topics.JOINT_STATES:
            make = lambda: self._joints(choice, stamp)  # noqa: E731
        elif name == topics.END_EFFECTOR_POSE:
            make = lambda: self._pose(choice, stamp)  # noqa: E731
        elif name == topics.INSTRUCTION:
            texts = (*INSTRUCTIONS, "", "lift", choice.text().replace("\ud800", "").replace("\0", ""), "x" * 60_000)
            make = lambda: types.String(data=choice.pick(texts))  # noqa: E731
        elif name == topics.EPISODE:
            make = lambda: build.episode(  # noqa: E731
                choice.pick((0, 1, 2, 2**31 - 1)), choice.pick((*INSTRUCTIONS, "", "x")),
                seed=choice.pick((0, 1, 2**31 - 1, -1)), random_stream=choice.pick((0, 1, -1, 10**6)),
                stamp=choice.pick((stamp, BEGIN - 10**9)), frame="base",
            )  # fmt: skip
        elif name in (topics.EMERGENCY_STOP, topics.DEAD_MAN, topics.ENABLE):
            make = lambda: types.Bool(data=choice.chance(2))  # noqa: E731
        elif name == topics.TARGET_POSE:
            make = lambda: self._pose(choice, stamp)  # noqa: E731
        elif name == topics.TWIST:
            make = lambda: build.twist(np.array([choice.real()] * 6), stamp, "base")  # noqa: E731
        elif name == topics.GRIPPER_COMMAND:
            make = lambda: build.gripper(choice.real(), 0.0)  # noqa: E731
        else:
            make = lambda: self._camera_info(choice, stamp)  # noqa: E731
        event = self.message(kind, make, pause=choice.pick((0, 0, 100, 1000, 20_000, 50_000)))
        return dataclasses.replace(event, payload=choice.damaged(event.payload)) if choice.chance(6) else event

    @staticmethod
    def _stamp(choice: Choice, now: int) -> int:
        ms = choice.pick((0, 0, 0, -5, 5, -40, 40, -200, 110, 300, 1000, 2000, -1000, -37_000, 37_000))
        return choice.pick((now + ms * 1_000_000, now + ms * 1_000_000, now, 0, 1, (2**31 - 1) * 10**9 + 999_999_999))

    def _image(self, choice: Choice, stamp: int) -> Any:
        sizes = (0, 1, 2, 15, 16, 17, 32, 33, 640, 2**16, 2**31, 2**32 - 1)
        encodings = (
            "rgb8",
            "rgb8",
            "bgr8",
            "rgba8",
            "mono8",
            "yuv422",
            "yuyv",
            "bayer_rggb8",
            "32FC1",
            "16UC1",
            "",
            "é",
        )
        height, width = (16, 16) if choice.chance(2) else (choice.pick(sizes), choice.pick(sizes))
        encoding = choice.pick(encodings)
        step = choice.pick((width * 3, width, width * 2, width * 4, *sizes)) & 0xFFFFFFFF
        rows = min(height, 32) * min(step, 256)
        size = choice.pick((rows, rows, rows, 0, 1, rows + 1, max(0, rows - 1)))
        data = (bytes([choice.integer(0, 255)]) * size)[:20_000]
        return self._types.Image(
            header=self._build.header(stamp, ""), height=height, width=width, encoding=encoding, is_bigendian=0,
            step=step, data=data,
        )  # fmt: skip

    def _joints(self, choice: Choice, stamp: int) -> Any:
        names = list(_NAMES)
        values = [0.0] * 7 + [0.02, -0.02]
        for _ in range(choice.integer(0, 3)):
            kind = choice.integer(0, 6)
            at = choice.integer(0, max(0, len(names) - 1))
            if kind <= 1 and values:
                values[min(at, len(values) - 1)] = choice.real()
            elif kind == 2 and names:
                del names[at]
            elif kind == 3 and names and values:
                del names[at], values[min(at, len(values) - 1)]
            elif kind == 4 and names:
                names.append(names[at])
                values.append(choice.real())
            elif kind == 5:
                names.append(choice.text().replace("\ud800", "").replace("\0", "")[:200])
                values.append(choice.real())
            else:
                values = []
        return self._build.joints(names, values, stamp, "")

    def _pose(self, choice: Choice, stamp: int) -> Any:
        message = self._build.pose(WHERE, stamp, choice.pick(("base", "", "world")))
        for part in (message.pose.position, message.pose.orientation):
            for axis in ("x", "y", "z"):
                if choice.chance(3):
                    setattr(part, axis, choice.pick((choice.real(), 3.4, 0.2999, 0.5001, -0.6)))
        return message

    def _camera_info(self, choice: Choice, stamp: int) -> Any:
        message = self._build.camera_info(CONTRACT.cameras[0], 16, 16, stamp)
        message.k[4] = choice.real()
        message.height = choice.pick((0, 1, 16, 2**32 - 1))
        message.width = choice.pick((0, 1, 16, 2**32 - 1))
        return message


_SHIFTED = ((0, 24, 0, 0), (300, 300, 0, 0), (0, 0, 1000, 0), (0, 0, 0, 1000), (-37_000, -37_000, 0, 0))
_NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]


def _time(events: Sequence[Event]) -> int:
    """ns, of the wall clock, after ``events``."""
    passed = sum(event.pause for event in events) * 1000
    return BEGIN + passed + sum(Good.of(e.payload).count for e in events if e.kind == GOOD) * 50_000_000


@dataclasses.dataclass
class Observation:
    """What a good robot sends of step ``number``: a list of (kind, message), for a stamp of ``now``."""

    number: int
    now: int
    place: Any
    swing: float

    def messages(self, good: Good, types: Any, build: Any, expected: Expected) -> list[tuple[int, Any]]:
        """Joints, pose and views; every stamp shifted and some left out as ``good`` says. ``expected`` hears of it."""
        stamps = [self.now + shift * 1_000_000 for shift in good.shifts]
        moved = 0.3 * math.sin(self.number / 10)
        found: list[tuple[int, Any]] = []
        # A dead driver keeps saying the same.
        values = [0.1 if good.without & FROZEN_JOINTS else moved] * 7 + [0.02, -0.02]
        frozen = 0 if good.without & FROZEN_VIEWS else self.number
        if not good.without & 4:
            expected.joints(values)
        for view in range(2):
            if not good.without & (1 << view):
                frame = np.full((16, 16, 3), (frozen * 7 + view) % 256, dtype=np.uint8)
                expected.view(CONTRACT.camera_names[view], frame.tobytes())
                rows = np.pad(frame.reshape(16, 48), ((0, 0), (0, 5))) if good.form & PADDED else frame
                image = types.Image(
                    header=build.header(max(0, stamps[view]), ""), height=16, width=16,
                    encoding="bgr8" if good.form & BGR else "rgb8", is_bigendian=0,
                    step=53 if good.form & PADDED else 48, data=rows.tobytes(),
                )  # fmt: skip
                found.append((view, image))
        if not good.without & 4:
            found += [(2, build.joints(*part, max(0, stamps[2]), "")) for part in _joint_states(good, values)]
        if not good.without & 8:
            # Noise of the last digits, as of a real one: only a dead driver repeats itself.
            there = self.place + np.array([self.swing * moved, 0.0, 1e-5 * (self.number % 7), 0.0, 0.0, 0.0])
            pose = build.pose(self.place if good.without & FROZEN_POSE else there, max(0, stamps[3]), "base")
            expected.pose(pose)
            found.insert(len(found) if good.without & POSE_LAST else 0, (3, pose))
        return found


def _joint_states(good: Good, values: list[float]) -> list[tuple[list[str], list[float]]]:
    """Names and positions of the messages of one moment."""
    more = [(f"leg_{index}", index / 100) for index in range(good.more)]
    wanted = list(zip(_NAMES, values, strict=True))
    parts = (
        [wanted, more]
        if good.form & ONE_BY_ONE and more
        else [more + wanted if good.form & MORE_FIRST else wanted + more]
    )
    if good.form & REVERSED:
        parts = [part[::-1] for part in parts]
    return [([name for name, _ in part], [value for _, value in part]) for part in parts]


# --- a node in this process ------------------------------------------------------------------------------------------


def use_one_engine(bundle: Bundle) -> None:
    """Have every policy server of this process run one network: making one takes longer than everything else."""
    engine = Engine(bundle)
    setattr(controls_module, "Engine", lambda *args, **kwargs: engine)  # noqa: B010


class Session:
    """A node whose clocks are moved by hand, and what it has published. Made anew for every input.

    Args:
        picture, types, build: as the transport has them, see :class:`PolicyLoop` and :class:`Script`.
    """

    def __init__(self, bundle: Bundle, options: Options, picture: Callable[[Any], Any], types: Any, build: Any) -> None:
        self.options = options
        self.clock = Clock()
        self.published = Published(options, self.clock)
        self._types, self._build = types, build
        self._number = 0
        self.server = PolicyServer(
            bundle, limits=options.limits, watch=options.watch, enabled=options.enabled, resume=options.resume,
            sampling=options.sampling, clock=self.clock.monotonic,
        )  # fmt: skip
        self.server.set_instruction(INSTRUCTIONS[0])
        kind: Any = LockstepLoop if options.lockstep else RealTimeLoop
        self.cycle: Any = kind(
            self.server, picture, full_name=topics.resolve, wall_clock=self.clock.wall,
            monotonic=self.clock.monotonic,
        )  # fmt: skip
        if options.measured:
            self.cycle._stream.intervals.update(dict.fromkeys(CONTRACT.camera_names, CONTRACT.period))

    def deliver(self, topic: str, data: Any) -> None:
        """Bytes arrive on a topic, or a message that is whole."""
        raise NotImplementedError

    def decoded(self, topic: str, data: bytes) -> Any:
        """The message that ``data`` is on ``topic``; raises what the transport's library does."""
        raise NotImplementedError

    def hand(self, topic: str, data: bytes) -> None:
        """Bytes of a script arrive."""
        try:
            message = self.decoded(topic, data)
        except Exception:  # the transport's: this message is none
            message = None
        self.published.expected.operator(topic, message)
        self.deliver(topic, data)
        self.turn()

    def turn(self) -> None:
        """Let the node do what it has to do now."""
        raise NotImplementedError

    def publish(self, output: Output) -> None:
        """Publish as the node does."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether the node has run as many cycles as one input may have."""
        return self.cycle.cycle_count > MOST_CYCLES

    def pause(self, seconds: float) -> None:
        """Time passes: the cycles that are due run."""
        until = self.clock.monotonic() + seconds
        while not self.options.lockstep and self.cycle.wake < until and not self.is_over:
            before = self.cycle.cycle_count
            self.clock.to(self.cycle.wake)
            self.turn()
            if self.cycle.cycle_count == before and self.cycle.wake <= self.clock.monotonic():
                break
        self.clock.to(until)

    def good(self, good: Good) -> None:
        """A robot that works, some of whose streams are shifted."""
        off = not self.options.lockstep and not self.options.within(good.shifts[:3]) and not good.without & 7
        for index in range(good.count):
            if self.is_over:
                return
            running = self.published.running
            self._number += 1
            stamp = self.clock.wall()
            self.pause(0.01)
            step = Observation(self._number, stamp, self.options.place, self.options.swing)
            for kind, message in step.messages(good, self._types, self._build, self.published.expected):
                self.deliver(TOPICS[kind], message)
            self.turn()
            self.pause(CONTRACT.period - 0.01)
            # What was taken in before may still be answered once.
            if off and index:
                require(self.published.running == running, "RUNNING on a stream that is off", good)

    def leave(self) -> None:
        """The ramp to a halt ends in time, whatever came before."""
        self.cycle.shut_down("the fuzzer wants it")
        self.published.expected.leave()
        began = self.clock.monotonic()
        while not self.cycle.may_exit:
            self.publish(self.cycle.ramp())
            self.clock.to(self.clock.monotonic() + CONTRACT.period)
            require(self.clock.monotonic() - began < LONGEST_RAMP + 1, "the node does not leave")
        require(self.published.statuses >= self.cycle.cycle_count, "a cycle without a status", self.published.statuses)


def play(data: bytes, make: Callable[[Options], Session]) -> Published:
    """Let a script's events happen to a node; what it published."""
    raw, events = unpacked(data)
    session = make(Options.of(raw))
    try:
        for event in events:
            session.pause(event.pause / 1e6)
            if event.kind == GOOD:
                session.good(Good.of(event.payload))
            elif event.kind < len(TOPICS) and len(event.payload) >= 4:
                # A middleware hands on nothing that lacks an encapsulation header.
                session.hand(TOPICS[event.kind], event.payload)
            if session.is_over:
                break
        session.leave()
    finally:
        session.server.close()
    return session.published
