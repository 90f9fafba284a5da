"""import-bag: frozen views and joints, impossible poses and frames, by the live node's checks; no files are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin

from m2distill_policy import cli
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import ConfigError, RecordingError
from m2distill_policy.node import topics
from m2distill_policy.node.joints import JointSource
from m2distill_policy.recordings.actions import Imported
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import import_recording
from m2distill_policy.recordings.import_settings import ImportSettings
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.test_recordings import BEGIN, CONTRACT, MS, Teleoperation, teleoperation

TARGET, TWIST, POSE = topics.resolve(topics.TARGET_POSE), topics.resolve(topics.TWIST), topics.END_EFFECTOR_POSE
VIEWS = [topics.camera_topic(name) for name in CONTRACT.camera_names]
STEPS = 60
COMMAND_KINDS = ("target_pose", "twist")


def driven(command_kind: str, until: int = STEPS) -> Teleoperation:
    """Return a recording of an arm that is commanded to move, up to step ``until``."""
    made = teleoperation(STEPS, joints_ms=10)
    for step in range(until):
        at = 100 + step * 50
        pose = made.pose.copy()
        pose[0] += at / 10_000 + 0.01
        pose[1] += 0.02 * math.sin(step / 3)
        if command_kind == "target_pose":
            made.stamped_pose((at + 20) * MS, TARGET, (at + 20) * MS, pose)
        else:
            made.twist((at + 20) * MS, [0.05, 0.02, 0, 0, 0, 0.1])
    made.grip(1 * MS, 0.08)
    return made


def contents(made: Teleoperation, topic: str, since: float = 0.0, until: float = math.inf) -> Iterator[Any]:
    """The messages of a topic that were recorded between two times in s."""
    for received, name, _, content in sorted(made.messages, key=lambda entry: entry[0]):
        if name == topic and since <= (received - BEGIN) / 1e9 < until:
            yield content


def imported(folder: Path, made: Teleoperation, command_kind: str = "target_pose", **settings: Any) -> Imported:
    with Bag(made.write(folder / "bag", StoragePlugin.MCAP)) as bag:
        return import_recording(bag, CONTRACT, ImportSettings(command=command_kind, **settings))  # type: ignore[arg-type]


def freeze_joints(made: Teleoperation, since: float, until: float = math.inf) -> Teleoperation:
    first = None
    for content in contents(made, topics.JOINT_STATES, since, until):
        first = content.position.copy() if first is None else first
        content.position[:] = first
    return made


def freeze_view(made: Teleoperation, topic: str, since: float) -> Teleoperation:
    first = None
    for content in contents(made, topic, since):
        first = content.data.copy() if first is None else first
        content.data = first
    return made


# --- frozen ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
@pytest.mark.parametrize("since", [0.0, 0.4, 0.8, 1.5])
def test_frozen_joints_during_commands_are_refused(tmp_path: Path, command_kind: str, since: float) -> None:
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, freeze_joints(driven(command_kind), since), command_kind)
    assert StatusCode.FROZEN_JOINTS.name in str(caught.value) and "joint_states" in str(caught.value)
    limits = WatchLimits(frozen_after=None)
    assert (
        len(imported(tmp_path / "off", freeze_joints(driven(command_kind), since), command_kind, watch=limits).episode)
        >= STEPS - 2
    )


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("since", [0.0, 0.5, 1.2])
def test_a_view_that_freezes_while_the_arm_moves_is_refused(
    tmp_path: Path, command_kind: str, view: str, since: float
) -> None:
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, freeze_view(driven(command_kind), view, since), command_kind)
    assert StatusCode.FROZEN_VIEW.name in str(caught.value)
    assert CONTRACT.camera_names[VIEWS.index(view)] in str(caught.value)


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
def test_pause_of_the_operator_is_accepted(tmp_path: Path, command_kind: str) -> None:
    """The last set-point stays 10 mm ahead of the arm, whose driver repeats the same positions."""
    made = freeze_joints(driven(command_kind, until=20), 1.1)
    where = None
    for content in contents(made, POSE, 1.1):
        where = content.pose if where is None else where
        content.pose = where
    for view in VIEWS:
        freeze_view(made, view, 1.2)
    assert len(imported(tmp_path, made, command_kind).episode) >= STEPS - 2


def test_a_set_point_that_stays_out_of_reach_is_a_command_to_move(tmp_path: Path) -> None:
    made = driven("target_pose", until=0)
    pose = made.pose.copy()
    pose[0] += 1.0
    made.stamped_pose(50 * MS, TARGET, 50 * MS, pose)
    assert len(imported(tmp_path / "moves", made).episode) >= STEPS - 2
    with pytest.raises(RecordingError, match=StatusCode.FROZEN_JOINTS.name):
        imported(tmp_path / "frozen", freeze_joints(made, 0.5))


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
def test_frozen_pose_during_commands_is_refused(tmp_path: Path, command_kind: str) -> None:
    made = driven(command_kind)
    first = None
    for content in contents(made, POSE, 0.3):
        first = content.pose if first is None else first
        content.pose = first
    with pytest.raises(RecordingError, match=StatusCode.BAD_POSE.name):
        imported(tmp_path, made, command_kind)


@pytest.mark.parametrize("positions", [(0.0, 0.8), (255.0, 0.0), (-1e30, 1e30), (0.0, 0.11), (-0.03, 0.08)])
def test_a_gripper_that_counts_in_another_unit_is_refused(tmp_path: Path, positions: tuple[float, float]) -> None:
    """Otherwise open and closed would be exchanged, or be whichever is nearer by chance."""
    made = driven("target_pose")
    made.messages = [message for message in made.messages if message[1] != topics.GRIPPER_COMMAND]
    for at, position in zip((1, 1200), positions, strict=True):
        made.grip(at * MS, position)
    with pytest.raises(RecordingError, match=r"gripper\.open_position"):
        imported(tmp_path, made)


@pytest.mark.parametrize("positions", [(0.08, 0.0), (0.085, -0.01), (0.06, 0.02), (0.1, 0.0)])
def test_gripper_commands_near_open_or_closed_are_accepted(tmp_path: Path, positions: tuple[float, float]) -> None:
    made = driven("target_pose")
    made.messages = [message for message in made.messages if message[1] != topics.GRIPPER_COMMAND]
    for at, position in zip((1, 1200), positions, strict=True):
        made.grip(at * MS, position)
    entries = imported(tmp_path, made).episode.actions[:, 6]
    assert entries[5] == -1.0 and entries[-1] == 1.0


# --- impossible ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
@pytest.mark.parametrize("at", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("field", "value"), [("x", 3.4), ("y", -1.0), ("z", 50.0), ("x", 1e30), ("y", math.nan), ("z", -math.inf)]
)
def test_one_pose_where_the_arm_cannot_be_is_refused(
    tmp_path: Path, command_kind: str, at: float, field: str, value: float
) -> None:
    made = driven(command_kind)
    setattr(next(contents(made, POSE, at)).pose.position, field, value)
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, made, command_kind)
    assert f"{POSE} at {BEGIN / 1e9 + at:.1f}"[:-2] in str(caught.value)


@pytest.mark.parametrize("at", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("value", [6.0, -50.0, 1e30, math.nan])
def test_a_set_point_that_no_arm_reaches_is_refused(tmp_path: Path, at: float, value: float) -> None:
    made = driven("target_pose")
    next(contents(made, TARGET, at)).pose.position.y = value
    with pytest.raises(RecordingError, match=TARGET):
        imported(tmp_path, made)


@pytest.mark.parametrize("part", ["linear", "angular"])
@pytest.mark.parametrize("value", [25.0, -1e9, math.inf, math.nan])
def test_a_velocity_that_no_arm_has_is_refused(tmp_path: Path, part: str, value: float) -> None:
    made = driven("twist")
    getattr(next(contents(made, TWIST, 1.0)).twist, part).z = value
    with pytest.raises(RecordingError, match=TWIST):
        imported(tmp_path, made, "twist")


def test_an_arm_that_is_moved_fast_by_hand_is_imported(tmp_path: Path) -> None:
    made = driven("target_pose")
    for index, content in enumerate(contents(made, POSE)):
        content.pose.position.y = 0.25 * math.sin(index / 40)  # at 100 Hz: up to 0.63 m/s
    assert len(imported(tmp_path, made).episode) >= STEPS - 2


# --- frames ----------------------------------------------------------------------------------------------------------


def named(made: Teleoperation, topic: str, frame: str, since: float = 0.0) -> Teleoperation:
    for content in contents(made, topic, since):
        content.header.frame_id = frame
    return made


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
@pytest.mark.parametrize("pose_frame", ["", "base", "world"])
@pytest.mark.parametrize("command_frame", ["", "base", "tool0", "/base"])
@pytest.mark.parametrize("wanted", ["", "base", "tool0"])
def test_poses_and_commands_of_two_frames_are_refused(
    tmp_path: Path, command_kind: str, pose_frame: str, command_frame: str, wanted: str
) -> None:
    topic = TARGET if command_kind == "target_pose" else TWIST
    made = named(named(driven(command_kind), POSE, pose_frame), topic, command_frame)
    names = {frame.removeprefix("/") for frame in (pose_frame, command_frame, wanted) if frame}
    if len(names) < 2:
        found = imported(tmp_path, made, command_kind, frame=wanted)
        is_unknown = command_kind == "twist" and names == {"tool0"} and not wanted
        assert found.unknown_frame == ("tool0" if is_unknown else "") and len(found.warnings) == is_unknown
        return
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, made, command_kind, frame=wanted)
    assert sum(repr(name) in str(caught.value) for name in names) == 2
    assert topic in str(caught.value) or POSE in str(caught.value)


@pytest.mark.parametrize("command_kind", COMMAND_KINDS)
@pytest.mark.parametrize("which", ["pose", "command"])
@pytest.mark.parametrize("since", [0.5, 1.0, 2.9])
def test_a_frame_that_changes_is_refused(tmp_path: Path, command_kind: str, which: str, since: float) -> None:
    topic = POSE if which == "pose" else TARGET if command_kind == "target_pose" else TWIST
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, named(driven(command_kind), topic, "camera_link", since), command_kind)
    assert topic in str(caught.value) and "'camera_link'" in str(caught.value) and "'base'" in str(caught.value)
    assert (
        len(imported(tmp_path / "empty", named(driven(command_kind), topic, "", since), command_kind).episode)
        >= STEPS - 2
    )


def test_a_very_long_frame_is_not_repeated_whole(tmp_path: Path) -> None:
    with pytest.raises(RecordingError) as caught:
        imported(tmp_path, named(driven("twist"), TWIST, "x" * 100_000), "twist")
    assert len(str(caught.value)) < 1000


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "contract.json").write_text(CONTRACT.to_json())
    return driven("target_pose").write(folder / "bag", StoragePlugin.MCAP)


def command(bag: Path, out: Path, instruction: str, *more: str) -> int:
    words = ["import-bag", str(bag), "--instruction", instruction, "--out", str(out), *more]
    return cli.main([*words, "--contract", str(bag.parent / "contract.json")])


@pytest.mark.parametrize(
    "instruction",
    ["lift\nthe box", "lift\x1b[31m", "x" * 1001, "lift the caf\udce9", "", "   ", '""', '" "', "lift\u2028it", "\0"],
)
def test_an_instruction_that_cannot_be_read_is_refused_before_anything_is_written(
    tmp_path: Path, bag: Path, instruction: str
) -> None:
    assert command(bag, tmp_path / "out", instruction, "--task", "a") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "instruction", ['"lift the box"', "   lift the box   ", '" "lift the box" "', "lift the box\n"]
)
def test_quotes_around_an_instruction_are_removed_and_reported(
    tmp_path: Path, bag: Path, instruction: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(bag, tmp_path / "out", instruction) == 0
    printed = capfd.readouterr()
    assert "'lift the box'" in printed.err and "'lift the box'" in printed.out
    assert DemonstrationFile(tmp_path / "out" / "lift_the_box_demo.hdf5").instruction == "lift the box"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--task", "../x"),
        ("--task", "x.hdf5"),
        ("--set", "joints.entries=panda_joint1,panda_joint1", "--set", "joints.names=a,b"),
        ("--set", "joints.entries=no_joint", "--set", "joints.names=a"),
        ("--set", "gripper.max_effort=-5"),
        ("--set", "gripper.threshold=0.9999"),
        ("--shift", "/joint_states=1e400"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path, bag: Path, wrong: tuple[str, str]
) -> None:
    assert command(bag, tmp_path / "out", "lift", *wrong) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [lambda made: freeze_joints(made, 0.5), lambda made: named(made, TARGET, "tool0")])
def test_a_recording_that_is_refused_leaves_no_parts(
    tmp_path: Path, spoil: Callable[[Teleoperation], Teleoperation]
) -> None:
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    recorded = spoil(driven("target_pose")).write(tmp_path / "bag", StoragePlugin.MCAP)
    assert command(recorded, tmp_path / "out", "lift") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_an_error_of_any_kind_leaves_no_parts(tmp_path: Path, bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Imported:
        raise OverflowError

    monkeypatch.setattr("m2distill_policy.recordings.episode.import_recording", fail)
    with pytest.raises(OverflowError):
        command(bag, tmp_path / "out", "lift")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(("frame", "code"), [("base", 0), ("fr3_link0", 2)])
def test_the_arms_profile_names_the_frame(tmp_path: Path, bag: Path, frame: str, code: int) -> None:
    profile = tmp_path / "arm.yaml"
    profile.write_text(
        f"/**:\n  ros__parameters:\n    pose:\n      base_frame: {frame}\n      end_effector_frame: hand\n"
    )
    assert command(bag, tmp_path / "out", "lift", "--config", str(profile)) == code


def test_an_entry_that_is_mapped_twice_is_refused(tmp_path: Path) -> None:
    joints = (JointSource("panda_joint1", "a"), JointSource("panda_joint1", "a"))
    with pytest.raises(ConfigError):
        imported(tmp_path, driven("twist"), "twist", joints=joints)


def test_set_point_speed_is_unchanged(tmp_path: Path) -> None:
    """Correct recordings are imported, with the commanded actions."""
    found = imported(tmp_path, driven("twist"), "twist")
    assert np.all(found.episode.actions[2:, 0] > 0) and found.warnings == ()
