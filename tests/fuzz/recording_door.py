"""Recordings: damage to rosbag2's files, and recordings whose messages, stamps and types are odd.

An input is a folder's files, see :func:`tests.fuzz.door.pack`: SQLite, MCAP, either of them compressed. What opens is
imported as ``m2distill import-bag`` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.node import topics
from m2distill_policy.node.pose import quaternion_of
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import ImportSettings, import_recording
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door, Folder, pack, unpack
from tests.fuzz.invariant import finite, require

CONTRACT: Contract = dataclasses.replace(libero_contract(16), text=None)
NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]
MS = 1_000_000
BEGIN = 1_700_000_000_000_000_000
TYPES = get_typestore(Stores.ROS2_JAZZY)
TYPES.register(get_types_from_msg("float64 position\nfloat64 max_effort\n", "control_msgs/msg/GripperCommand"))
STEPS = 8
LARGEST = 1 << 20

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, POSE = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped"
TWIST, GRIPPER = "geometry_msgs/msg/TwistStamped", "control_msgs/msg/GripperCommand"
KINDS = (IMAGE, COMPRESSED, JOINTS, POSE, TWIST, GRIPPER, "std_msgs/msg/String", "a/msg/B")


@dataclasses.dataclass(frozen=True)
class Said:
    """One message of a recording; received: ns."""

    topic: str
    kind: str
    received: int
    raw: bytes


def _say(topic: str, kind: str, received: int, **content: Any) -> Said:
    return Said(topic, kind, received, bytes(TYPES.serialize_cdr(TYPES.types[kind](**content), kind)))


def _header(stamp: int) -> Any:
    seconds, rest = divmod(stamp, 1_000_000_000)
    time = TYPES.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=rest)
    return TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id="base")


def _posed(topic: str, received: int, pose: NDArray[np.float64]) -> Said:
    x, y, z, w = quaternion_of(pose[3:])
    content = TYPES.types["geometry_msgs/msg/Pose"](
        position=TYPES.types["geometry_msgs/msg/Point"](*(float(v) for v in pose[:3])),
        orientation=TYPES.types["geometry_msgs/msg/Quaternion"](x, y, z, w),
    )
    return _say(topic, POSE, received, header=_header(received), pose=content)


def _whole() -> list[Said]:
    """A short teleoperation: two cameras at 20 Hz, joints and pose at 50 Hz, set-points, velocities, gripper."""
    said = []
    vector = TYPES.types["geometry_msgs/msg/Vector3"]
    for step in range(STEPS + 22):
        at = BEGIN + step * 50 * MS
        frame = np.full((16, 16, 3), step, dtype=np.uint8)
        for view, name in enumerate(CONTRACT.camera_names):
            topic = topics.camera_topic(name)
            if view:
                data = cv2.imencode(".jpg", frame)[1].ravel()
                said.append(_say(topic, COMPRESSED, at + 8 * MS, header=_header(at), format="jpeg", data=data))
            else:
                said.append(
                    _say(topic, IMAGE, at + 5 * MS, header=_header(at), height=16, width=16, encoding="rgb8",
                         is_bigendian=0, step=48, data=frame.ravel())
                )  # fmt: skip
        pose = np.array([0.4 + step / 1000, 0.0, 0.3, math.pi, 0.0, 0.0])
        said.append(_posed(topics.resolve(topics.TARGET_POSE), at + 20 * MS, pose + 0.01))
        twist = TYPES.types["geometry_msgs/msg/Twist"](linear=vector(0.01, 0.0, 0.0), angular=vector(0.0, 0.0, 0.1))
        said.append(_say(topics.resolve(topics.TWIST), TWIST, at + 20 * MS, header=_header(at), twist=twist))
        for part in range(0, 50, 25):
            now = at + part * MS
            values = 0.1 * np.sin(step / 10 + np.arange(9))
            values[7:] = [0.02, -0.02]
            said.append(
                _say(topics.JOINT_STATES, JOINTS, now + MS, header=_header(now), name=NAMES, position=values,
                     velocity=np.zeros(0), effort=np.zeros(0))
            )  # fmt: skip
            said.append(_posed(topics.END_EFFECTOR_POSE, now, pose))
    said.append(_say(topics.GRIPPER_COMMAND, GRIPPER, BEGIN, position=0.08, max_effort=0.0))
    return sorted(said, key=lambda message: message.received)


def _recorded(said: list[Said], plugin: StoragePlugin, mode: CompressionMode) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        place = Path(folder) / "bag"
        writer = Writer(place, version=9, storage_plugin=plugin)
        if mode is not CompressionMode.NONE:
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            known: dict[tuple[str, str], Any] = {}
            for message in said:
                key = (message.topic, message.kind)
                if key not in known:
                    known[key] = (
                        writer.add_connection(*key, typestore=TYPES)
                        if message.kind in TYPES.types
                        else writer.add_connection(*key, msgdef="int32 x\n", rihs01="RIHS01_" + "0" * 64)
                    )
                writer.write(known[key], max(0, min(message.received, 2**63 - 1)), message.raw)
        return {file.name: file.read_bytes() for file in place.iterdir()}


def _messages(files: dict[str, bytes]) -> list[Said] | None:
    """The messages of a recording that is whole; None where it is not."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name, data in files.items():
            if "/" not in name:
                (Path(folder) / name).write_bytes(data)
        try:
            with Reader(Path(folder)) as reader:
                return [Said(c.topic, c.msgtype, at, bytes(raw)) for c, at, raw in reader.messages()][:2000]
        except Exception:  # damaged: changed as bytes then
            return None


