"""One recording becomes one demonstration, by the code that makes observations while the robot runs.

The recording is played through :class:`~m2distill_policy.node.stream.ObservationStream` in the order and at the times
at which its messages were recorded, so an observation holds what the policy would have been shown. The action of a
step is what the arm was told while the step lasted, see :class:`Commands`.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import FASTEST, Contract
from m2distill_policy.demonstrations import Episode
from m2distill_policy.errors import ObservationError, RecordingError, closest
from m2distill_policy.images.encodings import compressed_to_rgb, raw_to_rgb
from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Moment
from m2distill_policy.node.frames import FrameCheck, shown_frame
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.joints import JointMap, JointSource
from m2distill_policy.node.pose import pose_from
from m2distill_policy.node.pose_gate import Measured, PoseGate, impossible
from m2distill_policy.node.stream import SLOWEST_CAMERA, ObservationStream
from m2distill_policy.observation import Observation
from m2distill_policy.recordings.bag import Bag, Message
from m2distill_policy.recordings.clocks import StreamClocks
from m2distill_policy.recordings.frozen import FrozenCheck, SetPointWay
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.watchdog import WatchLimits

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, POSE, TWIST = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"
GRIPPER = "control_msgs/msg/GripperCommand"
#: s for which a velocity command holds: MoveIt Servo and most velocity controllers stop an arm after 0.1 to 0.2 s.
TWIST_HOLDS = 0.2
#: Periods without an observation before a recording is refused: a policy would have begun a new window.
LONGEST_GAP = 5.0
#: s by which a topic's stamps may be shifted on request.
LARGEST_SHIFT = 86_400.0
#: Mean periods between two observations before a recording is refused: its actions would be those of a slower policy.
LONGEST_MEAN = 1.25
#: m between the fingers below which a gripper that nobody has told anything yet counts as closed: half of what the
#: contract's gripper opens, robosuite's Panda hand.
HALF_OPEN = 0.04
#: Share of a recording's steps that may be cut to what an action can say before somebody should look.
MOST_CLIPPED = 0.05

Told = Literal["target_pose", "twist"]


@dataclass(frozen=True)
class ImportSettings:
    """told: what the arm was told: set-points or velocities. slop: s by which the members of a set may differ.
    topic: from a topic's name in :mod:`m2distill_policy.node.topics` to its name in the recording. joint_topics: topics
    of joint states beside ``/joint_states``. watch: how far a stream may be ahead or behind, and what is frozen. shift:
    topic -> s that are added to its stamps, because its clock is known to be off. frame: the frame of poses, set-points
    and velocities, where the recording names it; empty where they must only be in one and the same."""

    told: Told = "target_pose"
    slop: float = 0.02
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    topic: Callable[[str], str] = topics.resolve
    joint_topics: tuple[str, ...] = ()
    watch: WatchLimits = field(default_factory=WatchLimits)
    shift: Mapping[str, float] = field(default_factory=dict)
    frame: str = ""


@dataclass(frozen=True)
class Imported:
    """A demonstration, and what is to be known of how it came about.

    missed: periods without an observation. clipped: share of steps whose motion was larger than an action can say.
    unknown_frame: the frame of the velocities, where nothing in the recording says that it is the contract's.
    """

    episode: Episode
    missed: int
    clipped: float
    unknown_frame: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """A message for each that deserves a look."""
        found = []
        if self.missed:
            found.append(f"{self.missed} periods had no observation; see whether the cameras keep their rate")
        if self.clipped > MOST_CLIPPED:
            found.append(
                f"{100 * self.clipped:.0f} % of the steps moved faster than an action of the contract can say and were "
                "cut: move slower, or raise action.translation_scale in a contract of your own"
            )
        if self.unknown_frame:
            found.append(
                f"the velocities are in {shown_frame(self.unknown_frame)} and are taken as in the contract's frame; "
                "name the arm's base in pose.base_frame of --config, so that another frame is refused"
            )
        return tuple(found)


@dataclass
class Commands:
    """What the arm and the gripper were told, by time of recording (ns).

    A set-point holds until the next one, as an impedance controller holds it; a velocity for :data:`TWIST_HOLDS` s.
    """

    motions: list[tuple[int, NDArray[np.float64]]] = field(default_factory=list)
    grips: list[tuple[int, float]] = field(default_factory=list)

    def motion(self, until: int) -> tuple[int, NDArray[np.float64]] | None:
        """The newest motion command before ``until``, with its time."""
        index = bisect.bisect_left(self.motions, until, key=lambda entry: entry[0])
        return self.motions[index - 1] if index else None

    def grip(self, until: int) -> float | None:
        """The newest gripper command before ``until``: a position in m."""
        index = bisect.bisect_left(self.grips, until, key=lambda entry: entry[0])
        return self.grips[index - 1][1] if index else None


@dataclass(frozen=True)
class _Step:
    """An observation, and when (ns, of recording) it would have been acted on."""

    at: int
    observation: Observation


def message_to_rgb(message: Message) -> NDArray[np.uint8]:
    """The image of an Image or CompressedImage message as uint8 (H, W, 3), RGB."""
    content = message.content
    if message.kind == COMPRESSED:
        return compressed_to_rgb(content.format, np.asarray(content.data, dtype=np.uint8))
    return raw_to_rgb(content.encoding, content.height, content.width, content.step, np.asarray(content.data, np.uint8))


def _views(contract: Contract, settings: ImportSettings) -> dict[str, str]:
    return {settings.topic(topics.camera_topic(name)): name for name in contract.camera_names}


def _joint_topics(settings: ImportSettings) -> tuple[str, ...]:
    return tuple(settings.topic(topic) for topic in topics.joint_topics(settings.joint_topics))


def _told(settings: ImportSettings) -> str:
    return settings.topic(topics.TARGET_POSE if settings.told == "target_pose" else topics.TWIST)


def require_topics(bag: Bag, contract: Contract, settings: ImportSettings) -> None:
    """:class:`RecordingError` where ``bag`` lacks a topic that a demonstration is made of, or has it otherwise;
    :class:`ConfigError` for joints that the contract does not have."""
    JointMap(contract, settings.joints)
    for topic in _views(contract, settings):
        bag.require(topic, (IMAGE, COMPRESSED))
    for topic in _joint_topics(settings):
        bag.require(topic, (JOINTS,))
    bag.require(_told(settings), (POSE,) if settings.told == "target_pose" else (TWIST,))
    bag.require(settings.topic(topics.GRIPPER_COMMAND), (GRIPPER,))
    pose = settings.topic(topics.END_EFFECTOR_POSE)
    if settings.told == "target_pose" or pose in bag.topics:
        bag.require(pose, (POSE,))
    _require_shifts(bag, settings, [*_views(contract, settings), *_joint_topics(settings), pose])


def import_recording(bag: Bag, contract: Contract, settings: ImportSettings) -> Imported:
    """The demonstration in ``bag``. :class:`RecordingError`, naming the recording, for what a policy could not use."""
    require_topics(bag, contract, settings)
    views, told, joints = _views(contract, settings), _told(settings), _joint_topics(settings)
    pose, grip = settings.topic(topics.END_EFFECTOR_POSE), settings.topic(topics.GRIPPER_COMMAND)
    shift = {topic: round(seconds * 1e9) for topic, seconds in settings.shift.items()}
    stream: ObservationStream[Message] = ObservationStream(
        contract,
        message_to_rgb,
        slop=round(settings.slop * 1e9),
        joints=settings.joints,
        # Clocks are compared with each other at the end, and a gap in the recording is no silence.
        limits=replace(settings.watch, silent_after=None, future_tolerance=None),
        full_name=settings.topic,
    )
    player, clocks = _Player(bag, contract, stream), StreamClocks(contract, settings.watch)
    commands, poses = Commands(), list[tuple[int, NDArray[np.float64]]]()
    gate, told_frames = PoseGate(contract.action.response.top_speeds, frame=settings.frame), FrameCheck(settings.frame)
    for message in bag.messages([*views, *joints, told, grip, *([pose] if pose in bag.topics else [])]):
        with _clocks_first(bag, clocks):
            began_anew = player.advance(message.received)
        if began_anew:
            clocks.clear()
            poses.clear()
            gate.clear()
        moment, topic, content = player.moment(message.received), message.topic, message.content
        try:
            if topic in views:
                stamp = message.stamp + shift.get(topic, 0)
                clocks.note(topic, stamp, message.received)
                interval = stream.add_view(views[topic], stamp, message, moment)
                if interval is not None and interval > SLOWEST_CAMERA * contract.period:
                    raise RecordingError(
                        f"{bag.path}: {topic} has {1 / interval:.1f} images a second and the contract wants "
                        f"{contract.rate_hz:g}; choose a faster camera mode and record again"
                    )
            elif topic in joints:
                stamp = message.stamp + shift.get(topic, 0)
                stream.add_joints(stamp, content.name, content.position.tolist(), moment, topic)
                label, arm = stream.describe_joints(topic, content.name)
                if label and len(content.position):
                    clocks.note(label, stamp, message.received, reference=arm, may_be_slow=not arm)
            elif topic == grip:
                commands.grips.append((message.received, _position(content)))
            elif topic == told:
                is_twist = settings.told == "twist"
                motion = _twist(content.twist) if is_twist else _pose(content.pose)
                _require_possible(told_frames.problem(content.header.frame_id))
                _require_possible(None if is_twist else impossible(motion))
                commands.motions.append((message.received, motion))
            else:
                stamp = message.stamp + shift.get(topic, 0)
                clocks.note(topic, stamp, message.received, reference=True)
                measured = Measured(stamp, moment.monotonic, _pose(content.pose), content.header.frame_id)
                _require_possible(gate.problem(measured))
                poses.append((stamp, measured.value))
        except ObservationError as error:
            with _clocks_first(bag, clocks):
                raise RecordingError(f"{bag.path}: {topic} at {message.received / 1e9:.3f} s: {error}") from error
        with _clocks_first(bag, clocks):
            player.look(message.received)
    clocks.check(bag.path)
    _require_one_frame(bag, (pose, gate.frame), (told, told_frames.frame))
    _require_rate(bag, contract, player.steps, clocks)
    if len(player.steps) < 2:
        why = stream.why_no_set(-math.inf)
        raise RecordingError(
            f"{bag.path} gives {len(player.steps)} observations"
            + (f"; its messages cannot be used: {why.message}" if why is not None else "")
            + f"; images and joints within {settings.slop:g} s of each other are needed, over at least two periods"
        )
    imported = _episode(bag, contract, settings, player, commands, poses)
    known = (settings.frame, gate.frame, contract.action.frame)
    is_unknown = settings.told == "twist" and not any(known[:2]) and told_frames.frame not in ("", known[2])
    return replace(imported, unknown_frame=told_frames.frame if is_unknown else "")


@contextlib.contextmanager
def _clocks_first(bag: Bag, clocks: StreamClocks) -> Iterator[None]:
    """Where observations cannot be used, clocks that differ are the reason that is said."""
    try:
        yield
    except RecordingError:
        clocks.check(bag.path)
        raise


def _require_possible(why: str | None) -> None:
    """:class:`ObservationError` where there is a reason why a message cannot be used."""
    if why is not None:
        raise ObservationError(f"the message cannot be used: {why}; see who publishes it, and record again")


def _require_one_frame(bag: Bag, measured: tuple[str, str], told: tuple[str, str]) -> None:
    """Refuse poses and commands of two frames; each is a topic and its frame, empty where that is not known."""
    (topic, frame), (other_topic, other) = measured, told
    if frame and other and frame != other:
        raise RecordingError(
            f"{bag.path}: {topic} is in the frame {shown_frame(frame)} and {other_topic} in {shown_frame(other)}; "
            "publish both in the frame of the arm's base and record again"
        )


def _require_shifts(bag: Bag, settings: ImportSettings, stamped: Sequence[str]) -> None:
    for topic, seconds in settings.shift.items():
        if topic not in stamped:
            raise RecordingError(
                f"{bag.path}: a shift is given for '{topic}'{closest(topic, stamped)}; the streams with stamps are "
                f"{', '.join(stamped)}"
            )
        if not abs(seconds) < LARGEST_SHIFT:
            raise RecordingError(f"{bag.path}: the shift of '{topic}' is {seconds} s; less than a day is needed")


def _require_rate(bag: Bag, contract: Contract, steps: Sequence[_Step], clocks: StreamClocks) -> None:
    """Refuse observations that come more slowly than the contract's rate: each action would last too long."""
    if len(steps) < 2:
        return
    mean = (steps[-1].observation.stamp - steps[0].observation.stamp) / (len(steps) - 1)
    if mean > LONGEST_MEAN * contract.period:
        rates = ", ".join(f"{label} {rate:.1f}" for label, rate in clocks.rates().items())
        raise RecordingError(
            f"{bag.path}: there are {1 / mean:.1f} observations a second and the contract wants {contract.rate_hz:g}; "
            f"messages a second are {rates}. Let the slow or irregular one publish faster and record again"
        )


