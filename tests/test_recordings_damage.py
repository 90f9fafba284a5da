"""Damaged, unfinished or unusual recordings: a demonstration, or one error in bounded time and memory."""

from __future__ import annotations

import io
import os
import resource
import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from backports import zstd
from lz4 import frame as lz4_frame  # type: ignore[import-untyped]
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from m2distill_policy import cli
from m2distill_policy.errors import RecordingError
from m2distill_policy.node import topics
from m2distill_policy.recordings import storages
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.episode import import_recording
from m2distill_policy.recordings.import_settings import ImportSettings
from tests.test_recordings import CONTRACT, MS, TYPES, Teleoperation, teleoperation

#: s and bytes that one damaged recording of 100 KiB may take: far above what a whole one does.
TIME, MEMORY = 20.0, 512 * 2**20
KINDS = ("db3", "mcap", "mcap_zstd", "file_zstd", "message_zstd", "db3_file_zstd")


def teleoperated(steps: int = 3) -> Teleoperation:
    made = teleoperation(steps, joints_ms=10)
    made.stamped_pose(50 * MS, topics.resolve(topics.TARGET_POSE), 0, made.pose)
    made.grip(0, 0.08)
    return made


def write(folder: Path, kind: str, made: Teleoperation) -> Path:
    """A recording of the storage and compression ``kind``."""
    plugin = StoragePlugin.SQLITE3 if kind.startswith("db3") else StoragePlugin.MCAP
    writer = Writer(folder, version=9, storage_plugin=plugin)
    modes = {"mcap_zstd": CompressionMode.STORAGE, "message_zstd": CompressionMode.MESSAGE}
    modes |= {"file_zstd": CompressionMode.FILE, "db3_file_zstd": CompressionMode.FILE}
    if kind in modes:
        writer.set_compression(modes[kind], CompressionFormat.ZSTD)
    with writer:
        known: dict[str, Any] = {}
        for received, topic, name, content in sorted(made.messages, key=lambda entry: entry[0]):
            if topic not in known:
                known[topic] = writer.add_connection(topic, name, typestore=TYPES)
            writer.write(known[topic], received, TYPES.serialize_cdr(content, name))
    return folder


def read(path: Path) -> int:
    """Return the number of steps of the demonstration in ``path``."""
    with Bag(path) as bag:
        assert bag.number >= 0
        return len(import_recording(bag, CONTRACT, ImportSettings()).episode)