class RecordingDoor(Door):
    """See the module's text."""

    name = "recording"
    seconds = 15.0
    mebibytes = 1024

    def __init__(self) -> None:
        self._folder = Folder("recording")
        self._seeds: list[bytes] = []

    # --- letting in ---------------------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        files = unpack(data)
        if files is None:
            return
        path = self._folder.fill(files)
        number = hashlib.sha256(data).digest()[0]
        if len(files) == 1 and number % 2 == 0:  # 'ros2 bag record' writes a folder; people give its file
            path = path / next(iter(files))
        settings = ImportSettings(told="twist" if number % 3 == 0 else "target_pose")
        with Bag(path) as bag:
            imported = import_recording(bag, CONTRACT, settings)
            bag.number
        episode = imported.episode
        require(len(episode) > 0, "a recording without steps", len(episode))
        finite("an imported action", episode.actions, -1.0, 1.0)
        for group in CONTRACT.proprioception:
            finite("an imported reading", episode.proprioception[group.name], group.low, group.high)
        for camera in CONTRACT.cameras:
            shape = (len(episode), *camera.shape)
            require(episode.images[camera.name].shape == shape, "the form of pictures", shape)
        require(0 <= imported.clipped <= 1, "a share of clipped steps", imported.clipped)
        for warning in imported.warnings:
            require(len(warning) < 10_000, "a long warning", len(warning))

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        if not self._seeds:
            said = _whole()
            for plugin in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
                self._seeds.append(pack(_recorded(said, plugin, CompressionMode.NONE)))
            self._seeds.append(pack(_recorded(said, StoragePlugin.SQLITE3, CompressionMode.FILE)))
            self._seeds.append(pack(_recorded(said, StoragePlugin.SQLITE3, CompressionMode.MESSAGE)))
            self._seeds.append(pack(_recorded(said, StoragePlugin.MCAP, CompressionMode.STORAGE)))
        return self._seeds

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        files = unpack(data)
        if not files or choice.chance(20):
            files = unpack(choice.pick(self.seeds())) or {}
        kind = choice.integer(0, 5)
        if kind <= 2:
            said = _messages(files)
            if said:
                for _ in range(choice.pick((1, 1, 2, 3))):
                    said = _edited(choice, said) or said
                plugin = choice.pick((StoragePlugin.MCAP, StoragePlugin.SQLITE3))
                mode = choice.pick((CompressionMode.NONE,) * 4 + (CompressionMode.FILE, CompressionMode.MESSAGE))
                if plugin is StoragePlugin.MCAP and mode is not CompressionMode.NONE:
                    mode = CompressionMode.STORAGE
                files = _recorded(said, plugin, mode)
        elif kind == 3 and choice.chance(2):
            name = choice.pick(sorted(files))
            if choice.chance(2):
                del files[name]
            else:
                files[choice.pick(("x.mcap", "x.db3", "x.db3.zstd", "metadata.yaml", "bag_0.mcap"))] = files.pop(name)
        else:
            name = choice.pick(sorted(files))
            files = {**files, name: choice.damaged(files[name])}
        changed = pack(files)
        return changed if len(changed) <= LARGEST else data


