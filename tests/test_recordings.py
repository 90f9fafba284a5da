"""Recordings of a robot are converted to demonstrations, by the code that runs live."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from m2distill_policy import cli
from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import RecordingError
from m2distill_policy.images.encodings import compressed_to_rgb, raw_to_rgb
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.pose import quaternion_of
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.observation import Observation
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import import_recording
from m2distill_policy.recordings.import_settings import ImportSettings
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.server import PolicyServer
from tests.bundles import INSTRUCTIONS, toy_bundle, toy_contract

CONTRACT = dataclasses.replace(libero_contract(32), text=None)
NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]
MS = 1_000_000
BEGIN = 1_700_000_000_000_000_000
TYPES = get_typestore(Stores.ROS2_JAZZY)
TYPES.register(get_types_from_msg("float64 position\nfloat64 max_effort\n", "control_msgs/msg/GripperCommand"))


@dataclass
class Teleoperation:
    """What drivers would send: (received ns, topic, type, message)."""

    messages: list[tuple[int, str, str, Any]] = field(default_factory=list)
    pose: NDArray[np.float64] = field(default_factory=lambda: np.array([0.4, 0.0, 0.3, math.pi, 0.02, -0.01]))

    def say(self, received: int, topic: str, kind: str, **content: Any) -> None:
        self.messages.append((BEGIN + received, topic, kind, TYPES.types[kind](**content)))

    @staticmethod
    def header(stamp: int) -> Any:
        seconds, rest = divmod(BEGIN + stamp, 1_000_000_000)
        time = TYPES.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=rest)
        return TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id="base")

    def stamped_pose(self, received: int, topic: str, stamp: int, pose: NDArray[np.float64]) -> None:
        x, y, z, w = quaternion_of(pose[3:])
        content = TYPES.types["geometry_msgs/msg/Pose"](
            position=TYPES.types["geometry_msgs/msg/Point"](*(float(v) for v in pose[:3])),
            orientation=TYPES.types["geometry_msgs/msg/Quaternion"](x, y, z, w),
        )
        self.say(received, topic, "geometry_msgs/msg/PoseStamped", header=self.header(stamp), pose=content)

    def twist(self, received: int, velocity: Sequence[float]) -> None:
        vector = TYPES.types["geometry_msgs/msg/Vector3"]
        content = TYPES.types["geometry_msgs/msg/Twist"](linear=vector(*velocity[:3]), angular=vector(*velocity[3:]))
        topic = topics.resolve(topics.TWIST)
        self.say(received, topic, "geometry_msgs/msg/TwistStamped", header=self.header(received), twist=content)

    def grip(self, received: int, position: float) -> None:
        kind = "control_msgs/msg/GripperCommand"
        self.say(received, topics.GRIPPER_COMMAND, kind, position=position, max_effort=0.0)

    def write(self, folder: Path, plugin: StoragePlugin) -> Path:
        with Writer(folder, version=9, storage_plugin=plugin) as writer:
            known: dict[str, Any] = {}
            for received, topic, kind, content in sorted(self.messages, key=lambda entry: entry[0]):
                if topic not in known:
                    known[topic] = writer.add_connection(topic, kind, typestore=TYPES)
                writer.write(known[topic], received, TYPES.serialize_cdr(content, kind))
        return folder


def picture(step: int, view: int) -> NDArray[np.uint8]:
    """Return a 48 x 64 image that differs between steps and views."""
    rng = np.random.default_rng([step, view])
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def teleoperation(
    steps: int = 40, *, change: Callable[[int, int], bool] = lambda step, view: True, joints_ms: int = 4
) -> Teleoperation:
    """Two cameras at 20 Hz with jitter (one rgb8, one jpeg), joints at 250 Hz, and the pose with every joint state.

    change: whether a step's picture is sent at all.
    """
    rng = np.random.default_rng(0)
    made = Teleoperation()
    for step in range(steps):
        at = 100 * MS + step * 50 * MS
        for view, name in enumerate(CONTRACT.camera_names):
            if not change(step, view):
                continue
            stamp = at + int(rng.integers(-4, 5)) * MS
            received = stamp + int(rng.integers(5, 12)) * MS
            frame = picture(step, view)
            topic = topics.camera_topic(name)
            if view == 0:
                made.say(
                    received, topic, "sensor_msgs/msg/Image", header=made.header(stamp), height=48, width=64,
                    encoding="rgb8", is_bigendian=0, step=192, data=frame.ravel(),
                )  # fmt: skip
            else:
                data = cv2.imencode(".jpg", frame[:, :, ::-1])[1].ravel()
                made.say(
                    received, topic, "sensor_msgs/msg/CompressedImage", header=made.header(stamp),
                    format="rgb8; jpeg compressed bgr8", data=data,
                )  # fmt: skip
    for at in range(0, 100 + 50 * steps, joints_ms):
        values = 0.1 * np.sin(at / 500 + np.arange(9))
        values[7:] = [0.02, -0.02]
        made.say(
            at * MS + MS, topics.JOINT_STATES, "sensor_msgs/msg/JointState", header=made.header(at * MS),
            name=NAMES, position=values, velocity=np.zeros(0), effort=np.zeros(0),
        )  # fmt: skip
        pose = made.pose.copy()
        pose[0] += at / 10_000
        made.stamped_pose(at * MS + MS, topics.END_EFFECTOR_POSE, at * MS, pose)
    return made


@pytest.mark.parametrize("plugin", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_set_points_become_the_actions_that_would_have_made_them(tmp_path: Path, plugin: StoragePlugin) -> None:
    made = teleoperation()
    rng = np.random.default_rng(1)
    wanted = rng.uniform(-1, 1, size=(40, 6))
    # A set-point 30 ms after each picture: well within the step that it belongs to. What is wanted is relative to the
    # pose at the picture's own stamp, which jitters by at most 4 ms, that is 0.4 mm of 50.
    for step, action in enumerate(wanted):
        at = 100 + step * 50
        pose = made.pose.copy()
        pose[0] += at / 10_000
        made.stamped_pose(
            (at + 30) * MS, topics.resolve(topics.TARGET_POSE), at * MS, drive.set_point(pose, action, CONTRACT)
        )
    made.grip(0, 0.08)
    made.grip(1025 * MS, 0.0)
    with Bag(made.write(tmp_path / "bag", plugin)) as bag:
        imported = import_recording(bag, CONTRACT, ImportSettings())
    episode = imported.episode
    assert len(episode) == 40 and imported.missed == 0 and imported.clipped < 0.05
    np.testing.assert_allclose(episode.actions[:, :6], wanted, atol=0.02)
    np.testing.assert_array_equal(episode.actions[:, 6], [-1.0] * 18 + [1.0] * 22)
    assert episode.ee is not None and np.abs(np.diff(episode.ee[:, 0]) - 0.005).max() < 0.0015
    for step in (0, 17, 39):
        assert episode.images["agentview_rgb"][step].shape == (32, 32, 3)
        half = cv2.resize(picture(step, 0)[:, 8:56], (32, 32), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(episode.images["agentview_rgb"][step], half)


def test_live_node_gives_identical_observations(tmp_path: Path) -> None:
    """Add the messages of a recording, at their times, to the loop that both policy nodes use."""
    contract = toy_contract()
    dropped = {(12, 0), (20, 1), (21, 1)}
    made = teleoperation(change=lambda step, view: (step, view) not in dropped, joints_ms=7)
    made.twist(50 * MS, [0.01] * 6)
    made.grip(0, 0.08)
    folder = made.write(tmp_path / "bag", StoragePlugin.MCAP)
    with Bag(folder) as bag:
        imported = import_recording(bag, dataclasses.replace(contract, text=None), ImportSettings(command="twist"))
    episode = imported.episode
    assert imported.missed > 0

    server = PolicyServer(toy_bundle(tmp_path / "bundle"), sampling="mode")
    server.set_instruction(INSTRUCTIONS[0])
    seen: list[Observation] = []
    step = server.step

    def look(observation: Observation, *args: Any, **options: Any) -> Decision:
        seen.append(observation)
        return step(observation, *args, **options)

    server.step = look  # type: ignore[method-assign]
    now = BEGIN + 0
    views = {topics.camera_topic(name): name for name in contract.camera_names}

    def frame_of(message: Any) -> NDArray[np.uint8]:
        if hasattr(message, "format"):
            return compressed_to_rgb(message.format, message.data)
        return raw_to_rgb(message.encoding, message.height, message.width, message.step, message.data)

    clock = lambda: (now - BEGIN) / 1e9  # noqa: E731
    cycle: RealTimeLoop[Any] = RealTimeLoop(server, frame_of, wall_clock=lambda: now, monotonic=clock)
    for received, topic, _, message in sorted(made.messages, key=lambda entry: entry[0]):
        while cycle.wake < (received - BEGIN) / 1e9:
            now = BEGIN + math.ceil(cycle.wake * 1e9)
            cycle.run(0.0)
        now = received
        if topic in views:
            stamp = message.header.stamp
            cycle.add_image(views[topic], stamp.sec * 1_000_000_000 + stamp.nanosec, message)
        elif topic == topics.JOINT_STATES:
            stamp = message.header.stamp
            cycle.add_joints(stamp.sec * 1_000_000_000 + stamp.nanosec, message.name, message.position.tolist())
        cycle.run(0.0)
    assert len(seen) == len(episode) and len(seen) > 35
    for index, observation in enumerate(seen):
        for name, frame in observation.images.items():
            np.testing.assert_array_equal(episode.images[name][index], frame)
        for name, values in observation.proprioception.items():
            np.testing.assert_array_equal(episode.proprioception[name][index], values)


def test_velocities_are_inverted_by_the_response_and_expire(tmp_path: Path) -> None:
    made = teleoperation()
    wanted = np.array([0.5, -0.25, 1.0, 0.0, -0.8, 0.1])
    for step in range(20):
        made.twist((100 + 50 * step + 30) * MS, drive.twist(np.append(wanted, 0), CONTRACT).tolist())
    made.twist((100 + 50 * 30 + 30) * MS, [0.4, 0, 0, 0, 0, 0])  # twice what the contract's arm ever reached
    made.grip(0, 0.08)
    with Bag(made.write(tmp_path / "bag", StoragePlugin.MCAP)) as bag:
        imported = import_recording(bag, CONTRACT, ImportSettings(command="twist"))
    actions = imported.episode.actions
    np.testing.assert_allclose(actions[:20, :6], np.tile(wanted, (20, 1)), atol=1e-6)
    still = np.flatnonzero(~actions[:, :6].any(axis=1))
    assert still[0] in (23, 24) and still[-1] == 39, "a velocity that is not said again ends"
    np.testing.assert_array_equal(actions[30, :6], [1, 0, 0, 0, 0, 0])
    assert 0.05 < imported.clipped < 0.15


def _without(part: str) -> Callable[[Teleoperation], None]:
    def spoil(made: Teleoperation) -> None:
        made.messages = [entry for entry in made.messages if part not in entry[1]]

    return spoil


def _all(part: str, change: Callable[[Any], None]) -> Callable[[Teleoperation], None]:
    def spoil(made: Teleoperation) -> None:
        for _, topic, _, message in made.messages:
            if part in topic:
                change(message)

    return spoil


def _cameras_pause(made: Teleoperation) -> None:
    made.messages = [e for e in made.messages if "image" not in e[1] or not 1.0e9 < e[0] - BEGIN < 1.6e9]


def _slow_camera(made: Teleoperation) -> None:
    frames = sorted(e[0] for e in made.messages if "agentview" in e[1])
    made.messages = [e for e in made.messages if "agentview" not in e[1] or frames.index(e[0]) % 2 == 0]


def _one_joint_less(message: Any) -> None:
    message.name, message.position = NAMES[:-1], message.position[:-1]


def _no_numbers(message: Any) -> None:
    message.position = np.full(9, np.nan)


def _half(message: Any) -> None:
    message.data = message.data[:100]


def _no_position(message: Any) -> None:
    message.position = math.nan


def _long_quaternion(message: Any) -> None:
    message.pose.orientation.w = 9.0


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_without("eye_in_hand"), r"no topic '/camera/eye_in_hand/image_raw'.*; it has /camera/agentview/image_raw"),
        (_without("gripper"), "no topic '/gripper_command'"),
        (_cameras_pause, r"no observation for 0\.\d+ s after .*; at most 0.25 s is allowed"),
        (_slow_camera, r"/camera/agentview/image_raw has 10\.\d images a second, but the contract needs 20"),
        (_all("joint_states", _one_joint_less), "cannot be used: the joint state does not name panda_finger_joint2"),
        (_all("joint_states", _no_numbers), "cannot be used: .*not finite"),
        (_all("agentview", _half), "view 'agentview_rgb': image is incomplete"),
        (_all("gripper_command", _no_position), "/gripper_command at .*: gripper command is nan; a position in m"),
        (_all("pose", _long_quaternion), "quaternion of length"),
    ],
)
def test_unusable_recordings_are_refused_with_the_cause(
    tmp_path: Path, spoil: Callable[[Teleoperation], None], expected: str
) -> None:
    made = teleoperation(60)
    made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
    made.grip(0, 0.08)
    spoil(made)
    folder = made.write(tmp_path / "bag", StoragePlugin.SQLITE3)
    with Bag(folder) as bag, pytest.raises(RecordingError, match=expected):
        import_recording(bag, CONTRACT, ImportSettings())


def test_files_that_are_not_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="there is no recording at"):
        Bag(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="cannot be read as a rosbag2"):
        Bag(tmp_path / "empty")
    made = teleoperation(steps=4)
    for plugin in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        folder = made.write(tmp_path / plugin.name, plugin)
        store = next(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))
        whole = store.read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(30):
            broken = bytearray(whole[: int(rng.integers(0, len(whole)))])
            for _ in range(3):
                if broken:
                    broken[int(rng.integers(0, len(broken)))] = int(rng.integers(0, 256))
            store.write_bytes(bytes(broken))
            try:
                with Bag(folder) as bag:
                    import_recording(bag, CONTRACT, ImportSettings(gripper=GripperProfile()))
            except RecordingError as error:
                assert str(folder) in str(error)


def test_the_command_writes_demonstrations_that_training_reads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        made = teleoperation(steps=20 + number)
        made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
        made.grip(0, 0.08)
        made.write(tmp_path / f"bag_{number}", StoragePlugin.MCAP)
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    words = ["import-bag", tmp_path / "bag_0", tmp_path / "bag_1", "--instruction", "Lift the red box."]
    words += ["--contract", tmp_path / "contract.json", "--out", tmp_path / "data"]
    assert cli.main([str(word) for word in words]) == 0
    file = DemonstrationFile(tmp_path / "data" / "lift_the_red_box_demo.hdf5")
    assert [len(episode) for episode in file] == [20, 21] and file.instruction == "Lift the red box."
    assert file.contract == CONTRACT and file.episode(0).seed is None and file.episode(0).init_state is None
    assert "2 demonstrations of 'Lift the red box.', 41 steps at 20 Hz" in capfd.readouterr().out
    assert cli.main([str(word) for word in words]) == 2
    assert "exists already" in capfd.readouterr().err
    words[words.index("Lift the red box.")] = " "
    assert cli.main([str(word) for word in words]) == 2
    assert "the instruction is ' '" in capfd.readouterr().err


def test_an_import_that_was_cut_short_goes_on_under_the_same_settings_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        made = teleoperation(steps=20)
        made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
        if number != 1:
            made.grip(0, 0.08)
        if number == 2:
            _all("joint_states", _no_numbers)(made)
        made.write(tmp_path / f"bag_{number}", StoragePlugin.MCAP)
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    words = ["import-bag", tmp_path / "bag_0", tmp_path / "bag_1", "--instruction", "lift", "--out", tmp_path / "data"]
    words += ["--contract", tmp_path / "contract.json"]
    assert cli.main([str(word) for word in words]) == 2
    assert "bag_1 has no topic '/gripper_command'" in capfd.readouterr().err
    assert not (tmp_path / "data").exists(), "what can be known beforehand leaves nothing behind"
    words[2] = tmp_path / "bag_2"
    assert cli.main([str(word) for word in words]) == 2
    assert "bag_2: the observation stamped" in capfd.readouterr().err
    other = [*words, "--set", "gripper.open_position=0.1"]
    assert cli.main([str(word) for word in other]) == 2
    assert "unfinished collection under another setting (gripper); delete that folder" in capfd.readouterr().err
    marker = tmp_path / "data" / "lift_demo.hdf5.parts" / "collection.json"
    whole = marker.read_text()
    marker.write_text(whole[:50])
    assert cli.main([str(word) for word in words]) == 2
    assert "unfinished collection under another setting; delete that folder" in capfd.readouterr().err
    marker.write_text(whole)
    made = teleoperation(steps=20)
    made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
    made.grip(0, 0.08)
    made.write(tmp_path / "again" / "bag_2", StoragePlugin.MCAP)
    words[2] = tmp_path / "again" / "bag_2"
    # What was imported and then recorded anew, under the same name, is imported anew too.
    made = teleoperation(steps=25)
    made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
    made.grip(0, 0.08)
    made.write(tmp_path / "again" / "bag_0", StoragePlugin.MCAP)
    words[1] = tmp_path / "again" / "bag_0"
    assert cli.main([str(word) for word in (*words[:2], *words[1:])]) == 2
    assert "are the same recording; name it once" in capfd.readouterr().err
    assert cli.main([str(word) for word in words]) == 0
    assert [len(e) for e in DemonstrationFile(tmp_path / "data" / "lift_demo.hdf5")] == [25, 20]