class _Player:
    """Lets time pass for the stream as it did while the recording was made."""

    def __init__(self, bag: Bag, contract: Contract, stream: ObservationStream[Message]) -> None:
        self._bag, self._contract, self._stream = bag, contract, stream
        self._began: int | None = None
        self._newest = 0
        self._longest = LONGEST_GAP * contract.period
        self.steps: list[_Step] = []
        self.missed = 0

    def advance(self, until: int) -> bool:
        """Do what falls due before ``until`` (ns) although nothing arrives.

        Returns whether the recording begins anew here, because nothing came for long before the first observation: so
        it is where the computer's clock was set in between.
        """
        first, gap = self._began is None, (until - self._newest) / 1e9
        self._newest = until
        if first or (not self.steps and gap > self._longest):
            self._began = until
            self._stream.restart(0.0)
            return not first
        end = self._seconds(until)
        jump = end - self._longest if gap > 2 * self._longest else -math.inf
        while (at := self._stream.wake) < end:
            if at > end - gap + self._longest and at < jump:
                # Nothing can come of so long a gap: no need to walk through it period by period.
                self.missed += round((jump - at) / self._contract.period) if self.steps else 0
                at = jump
            if not self._take(at) and self._stream.missed(at) and self.steps:
                self.missed += 1
        return False

    def moment(self, received: int) -> Moment:
        """When a message arrived that was recorded at ``received`` (ns)."""
        return Moment(received, self._seconds(received))

    def look(self, now: int) -> None:
        """Act on what has just arrived."""
        self._take(self._seconds(now))

    def _seconds(self, at: int) -> float:
        assert self._began is not None
        return (at - self._began) / 1e9

    def _take(self, at: float) -> bool:
        found = self._stream.due(at)
        if found is None:
            return False
        observation, problems = self._stream.observe(found)
        try:
            if not problems:
                observation.check(self._contract)
        except ObservationError as error:
            problems = [str(error)]
        if problems:
            raise RecordingError(
                f"{self._bag.path}: the observation stamped {found.stamp / 1e9:.3f} s cannot be used: "
                + " ".join(problems)
            )
        assert self._began is not None
        if self.steps:
            _require_no_gap(self._bag, self._contract, self.steps[-1].observation.stamp, observation.stamp)
        self.steps.append(_Step(self._began + round(at * 1e9), observation))
        return True


