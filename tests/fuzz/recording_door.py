"""Recordings: damage to rosbag2's files, and recordings whose messages, stamps and types are odd.

An input is a folder's files, see :func:`tests.fuzz.door.pack`: SQLite, MCAP, either of them compressed. What opens is
imported as ``m2distill import-bag`` does. A file that no folder can hold (:data:`MARK`) says which topics were changed:
what came of the others must be what was written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstrations import Episode
from m2distill_policy.errors import M2DistillError
from m2distill_policy.node import topics
from m2distill_policy.node.pose import quaternion_of
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import import_recording
from m2distill_policy.recordings.import_settings import ImportSettings
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door, Folder, pack, unpack
from tests.fuzz.invariant import Violation, finite, require

CONTRACT: Contract = dataclasses.replace(libero_contract(16), text=None)
NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]
MS = 1_000_000
BEGIN = 1_700_000_000_000_000_000
TYPES = get_typestore(Stores.ROS2_JAZZY)
TYPES.register(get_types_from_msg("float64 position\nfloat64 max_effort\n", "control_msgs/msg/GripperCommand"))
STEPS = 30
#: The step in which the gripper is told to close.
CLOSES = 15
LARGEST = 1 << 20
#: Name of the entry that says what is known of a recording: the changed topics, as JSON; no entry: nothing is known.
MARK = "known/topics"
#: Stands for a change of when messages were recorded, which may pair them otherwise.
TIMES = "times"

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


def _pose_at(step: int) -> NDArray[np.float64]:
    return np.array([0.4 + step / 1000, 0.0, 0.3, math.pi, 0.0, 0.0])


def _ahead(step: int) -> list[float]:
    """m by which the set-point is ahead, and each step's is another."""
    return [0.01 + 0.001 * (step % 5), -0.004, 0.002 * (step % 3)]


def _speed(step: int) -> float:
    return 0.01 + 0.002 * (step % 4)


def _joints_at(step: int) -> NDArray[np.float64]:
    return np.array([*0.1 * np.sin(step / 10 + np.arange(7)), 0.02 + step / 10_000, -0.02 - step / 10_000])


def _group_at(columns: list[int], step: int) -> NDArray[np.float64]:
    return _joints_at(step)[columns]