def refused(path: Path, *words: str) -> str:
    with pytest.raises(RecordingError) as found:
        read(path)
    message = str(found.value)
    assert str(path) in message or str(path.parent) in message
    assert "\n" not in message and len(message) < 900
    for word in words:
        assert word in message, message
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One recording of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: write(folder / kind, kind, teleoperated()) for kind in KINDS}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to be damaged."""
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_recordings_of_every_kind_are_read(whole: dict[str, Path], kind: str) -> None:
    assert read(whole[kind]) >= 2


def damage(rng: np.random.Generator, content: bytes) -> bytes:
    """Bits turned, bytes changed, a run of zeros, a piece lost or doubled, an end cut off."""
    data, size = bytearray(content), len(content)
    at = int(rng.integers(size)) if rng.random() < 0.6 else int(rng.integers(max(0, size - 2000), size))
    run = int(rng.integers(1, 1 + min(4096, size // 4)))
    match int(rng.integers(7)):
        case 0:
            for place in rng.integers(0, size, int(rng.integers(1, 20))):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            for place in at + rng.integers(-40, 40, 6):
                data[int(np.clip(place, 0, size - 1))] = int(rng.integers(256))
        case 2:
            data[at : at + run] = bytes(len(data[at : at + run]))
        case 3:
            del data[at : at + run]
        case 4:
            data[at:at] = data[at : at + run]
        case 5:
            del data[at:]
        case 6:
            data[at : at + 8] = struct.pack(
                "<Q", (0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)[int(rng.integers(7))]
            )
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_recording_is_read_or_gives_one_error(copy: Callable[[str], Path], kind: str) -> None:
    folder = copy(kind)
    files = sorted(folder.iterdir())
    contents = {file: file.read_bytes() for file in files}
    rng = np.random.default_rng(KINDS.index(kind))
    refusals = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        file = (
            files[int(rng.integers(len(files)))] if rng.random() < 0.2 else max(files, key=lambda f: len(contents[f]))
        )
        file.write_bytes(damage(rng, contents[file]))
        begun = time.monotonic()
        try:
            read(folder)
        except RecordingError as error:
            assert str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 900
            refusals += 1
        assert time.monotonic() - begun < TIME
        file.write_bytes(contents[file])
    assert refusals > 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert read(folder) >= 2, "the damaged ones were of this one"


# --- unfinished and odd recordings ------------------------------------------------------------------------------


def test_single_file_of_a_recording_is_enough(whole: dict[str, Path], tmp_path: Path) -> None:
    for kind, ending in (("mcap", "mcap"), ("db3", "db3"), ("mcap_zstd", "mcap")):
        file = next(whole[kind].glob(f"*.{ending}"))
        assert read(file) == read(whole[kind])
        with Bag(file) as first, Bag(whole[kind]) as second:
            assert first.number == second.number, "named twice, it is the same recording"
        alone = Path(shutil.copy(file, tmp_path))
        assert read(alone) == read(file)
        alone.unlink()


def test_a_recorder_that_was_killed_is_named(copy: Callable[[str], Path]) -> None:
    for kind, storage in (("mcap", "mcap"), ("db3", "sqlite3")):
        folder = copy(kind)
        (folder / "metadata.yaml").unlink()
        refused(folder, f"ros2 bag reindex {folder} -s {storage}")
    folder = copy("mcap_zstd")
    file = next(folder.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-2000])
    refused(folder, "mcap recover", "ros2 bag reindex")


def test_a_database_that_was_not_closed_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("db3")
    file = next(folder.glob("*.db3"))
    file.with_name(file.name + "-wal").write_bytes(b"x")
    refused(folder, "was not closed", "VACUUM")


def test_other_files_are_refused_at_once(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("mcap")
    for name in ("x.bag", "x.txt"):
        (tmp_path / name).write_bytes(b"#ROSBAG V2.0")
        refused(tmp_path / name)
    refused(folder / "metadata.yaml", "name the folder")
    for make in (Path.mkdir, os.mkfifo):  # a fifo waits for a writer, for ever
        file = next(folder.glob("*.mcap"))
        file.rename(tmp_path / "kept")
        make(file)
        refused(folder, "is not there")
        file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "kept").rename(file)
    os.truncate(next(folder.glob("*.mcap")), 20 * 2**30)
    refused(folder)
    with pytest.raises(RecordingError) as found:
        Bag("x" * 5000)
    assert len(str(found.value)) < 900


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> Path:
    """Change the metadata of a recording."""
    file = folder / "metadata.yaml"
    data = yaml.safe_load(file.read_text())
    how(data["rosbag2_bagfile_information"])
    file.write_text(yaml.safe_dump(data))
    return folder


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info.__setitem__(name, value)


def _first_topic(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info["topics_with_message_count"][0]["topic_metadata"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (_set("storage_identifier", ""), ("storage_identifier", "write 'mcap' there", "reindex")),
        (_set("storage_identifier", None), ("storage_identifier",)),
        (_set("storage_identifier", ["mcap"]), ("storage_identifier",)),
        (_set("storage_identifier", "rosbag_v2"), ("rosbag_v2", "ros2 bag convert")),
        (_set("version", 10), ("version", "1 to 9")),
        (_set("version", "9"), ("version",)),
        (_set("version", True), ("version",)),
        (_set("relative_file_paths", []), ("names no files",)),
        (_set("relative_file_paths", None), ("names no files",)),
        (_set("relative_file_paths", [3]), ("names no files",)),
        (_set("relative_file_paths", ["/etc/passwd"]), ("outside its folder",)),
        (_set("relative_file_paths", ["../../x.mcap"]), ("outside its folder",)),
        (_set("relative_file_paths", [".."]), ("outside its folder",)),
        (_set("relative_file_paths", ["mcap.mcap", "x/mcap.mcap"]), ("twice",)),
        (_set("relative_file_paths", ["gone.mcap"]), ("gone.mcap", "not there")),
        (_set("compression_mode", "chunk"), ("compression_mode",)),
        (_set("compression_mode", ["file"]), ("compression_mode",)),
        (lambda info: info.update(compression_mode="FILE", compression_format="lz4"), ("only zstd",)),
        (_set("topics_with_message_count", 5), ("wrong type",)),
        (_set("topics_with_message_count", [{}]), ("topic_metadata",)),
        (_first_topic("serialization_format", "protobuf"), ("only cdr",)),
        (_first_topic("name", ["/x"]), ("wrong type",)),
        (lambda info: info["topics_with_message_count"][0].update(message_count=-1), ("wrong type",)),
        (lambda info: info["topics_with_message_count"][0].update(message_count=10**6), ("of 1000000 messages",)),
        (lambda info: info.pop("relative_file_paths"), ("relative_file_paths", "reindex")),
    ],
)
def test_odd_metadata_are_refused(
    copy: Callable[[str], Path], how: Callable[[dict[str, Any]], None], words: tuple[str, ...]
) -> None:
    refused(change(copy("mcap"), how), *words)


def test_unused_metadata_are_not_checked(copy: Callable[[str], Path]) -> None:
    def how(info: dict[str, Any]) -> None:
        info.update(duration={"nanoseconds": -5}, starting_time=None, files=7, custom_data=[1])
        info["topics_with_message_count"][0]["topic_metadata"]["offered_qos_profiles"] = "*x"

    assert read(change(copy("mcap"), how)) >= 2


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
        "a: &a {x: 1}\nb: {<<: *a}\n",
        "[" * 100_000,
        "- " * 100_000,
        "{a: " * 5000,
        "",
        "1",
        "[1]",
        "rosbag2_bagfile_information: 5",
        "rosbag2_bagfile_information: {version: 1e999999}",
        "rosbag2_bagfile_information: !!python/object/apply:os.system [true]",
        "rosbag2_bagfile_information: {version: " + "9" * 5000 + "}",
        "rosbag2_bagfile_information: 2001-99-99",
        "\ud800".encode("utf-16", "surrogatepass"),
        b"\xff\xfe\x00",
        b"\x00" * 5000,
        b"#" * (5 * 2**20),
    ],
    ids=range(17),
)
def test_malicious_metadata_are_refused_at_once(copy: Callable[[str], Path], content: str | bytes) -> None:
    folder = copy("mcap")
    (folder / "metadata.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    begun = time.monotonic()
    refused(folder, "metadata.yaml")
    assert time.monotonic() - begun < TIME


def test_topics_without_messages_or_with_two_types(tmp_path: Path) -> None:
    made = teleoperated()
    pose = topics.END_EFFECTOR_POSE
    silent = tmp_path / "silent"
    with Writer(silent, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        known = {pose: writer.add_connection(pose, "geometry_msgs/msg/PoseStamped", typestore=TYPES)}
        for received, topic, kind, content in sorted(made.messages, key=lambda entry: entry[0]):
            if topic == pose:
                continue
            if topic not in known:
                known[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(known[topic], received, TYPES.serialize_cdr(content, kind))
    refused(silent, pose, "has no messages")
    with Bag(silent) as bag:
        assert pose not in bag.topics, "whoever does without it goes on without it"
    made.say(0, topics.JOINT_STATES, "std_msgs/msg/String", data="x")
    both = tmp_path / "both"
    with Writer(both, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        found: dict[tuple[str, str], Any] = {}
        for received, topic, kind, content in sorted(made.messages, key=lambda entry: entry[0]):
            if (topic, kind) not in found:
                found[topic, kind] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(found[topic, kind], received, TYPES.serialize_cdr(content, kind))
    refused(both, topics.JOINT_STATES, "two types", "JointState", "String")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("data", b"\x00\x01\x00\x00\x05", ("/gripper_command", "1700000000.000 s")),
        ("data", "text", ("/gripper_command", "1700000000.000 s")),
        ("data", None, ("/gripper_command",)),
        ("data", b"", ("/gripper_command",)),
        ("timestamp", "noon", ("/gripper_command",)),
        ("timestamp", -5, ("/gripper_command",)),
        ("timestamp", 1e30, ("/gripper_command",)),
    ],
)
def test_a_message_that_is_not_of_its_type_is_named(
    copy: Callable[[str], Path], column: str, value: object, words: tuple[str, ...]
) -> None:
    folder = copy("db3")
    file = next(folder.glob("*.db3"))
    with sqlite3.connect(file) as connection:
        connection.executescript("CREATE TABLE m(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp, data);")
        connection.execute("INSERT INTO m SELECT * FROM messages")
        connection.executescript("DROP TABLE messages; ALTER TABLE m RENAME TO messages;")
        topic = connection.execute("SELECT id FROM topics WHERE name = '/gripper_command'").fetchone()[0]
        connection.execute(f"UPDATE messages SET {column} = ? WHERE topic_id = ?", (value, topic))
    connection.close()
    refused(folder, *words)


@pytest.mark.parametrize("value", [b"\x00\x01", 5, None, "a" * 1000, "x\ny", ""])
@pytest.mark.parametrize("column", ["name", "type"])
def test_a_topic_with_an_impossible_name_is_refused(copy: Callable[[str], Path], column: str, value: object) -> None:
    folder = copy("db3")
    with sqlite3.connect(next(folder.glob("*.db3"))) as connection:
        connection.executescript(
            "CREATE TABLE t AS SELECT * FROM topics; DROP TABLE topics; ALTER TABLE t RENAME TO topics;"
        )
        connection.execute(f"UPDATE topics SET {column} = ? WHERE id = 1", (value,))
    connection.close()
    refused(folder)


# --- bounds -----------------------------------------------------------------------------------------------------


def test_data_that_expand_beyond_the_bound_are_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(2**27), 19)
    assert len(bomb) < 2**17
    with pytest.raises(ValueError, match="more than"):
        storages.decompress_zstd(bomb)
    folder = copy("file_zstd")
    file = next(folder.glob("*.zstd"))
    file.write_bytes(zstd.compress(file.read_bytes() and bytes(2**27), 3))
    before = set(Path(storages.tempfile.gettempdir()).glob("m2distill_bag_*"))
    refused(folder, "compressed data hold more than")
    assert set(Path(storages.tempfile.gettempdir()).glob("m2distill_bag_*")) == before, "nothing is left behind"


def test_decompression_takes_frames_and_refuses_what_is_cut() -> None:
    content = np.random.default_rng(0).integers(0, 4, 5000).astype(np.uint8).tobytes()
    assert storages.decompress_zstd(zstd.compress(content) + zstd.compress(content)) == content + content
    with pytest.raises(EOFError):
        storages.decompress_zstd(zstd.compress(content)[:-3])
    with pytest.raises(ValueError, match="more than 100 bytes"):
        storages.decompress_zstd(zstd.compress(content), 100)


def test_lz4_chunks_are_bounded_too() -> None:
    read_lz4 = storages.storage_mcap.DECOMPRESSORS["lz4"]
    content = bytes(range(256)) * 50
    assert read_lz4(lz4_frame.compress(content), len(content)) == content
    with pytest.raises(ValueError, match="more than"):
        read_lz4(lz4_frame.compress(bytes(2**20)), 1000)


def test_an_index_that_names_a_chunk_twice_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("mcap")
    file = next(folder.glob("*.mcap"))
    content = file.read_bytes()
    summary = struct.unpack("<Q", content[-28:-20])[0]
    source = io.BytesIO(content)
    source.seek(summary)
    records = []
    while (code := source.read(1)) not in (b"\x02", b""):
        size = source.read(8)
        records.append(code + size + source.read(int.from_bytes(size, "little")))
    doubled = b"".join(record * (5000 if record[:1] == b"\x08" else 1) for record in records)
    file.write_bytes(content[:summary] + doubled + content[source.tell() - 1 :])
    refused(folder, "twice")


def test_query_without_results_is_aborted(copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("db3")
    monkeypatch.setattr(storages, "_PATIENCE", -10.0)
    monkeypatch.setattr(storages, "_STEPS", 10)
    refused(folder, "interrupted")


def test_command_prints_one_error_for_each(
    copy: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    folder = copy("file_zstd")
    file = next(folder.glob("*.zstd"))
    file.write_bytes(file.read_bytes()[:5000])
    words = ["import-bag", folder, "--instruction", "lift", "--contract", tmp_path / "contract.json"]
    assert cli.main([str(word) for word in (*words, "--out", tmp_path / "data")]) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("m2distill: ") and "\n" not in said and str(file) in said
    assert not (tmp_path / "data").exists()
    assert "rosbags" in sys.modules