def _episode(
    bag: Bag,
    contract: Contract,
    settings: ImportSettings,
    player: _Player,
    commands: Commands,
    poses: Sequence[tuple[int, NDArray[np.float64]]],
) -> Imported:
    poses = sorted(poses, key=lambda entry: entry[0])
    steps = [s for s in player.steps if commands.motion(_end(s, contract)) is not None]
    if not steps:
        raise RecordingError(f"{bag.path}: nobody told the arm anything while it was seen; is '{settings.told}' right?")
    if settings.told == "target_pose" and not poses:
        raise RecordingError(
            f"{bag.path}: '{settings.topic(topics.END_EFFECTOR_POSE)}' has no pose after the last long gap, and "
            "set-points need it; record it together with the cameras, or give --told twist"
        )
    ee = np.array([_pose_at(bag, poses, s, settings.slop) for s in steps]) if poses else None
    actions, way = np.zeros((len(steps), 7)), SetPointWay(contract)
    frozen = FrozenCheck(contract, settings.watch)
    for index, step in enumerate(steps):
        following = steps[index + 1].at if index + 1 < len(steps) else _end(step, contract)
        command = commands.motion(following)
        assert command is not None
        sent, motion = command
        if settings.told == "target_pose":
            assert ee is not None
            actions[index, :6] = drive.motion_to(motion, ee[index], contract)
            commanded = way.to(motion, actions[index])
        else:
            if following - sent <= TWIST_HOLDS * 1e9:
                actions[index, :6] = _action_for(motion, contract)
            commanded = drive.twist(np.clip(actions[index], -1.0, 1.0), contract)
        fault = frozen.check(step.observation, None if ee is None else ee[index], commanded)
        if fault is not None:
            raise RecordingError(f"{bag.path} at {step.at / 1e9:.3f} s: {fault.code.name}: {fault.message}")
        try:
            actions[index, 6] = _grip(commands.grip(following), step.observation, settings.gripper)
        except ObservationError as error:
            raise RecordingError(f"{bag.path} at {step.at / 1e9:.3f} s: {error}") from error
    clipped = float((np.abs(actions[:, :6]).max(axis=1) > 1 + 1e-6).mean())
    episode = Episode(
        images={name: np.stack([s.observation.images[name] for s in steps]) for name in contract.camera_names},
        proprioception={
            name: np.stack([s.observation.proprioception[name] for s in steps])
            for name in contract.proprioception_names
        },
        actions=np.clip(actions, -1.0, 1.0).astype(np.float32),
        ee=None if ee is None else ee.astype(np.float32),
    )
    return Imported(episode, player.missed, clipped)


