"""import-bag: clock and rate of every stream, gaps, and split joint states, with the live rules."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin

from m2distill_policy import cli
from m2distill_policy.errors import RecordingError
from m2distill_policy.node import topics
from m2distill_policy.recordings.actions import Imported
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import import_recording
from m2distill_policy.recordings.import_settings import ImportSettings
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.test_recordings import BEGIN, CONTRACT, MS, NAMES, TYPES, Teleoperation, teleoperation

S = 1000 * MS
A, B = (topics.camera_topic(name) for name in CONTRACT.camera_names)
STREAMS = {"A": A, "B": B, "joints": topics.JOINT_STATES, "pose": topics.END_EFFECTOR_POSE}


def made(steps: int = 50, **options: Any) -> Teleoperation:
    found = teleoperation(steps, **{"joints_ms": 10, **options})
    found.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, found.pose)
    found.grip(0, 0.08)
    return found


def shifted(found: Teleoperation, topic: str, nanoseconds: int, since: int = 0) -> Teleoperation:
    """Shift the stamps of one topic."""
    for received, name, _, message in found.messages:
        if name == topic and received - BEGIN >= since:
            stamp = message.header.stamp
            at = stamp.sec * S + stamp.nanosec + nanoseconds
            message.header.stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=at // S, nanosec=at % S)
    return found


def received(found: Teleoperation, change: Callable[[int], int]) -> Teleoperation:
    """Change the times of recording, ns since the beginning."""
    found.messages = [(BEGIN + change(at - BEGIN), *rest) for at, *rest in found.messages]
    return found


def imported(folder: Path, found: Teleoperation, **settings: Any) -> Imported:
    with Bag(found.write(folder / "bag", StoragePlugin.MCAP)) as bag:
        return import_recording(bag, CONTRACT, ImportSettings(**settings))


OFFSETS = (*(s * x for x in (0.05, 0.12, 0.3, 0.8, 2.0, 37.0) for s in (1, -1)), -1.7e9)
EVERY: list[tuple[tuple[str, ...], float]] = [((name,), offset) for name in STREAMS for offset in OFFSETS]
EVERY += [(names, offset) for names in itertools.combinations(STREAMS, 2) for offset in (0.3, -0.3)]


@pytest.mark.parametrize(("names", "offset"), EVERY)
def test_each_stream_with_a_clock_offset_is_imported_or_reported(
    tmp_path: Path, names: tuple[str, ...], offset: float
) -> None:
    found = made()
    for name in names:
        shifted(found, STREAMS[name], round(offset * 1e9))
    if -0.2 < offset < 0.1:
        limits = WatchLimits()
        try:
            assert len(imported(tmp_path, found, watch=limits).episode) >= 40
        except RecordingError as error:  # in tolerance, and yet no two of them fit
            assert "no observation for" in str(error) or "within 0.02 s" in str(error)
        return
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, found)
    text = str(caught.value)
    assert any(STREAMS[name] in text for name in names), text
    said = re.search(r"are (\d+\.\d+) s (ahead|behind)", text)
    assert said is not None and abs(float(said[1]) - abs(offset)) < 0.02 and "watch." in text, text


def test_a_recording_on_another_clock_as_a_whole_is_imported(tmp_path: Path) -> None:
    """Simulated time, or a recorder with a wrong clock."""
    expected = imported(tmp_path / "right", made()).episode
    for offset in (-BEGIN, -300 * MS, 300 * MS):
        found = made()
        for topic in STREAMS.values():
            shifted(found, topic, offset)
        episode = imported(tmp_path / str(offset), found).episode
        np.testing.assert_array_equal(episode.actions, expected.actions)
        for offset_of_one in (300 * MS, -500 * MS) if offset == -BEGIN else ():
            for name in STREAMS:
                found = made()
                for topic in STREAMS.values():
                    shifted(found, topic, offset)
                shifted(found, STREAMS[name], offset_of_one)
                with pytest.raises(RecordingError, match="stamps of"):
                    imported(tmp_path / f"{offset}{name}{offset_of_one}", found)


def test_a_clock_that_is_set_in_the_middle_is_named(tmp_path: Path) -> None:
    for name in ("A", "joints", "pose"):
        found = shifted(made(100), STREAMS[name], 500 * MS, since=3 * S)
        with pytest.raises(RecordingError):
            imported(tmp_path / name, found)


def test_busy_recorder_is_not_a_clock_fault(tmp_path: Path) -> None:
    def late(at: int) -> int:
        return max(at, 1180 * MS) if 1000 * MS < at < 1180 * MS else at

    assert len(imported(tmp_path, received(made(), late)).episode) >= 45


def test_a_known_difference_is_corrected_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = imported(tmp_path / "right", made()).episode
    found = shifted(made(), topics.JOINT_STATES, 800 * MS)
    episode = imported(tmp_path, found, shift={topics.JOINT_STATES: -0.8}).episode
    np.testing.assert_array_equal(episode.actions, expected.actions)
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    words = ["import-bag", tmp_path / "bag", "--instruction", "lift", "--contract", tmp_path / "contract.json"]
    words += ["--out", tmp_path / "data"]
    assert cli.main([str(word) for word in words]) == 2
    assert "/joint_states are 0.800 s ahead" in capfd.readouterr().err
    for rule in ("/joint_states", "=1", "/joint_states=soon", "/joint_states=nan", "/joint_states=1e400"):
        assert cli.main([str(word) for word in (*words, "--shift", rule)]) == 2
        assert "TOPIC=SECONDS" in capfd.readouterr().err
    assert cli.main([str(word) for word in (*words, "--shift", "/joint_stats=1")]) == 2
    assert "did you mean '/joint_states'?" in capfd.readouterr().err
    assert cli.main([str(word) for word in (*words, "--shift", "/joint_states=-0.8")]) == 0


# --- rates -----------------------------------------------------------------------------------------------------------


def test_joints_slower_than_the_contract_are_refused_by_rate(tmp_path: Path) -> None:
    for joints_ms in (100, 66, 200):
        with pytest.raises(RecordingError, match=r"/joint_states has \d+\.\d messages a second, but .* needs 20"):
            imported(tmp_path / str(joints_ms), made(joints_ms=joints_ms))


def test_a_pose_slower_than_the_contract_is_refused_by_rate(tmp_path: Path) -> None:
    found = made()
    index = itertools.count()
    found.messages = [e for e in found.messages if e[1] != topics.END_EFFECTOR_POSE or next(index) % 10 == 0]
    with pytest.raises(RecordingError, match=r"/end_effector_pose has 10\.0 messages a second"):
        imported(tmp_path, found)


def test_observations_that_are_missing_again_and_again_are_refused_by_rate(tmp_path: Path) -> None:
    """Each camera alone is fast enough, by its median."""
    found = made(change=lambda step, view: step % 8 not in ((0, 4) if view else (2, 6)))
    with pytest.raises(RecordingError, match=r"observations a second, but the contract needs 20; messages a second"):
        imported(tmp_path, found)


# --- gaps ------------------------------------------------------------------------------------------------------------


def _clock_of_1970(found: Teleoperation, until: int) -> Teleoperation:
    """Messages before ``until`` were recorded and stamped with a clock that was not set yet."""
    early = [entry for entry in found.messages if entry[0] - BEGIN < until]
    for entry in early:
        if hasattr(entry[3], "header"):
            at = entry[3].header.stamp.sec * S + entry[3].header.stamp.nanosec - BEGIN + 100 * S
            entry[3].header.stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=at // S, nanosec=at % S)
    return received(found, lambda at: at - BEGIN + 100 * S if at < until else at)


def test_a_recording_that_began_before_the_clock_was_set_starts_there(tmp_path: Path) -> None:
    begin = time.monotonic()
    episode = imported(tmp_path, _clock_of_1970(made(), 100 * MS)).episode
    assert time.monotonic() - begin < 20 and len(episode) == 50
    expected = imported(tmp_path / "right", made()).episode
    np.testing.assert_array_equal(episode.images["agentview_rgb"], expected.images["agentview_rgb"])
    np.testing.assert_array_equal(episode.actions, expected.actions)


@pytest.mark.parametrize("gap", [0.3, 1.0, 3600.0, 1.0e6, 5.0e9])
@pytest.mark.parametrize("after", [0, 120, 1000, 2690])
def test_a_gap_anywhere_takes_no_time(tmp_path: Path, gap: float, after: int) -> None:
    found = made()
    if after == 0:
        found.grip(0, 0.08)
    found = received(found, lambda at: at + round(gap * 1e9) if at > after * MS else at)
    begin = time.monotonic()
    try:
        assert len(imported(tmp_path, found).episode) > 0
    except RecordingError:
        assert after not in (0, 2690)
    assert time.monotonic() - begin < 20


def test_long_time_with_only_joints_and_one_late_command(tmp_path: Path) -> None:
    found = made(20)
    found.grip(20_000 * S, 0.0)
    assert len(imported(tmp_path, found).episode) == 20


# --- joints in pieces ------------------------------------------------------------------------------------------------


def _in_pieces(found: Teleoperation, *, topic: str, every: int = 1) -> Teleoperation:
    """Put the gripper's joints into separate messages."""
    pieces: list[tuple[int, str, str, Any]] = []
    count = itertools.count()
    for at, name, kind, message in found.messages:
        if name != topics.JOINT_STATES:
            pieces.append((at, name, kind, message))
            continue
        parts = [(topics.JOINT_STATES, slice(0, 7))]
        parts += [(topic, slice(7, 9))] if next(count) % every == 0 else []
        for number, (where, part) in enumerate(parts):
            made = dataclasses.replace(message, name=message.name[part], position=message.position[part])
            pieces.append((at + number * MS // 2, where, kind, made))
        velocities = dataclasses.replace(message, position=np.zeros(0), velocity=np.zeros(9))
        pieces.append((at + MS // 4, topics.JOINT_STATES, kind, velocities))
    found.messages = pieces
    return found


@pytest.mark.parametrize("topic", [topics.JOINT_STATES, "/gripper/joint_states"])
@pytest.mark.parametrize("every", [1, 10, 15])
def test_arm_and_gripper_in_messages_of_their_own(tmp_path: Path, topic: str, every: int) -> None:
    expected = imported(tmp_path / "whole", made()).episode
    pieces = _in_pieces(made(), topic=topic, every=every)
    episode = imported(tmp_path, pieces, joint_topics=() if topic == topics.JOINT_STATES else (topic,)).episode
    assert len(episode) == len(expected)
    np.testing.assert_array_equal(episode.proprioception["gripper_states"], expected.proprioception["gripper_states"])
    np.testing.assert_array_equal(episode.proprioception["joint_states"], expected.proprioception["joint_states"])


def test_a_joint_twice_with_two_values_is_refused(tmp_path: Path) -> None:
    found = made()
    for _, name, _, message in found.messages:
        if name == topics.JOINT_STATES:
            message.name = [*NAMES, NAMES[3]]
            message.position = np.append(message.position, message.position[3])
    assert len(imported(tmp_path / "equal", found).episode) == 50
    for _, name, _, message in found.messages:
        if name == topics.JOINT_STATES:
            message.position[-1] += 0.5
    with pytest.raises(RecordingError, match=r"/joint_states at .*names panda_joint4 2 times"):
        imported(tmp_path / "other", found)
