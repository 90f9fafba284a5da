"""Convert one recording to one demonstration, with the code that makes observations on the robot.

The messages are given to :class:`~m2distill_policy.node.stream.ObservationStream` in the order and at the times at
which they were recorded. So each observation is the one that a policy would have received. The action of a step is the
command that the arm followed during the step, see :class:`~m2distill_policy.recordings.actions.Commands`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import FASTEST, Contract
from m2distill_policy.errors import ObservationError, RecordingError
from m2distill_policy.node import topics
from m2distill_policy.node.frame_names import FrameCheck, shown_frame
from m2distill_policy.node.pose import pose_from
from m2distill_policy.node.pose_gate import Measured, PoseGate, impossible
from m2distill_policy.node.stream import SLOWEST_CAMERA, ObservationStream
from m2distill_policy.recordings.actions import Commands, Imported, make_episode
from m2distill_policy.recordings.bag import Bag, Message
from m2distill_policy.recordings.clocks import StreamClocks
from m2distill_policy.recordings.import_settings import (
    ImportSettings,
    command_topic,
    joint_topics,
    require_topics,
    view_topics,
)
from m2distill_policy.recordings.playback import Playback, Step, message_to_rgb

#: Largest mean time between two observations, in control periods. Above it a recording is refused, because its actions
#: would fit a slower policy.
LONGEST_MEAN = 1.25


def import_recording(bag: Bag, contract: Contract, settings: ImportSettings) -> Imported:
    """Convert a recording to a demonstration.

    Raises:
        RecordingError: The recording has a part that a policy could not use. The message names the recording.
        ConfigError: A joint is given that is not in the contract.
    """
    require_topics(bag, contract, settings)
    views, command, joints = view_topics(contract, settings), command_topic(settings), joint_topics(settings)
    pose, grip = settings.topic(topics.END_EFFECTOR_POSE), settings.topic(topics.GRIPPER_COMMAND)
    shift = {topic: round(seconds * 1e9) for topic, seconds in settings.shift.items()}
    stream: ObservationStream[Message] = ObservationStream(
        contract,
        message_to_rgb,
        slop=round(settings.slop * 1e9),
        joints=settings.joints,
        # These two limits are off: clocks are compared at the end, and a gap in the recording is not a timeout.
        limits=replace(settings.watch, silent_after=None, future_tolerance=None),
        full_name=settings.topic,
    )
    playback, clocks = Playback(bag, contract, stream), StreamClocks(contract, settings.watch)
    commands, poses = Commands(), list[tuple[int, NDArray[np.float64]]]()
    gate, command_frames = (
        PoseGate(contract.action.response.top_speeds, frame=settings.frame),
        FrameCheck(settings.frame),
    )
    for message in bag.messages([*views, *joints, command, grip, *([pose] if pose in bag.topics else [])]):
        with _clocks_first(bag, clocks):
            began_anew = playback.advance(message.received)
        if began_anew:
            clocks.clear()
            poses.clear()
            gate.clear()
        moment, topic, content = playback.moment(message.received), message.topic, message.content
        try:
            if topic in views:
                stamp = message.stamp + shift.get(topic, 0)
                clocks.note(topic, stamp, message.received)
                interval = stream.add_view(views[topic], stamp, message, moment)
                if interval is not None and interval > SLOWEST_CAMERA * contract.period:
                    raise RecordingError(
                        f"{bag.path}: {topic} has {1 / interval:.1f} images a second, but the contract needs "
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
            elif topic == command:
                is_twist = settings.command == "twist"
                motion = _twist(content.twist) if is_twist else _pose(content.pose)
                _require_possible(command_frames.problem(content.header.frame_id))
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
            playback.run(message.received)
    clocks.check(bag.path)
    _require_one_frame(bag, (pose, gate.frame), (command, command_frames.frame))
    _require_rate(bag, contract, playback.steps, clocks)
    if len(playback.steps) < 2:
        why = stream.why_no_set(-math.inf)
        raise RecordingError(
            f"{bag.path} gives {len(playback.steps)} observations"
            + (f"; its messages cannot be used: {why.message}" if why is not None else "")
            + f"; images and joints within {settings.slop:g} s of each other are needed, over at least two periods"
        )
    imported = make_episode(bag, contract, settings, playback, commands, poses)
    known = (settings.frame, gate.frame, contract.action.frame)
    is_unknown = settings.command == "twist" and not any(known[:2]) and command_frames.frame not in ("", known[2])
    return replace(imported, unknown_frame=command_frames.frame if is_unknown else "")


@contextlib.contextmanager
def _clocks_first(bag: Bag, clocks: StreamClocks) -> Iterator[None]:
    """If an error occurs inside this context, report different clocks instead, which are then the likely cause."""
    try:
        yield
    except RecordingError:
        clocks.check(bag.path)
        raise


def _require_possible(why: str | None) -> None:
    """Raise :class:`ObservationError` if ``why`` is a reason for which a message cannot be used; None is no reason."""
    if why is not None:
        raise ObservationError(f"the message cannot be used: {why}; check who publishes it, and record again")


def _require_one_frame(bag: Bag, measured: tuple[str, str], command: tuple[str, str]) -> None:
    """Refuse poses and commands in different frames.

    Args:
        bag: The recording, for the message.
        measured: Topic and frame of the poses; the frame is "" if unknown.
        command: Topic and frame of the commands; the frame is "" if unknown.
    """
    (topic, frame), (other_topic, other) = measured, command
    if frame and other and frame != other:
        raise RecordingError(
            f"{bag.path}: {topic} is in the frame {shown_frame(frame)} and {other_topic} in {shown_frame(other)}; "
            "publish both in the frame of the arm's base and record again"
        )


def _require_rate(bag: Bag, contract: Contract, steps: Sequence[Step], clocks: StreamClocks) -> None:
    """Refuse a recording with a lower rate than the contract's, because each action would last too long."""
    if len(steps) < 2:
        return
    mean = (steps[-1].observation.stamp - steps[0].observation.stamp) / (len(steps) - 1)
    if mean > LONGEST_MEAN * contract.period:
        rates = ", ".join(f"{label} {rate:.1f}" for label, rate in clocks.rates().items())
        raise RecordingError(
            f"{bag.path}: there are {1 / mean:.1f} observations a second, but the contract needs {contract.rate_hz:g}; "
            f"messages a second are {rates}. Let the slow or irregular one publish faster and record again"
        )


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