def _edited(choice: Choice, said: list[Said]) -> list[Said]:
    """Messages whose times, types or contents are odd."""
    topic = choice.pick(sorted({message.topic for message in said}))
    kind = choice.integer(0, 9)
    shift = choice.pick((1, 24, 100, 300, 800, 2000, 3_600_000, 10**9, -300, -800, -3_600_000, -1_700_000_000_000)) * MS
    index = choice.integer(0, len(said) - 1)
    if kind == 0:  # a stream's clock
        return [_stamped(m, shift) if m.topic == topic else m for m in said]
    if kind == 1:  # when a stream was recorded
        moved = [dataclasses.replace(m, received=m.received + shift) if m.topic == topic else m for m in said]
        return sorted(moved, key=lambda m: m.received) if choice.chance(2) else moved
    if kind == 2:  # a gap, or a clock that was set
        return [dataclasses.replace(m, received=m.received + shift) if i >= index else m for i, m in enumerate(said)]
    if kind == 3:
        return [m for m in said if m.topic != topic]
    if kind == 4:  # two types of one topic, or another type
        other = choice.pick(KINDS)
        return [dataclasses.replace(m, kind=other) if m.topic == topic and choice.chance(2) else m for m in said]
    if kind == 5:
        one = said[index]
        return [*said[:index], dataclasses.replace(one, raw=choice.damaged(one.raw)), *said[index + 1 :]]
    if kind == 6:
        return said[:index] if choice.chance(2) else said[index:]
    if kind == 7:
        return [m for i, m in enumerate(said) if m.topic != topic or i % 2]
    if kind == 8:
        return [*said[: index + 1], *[said[index]] * choice.pick((1, 5, 100)), *said[index + 1 :]]
    return [
        _changed(choice, m) if i == index or (m.topic == topic and choice.chance(5)) else m for i, m in enumerate(said)
    ]


def _content(message: Said) -> Any:
    try:
        return TYPES.deserialize_cdr(message.raw, message.kind)
    except Exception:  # damaged before
        return None


def _again(message: Said, content: Any) -> Said:
    try:
        return dataclasses.replace(message, raw=bytes(TYPES.serialize_cdr(content, message.kind)))
    except Exception:  # nobody could have sent it
        return message


def _stamped(message: Said, shift: int) -> Said:
    content = _content(message)
    if not hasattr(content, "header"):
        return message
    stamp = content.header.stamp
    stamp.sec, stamp.nanosec = divmod(max(0, stamp.sec * 10**9 + stamp.nanosec + shift), 10**9)
    stamp.sec = min(stamp.sec, 2**31 - 1)
    return _again(message, content)


def _changed(choice: Choice, message: Said) -> Said:
    content = _content(message)
    if content is None:
        return message
    number = choice.real()
    if message.kind == IMAGE:
        content.encoding = choice.pick(("bgr8", "mono8", "16UC1", "yuv422", "bayer_rggb8", "", "rgb8;", "é"))
        content.height = choice.pick((16, 15, 0, 2**32 - 1))
        content.step = choice.pick((48, 0, 47, 2**32 - 1))
    elif message.kind == COMPRESSED:
        content.format = choice.pick(
            ("rgb8; jpeg compressed bgr8", "bayer_rggb8; jpeg compressed", "16UC1; png compressed", "png", "", "jpg",
             "rgb8; compressedDepth", "h264", "mono8; jpeg compressed ", "x" * 3000)
        )  # fmt: skip
        if choice.chance(2):
            content.data = np.frombuffer(choice.damaged(content.data.tobytes()), dtype=np.uint8)
    elif message.kind == JOINTS:
        position = content.position.copy()
        part = choice.integer(0, 4)
        if part == 0 and position.size:
            position[choice.integer(0, position.size - 1)] = number
            content.position = position
        elif part == 1:
            content.position = position[:0]
        elif part == 2:
            content.name, content.position = content.name[:7], position[:7]
        elif part == 3:
            content.name = [*content.name[:-1], content.name[0]] if content.name else []
        else:
            content.name = [choice.text().replace("\ud800", "").replace("\0", "")[:100] for _ in content.name]
    elif message.kind == POSE:
        part = content.pose.position if choice.chance(2) else content.pose.orientation
        setattr(part, choice.pick(("x", "y", "z")), number)
    elif message.kind == TWIST:
        setattr(content.twist.linear, choice.pick(("x", "y", "z")), number)
    elif message.kind == GRIPPER:
        content.position = number
    return _again(message, content)


def make() -> Door:
    """The door."""
    return RecordingDoor()