def _end(step: _Step, contract: Contract) -> int:
    return step.at + round(contract.period * 1e9)


def _require_no_gap(bag: Bag, contract: Contract, last: float, stamp: float) -> None:
    gap = stamp - last
    if gap <= 0:
        raise RecordingError(
            f"{bag.path}: stamps go from {last:.3f} to {stamp:.3f} s; a clock was changed or a "
            "camera repeats itself, record again"
        )
    if gap > LONGEST_GAP * contract.period:
        raise RecordingError(
            f"{bag.path}: no observation for {gap:.2f} s after {last:.3f} s; at most "
            f"{LONGEST_GAP * contract.period:g} s is allowed, record again"
        )


def _pose_at(
    bag: Bag, poses: Sequence[tuple[int, NDArray[np.float64]]], step: _Step, slop: float
) -> NDArray[np.float64]:
    """The pose nearest to a step; ``poses`` are in order of their stamps."""
    wanted = round(step.observation.stamp * 1e9)
    after = bisect.bisect_left(poses, wanted, key=lambda entry: entry[0])
    stamp, value = min(poses[max(0, after - 1) : after + 1], key=lambda entry: abs(entry[0] - wanted))
    if abs(stamp - wanted) > slop * 1e9:
        raise RecordingError(
            f"{bag.path}: no pose of the end effector within {slop:g} s of the observation stamped {wanted / 1e9:.3f} s"
        )
    return value