def _whole() -> list[Said]:
    """A short teleoperation: two cameras at 20 Hz, joints and pose at 50 Hz, set-points, velocities, gripper."""
    said: list[Said] = []
    vector = TYPES.types["geometry_msgs/msg/Vector3"]
    for step in range(STEPS):
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
        pose = _pose_at(step)
        target = pose + np.array([*_ahead(step), 0.0, 0.0, 0.0])
        said.append(_posed(topics.resolve(topics.TARGET_POSE), at + 20 * MS, target))
        speed = float(_speed(step))
        twist = TYPES.types["geometry_msgs/msg/Twist"](linear=vector(speed, 0.0, 0.0), angular=vector(0.0, 0.0, -speed))
        said.append(_say(topics.resolve(topics.TWIST), TWIST, at + 20 * MS, header=_header(at), twist=twist))
        for part in range(0, 50, 25):
            now = at + part * MS
            values = _joints_at(step)
            said.append(
                _say(topics.JOINT_STATES, JOINTS, now + MS, header=_header(now), name=NAMES, position=values,
                     velocity=np.zeros(0), effort=np.zeros(0))
            )  # fmt: skip
            said.append(_posed(topics.END_EFFECTOR_POSE, now, pose))
    for when, position in ((BEGIN, 0.08), (BEGIN + CLOSES * 50 * MS + 20 * MS, 0.0)):
        said.append(_say(topics.GRIPPER_COMMAND, GRIPPER, when, position=position, max_effort=0.0))
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
        mark = files.pop(MARK, None)
        path = self._folder.fill(files)
        number = hashlib.sha256(data).digest()[0]
        if len(files) == 1 and number % 2 == 0:  # 'ros2 bag record' writes a folder; people give its file
            path = path / next(iter(files))
        settings = ImportSettings(command="twist" if number % 3 == 0 else "target_pose")
        touched = None if mark is None else frozenset(json.loads(mark))
        try:
            with Bag(path) as bag:
                imported = import_recording(bag, CONTRACT, settings)
                bag.number
        except M2DistillError as error:
            if touched == frozenset():
                raise Violation(f"a whole recording is refused: {error}") from error
            raise
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
        if touched is not None and _VIEWS[0] not in touched:
            _compare(episode, settings.command, touched)

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        if not self._seeds:
            said = _whole()
            for plugin, mode in (
                (StoragePlugin.MCAP, CompressionMode.NONE), (StoragePlugin.SQLITE3, CompressionMode.NONE),
                (StoragePlugin.SQLITE3, CompressionMode.FILE), (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
                (StoragePlugin.MCAP, CompressionMode.STORAGE),
            ):  # fmt: skip
                self._seeds.append(pack({**_recorded(said, plugin, mode), MARK: b"[]"}))
        return self._seeds

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        files = unpack(data)
        if not files or choice.chance(20):
            files = unpack(choice.pick(self.seeds())) or {}
        mark = files.pop(MARK, None)
        kind = choice.integer(0, 7)
        if kind <= 5:
            said = _messages(files)
            if said:
                touched = None if mark is None else set(json.loads(mark))
                for _ in range(choice.pick((1, 1, 2, 3))):
                    edit = _edited_a_little if kind >= 3 else _edited
                    changed, names = edit(choice, said)
                    if changed:
                        said = changed
                        touched = None if touched is None else touched | names
                plugin = choice.pick((StoragePlugin.MCAP, StoragePlugin.SQLITE3))
                mode = choice.pick((CompressionMode.NONE,) * 4 + (CompressionMode.FILE, CompressionMode.MESSAGE))
                if plugin is StoragePlugin.MCAP and mode is not CompressionMode.NONE:
                    mode = CompressionMode.STORAGE
                files = _recorded(said, plugin, mode)
                if touched is not None:
                    files[MARK] = json.dumps(sorted(touched)).encode()
        elif kind == 6 and choice.chance(2):
            name = choice.pick(sorted(files))
            if choice.chance(2):
                del files[name]
            else:
                files[choice.pick(("x.mcap", "x.db3", "x.db3.zstd", "metadata.yaml", "bag_0.mcap"))] = files.pop(name)
        else:
            name = choice.pick(sorted(files))
            files = {**files, name: choice.damaged(files[name])}
        packed = pack(files)
        return packed if len(packed) <= LARGEST else data


_VIEWS = tuple(topics.camera_topic(name) for name in CONTRACT.camera_names)


def _compare(episode: Episode, told: str, touched: frozenset[str]) -> None:
    """What was imported is what was written. A step's number is the grey of its first view."""
    first, second = (episode.images[name] for name in CONTRACT.camera_names)
    steps = first[:, 0, 0, 0].astype(int)
    require(bool((first == first[:, :1, :1, :1]).all()), "a picture is not what was written")
    require(bool((np.diff(steps) > 0).all()), "steps out of order", steps.tolist())
    #: How far messages of two streams may be apart where one of them was shifted or left out.
    loose = 0 if not touched else 1
    if not touched:
        require(len(steps) >= STEPS - 2, "steps are lost", len(steps))
    if _VIEWS[1] not in touched:
        off = np.abs(second.reshape(len(steps), -1).astype(int) - steps[:, None]).max()
        require(int(off) <= 3 + loose, "the second view is of another step", int(off))
    for group in CONTRACT.proprioception:
        if topics.JOINT_STATES not in touched:
            wanted_joints = functools.partial(_group_at, [NAMES.index(entry) for entry in group.entries])
            found = episode.proprioception[group.name]
            _one_of(f"{group.name} are not what was written", found, steps, loose, wanted_joints)
    if episode.ee is not None and topics.END_EFFECTOR_POSE not in touched:
        _one_of("poses are not what was written", episode.ee, steps, loose, _pose_at)
    scale, response = CONTRACT.action.translation_scale, CONTRACT.action.response
    if told == "twist" and topics.resolve(topics.TWIST) not in touched:
        sizes = np.array(
            [[np.interp(_speed(s), row, response.levels) for row in response.velocities] for s in range(60)]
        )
        signs = np.array([1.0, 0.0, 0.0, 0.0, 0.0, -1.0])
        if TIMES not in touched:  # a velocity holds for some time only
            _one_of(
                "velocities are not what was told", episode.actions[:, :6], steps, loose, lambda s: signs * sizes[s]
            )
    if told == "target_pose" and not touched & {topics.resolve(topics.TARGET_POSE), topics.END_EFFECTOR_POSE, TIMES}:
        lags = range(-loose, loose + 1)
        wanted = [[(np.array([lag / 1000, 0, 0]) + _ahead(s + lag)) / scale for s in steps.tolist()] for lag in lags]
        far = np.abs(episode.actions[None, :, :3] - np.array(wanted)).max(axis=2).min(axis=0)
        require(float(far.max()) < 1e-4, "actions are not what was told", float(far.max()))
    if not touched & {topics.GRIPPER_COMMAND, TIMES}:
        for step, entry in zip(steps.tolist(), episode.actions[:, 6].tolist(), strict=True):
            if abs(step - CLOSES) > loose:
                wanted_entry = 1.0 if step >= CLOSES else -1.0
                require(entry == wanted_entry, "the gripper is not what it was told", (step, entry))
            elif not loose:
                require(entry == 1.0, "the gripper closes too late", (step, entry))


def _one_of(
    what: str, found: NDArray[Any], steps: NDArray[Any], loose: int, wanted: Callable[[int], NDArray[np.float64]]
) -> None:
    """Each row is what ``wanted`` says of its step, or of one that is at most ``loose`` away."""
    for row, step in zip(found, steps.tolist(), strict=True):
        off = min(float(np.abs(row - wanted(s)).max()) for s in range(step - loose, step + loose + 1))
        require(off < 1e-5, what, (step, row.tolist(), wanted(step).tolist()))


def _edited_a_little(choice: Choice, said: list[Said]) -> tuple[list[Said], set[str]]:
    """A change that another robot or recorder could bring, and the topics whose contents or stamps differ by it."""
    topic = choice.pick(sorted({message.topic for message in said}))
    kind = choice.integer(0, 7)
    index = choice.integer(0, len(said) - 1)
    if kind == 0:  # messages are recorded a little later
        late = {name: choice.integer(0, 3) * MS for name in {m.topic for m in said}}
        moved = [dataclasses.replace(m, received=m.received + late[m.topic]) for m in said]
        return sorted(moved, key=lambda m: m.received), {TIMES}
    if kind == 1:  # a topic that nobody asked for
        more = _say(
            "/chatter", "std_msgs/msg/String", said[index].received, data=choice.text().replace("\ud800", "")[:50]
        )
        return [*said[:index], more, *said[index:]], set()
    if kind == 2:  # a clock that is a little off
        shift = choice.pick((-5, -2, 1, 3, 9)) * MS
        return [_stamped(m, shift) if m.topic == topic else m for m in said], {topic}
    if kind == 3:  # a message is lost
        return [*said[:index], *said[index + 1 :]], {said[index].topic}
    if kind == 4:  # joints of other parts of the robot, in front or behind
        count = choice.pick((1, 8, 40, 300))
        return [_with_more_joints(m, count, bool(index % 2)) for m in said], set()
    if kind == 5:  # grey is the same in any order of colours, and rows may have an end that is not used
        return [_padded(m, choice.pick(("rgb8", "bgr8"))) for m in said], set()
    if kind == 6:
        return [_as_png(m) for m in said], set()
    return said[: max(index, len(said) // 2)], {topics.GRIPPER_COMMAND, TIMES}


def _with_more_joints(message: Said, count: int, first: bool) -> Said:
    content = _content(message) if message.kind == JOINTS else None
    if content is None or len(content.name) != len(content.position):
        return message
    # Names of their own when this is done to a message again: a joint twice with two positions is no whole recording.
    names, more = list(content.name), [f"leg_{len(content.name) + index}" for index in range(count)]
    content.name = more + names if first else names + more
    values = np.linspace(-1, 1, count)
    content.position = np.concatenate([values, content.position] if first else [content.position, values])
    return _again(message, content)


def _padded(message: Said, encoding: str) -> Said:
    content = _content(message) if message.kind == IMAGE else None
    if content is None or (content.height, content.width, content.step, content.data.size) != (16, 16, 48, 768):
        return message
    content.encoding, content.step = encoding, 56
    content.data = np.pad(content.data.reshape(16, 48), ((0, 0), (0, 8))).ravel()
    return _again(message, content)


def _as_png(message: Said) -> Said:
    content = _content(message) if message.kind == COMPRESSED and message.topic == _VIEWS[1] else None
    if content is None or content.format != "jpeg":
        return message
    picture = cv2.imdecode(content.data, cv2.IMREAD_COLOR)
    if picture is None:
        return message
    content.format, content.data = "png", cv2.imencode(".png", picture)[1].ravel()
    return _again(message, content)


def _edited(choice: Choice, said: list[Said]) -> tuple[list[Said], set[str]]:
    """Messages whose times, types or contents are odd, and the topics that it is all about."""
    topic = choice.pick(sorted({message.topic for message in said}))
    kind = choice.integer(0, 9)
    shift = choice.pick((1, 24, 100, 300, 800, 2000, 3_600_000, 10**9, -300, -800, -3_600_000, -1_700_000_000_000)) * MS
    index = choice.integer(0, len(said) - 1)
    if kind == 0:  # a stream's clock
        return [_stamped(m, shift) if m.topic == topic else m for m in said], {topic}
    if kind == 1:  # when a stream was recorded
        moved = [dataclasses.replace(m, received=m.received + shift) if m.topic == topic else m for m in said]
        return (sorted(moved, key=lambda m: m.received) if choice.chance(2) else moved), {topic, TIMES}
    if kind == 2:  # a gap, or a clock that was set
        later = [dataclasses.replace(m, received=m.received + shift) if i >= index else m for i, m in enumerate(said)]
        return later, {TIMES}
    if kind == 3:
        return [m for m in said if m.topic != topic], {topic}
    if kind == 4:  # two types of one topic, or another type
        other = choice.pick(KINDS)
        return [dataclasses.replace(m, kind=other) if m.topic == topic and choice.chance(2) else m for m in said], {
            topic
        }
    if kind == 5:
        one = said[index]
        return [*said[:index], dataclasses.replace(one, raw=choice.damaged(one.raw)), *said[index + 1 :]], {one.topic}
    if kind == 6:
        return (said[:index] if choice.chance(2) else said[index:]), {TIMES, topics.GRIPPER_COMMAND}
    if kind == 7:
        return [m for i, m in enumerate(said) if m.topic != topic or i % 2], {topic}
    if kind == 8:
        more = [said[index]] * choice.pick((1, 5, 100))
        return [*said[: index + 1], *more, *said[index + 1 :]], {said[index].topic}
    changed = [
        _changed(choice, m) if i == index or (m.topic == topic and choice.chance(5)) else m for i, m in enumerate(said)
    ]
    return changed, {topic, said[index].topic}


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