def _action_for(velocity: NDArray[np.float64], contract: Contract) -> NDArray[np.float64]:
    """The motion entries (6,) whose response is ``velocity``; beyond what was ever reached they are larger than 1."""
    response = contract.action.response
    action = np.zeros(6)
    for axis, speed in enumerate(np.abs(velocity)):
        top = response.velocities[axis][-1]
        size = response.size_for(axis, float(speed)) if speed <= top else speed / top if top > 0 else np.inf
        action[axis] = np.copysign(size, velocity[axis]) if speed > 0 else 0.0
    return action


def _grip(position: float | None, observation: Observation, profile: GripperProfile) -> float:
    """-1 or +1: what the gripper was told, or before that how it was found.

    What it is told is in its own unit, the readings are the contract's: m, of each finger.
    """
    if position is not None:
        return profile.entry(position)
    fingers = observation.proprioception.get("gripper_states")
    return 1.0 if fingers is not None and float(np.abs(fingers).sum()) < HALF_OPEN else -1.0


def _pose(message: Any) -> NDArray[np.float64]:
    p, q = message.position, message.orientation
    return pose_from((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def _position(message: Any) -> float:
    position = float(message.position)
    if not np.isfinite(position):
        raise ObservationError(f"gripper command is {position}; a position in m is needed")
    return position


def _twist(message: Any) -> NDArray[np.float64]:
    linear, angular = message.linear, message.angular
    values = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ObservationError(f"velocity is {values.tolist()}; finite numbers are needed")
    if np.any(np.abs(values) > FASTEST):
        raise ObservationError(
            f"velocity is {values.tolist()}; at most {FASTEST[0]:g} m/s and {FASTEST[-1]:g} rad/s are plausible"
        )
    return values
