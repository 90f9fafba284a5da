"""Read ``metadata.yaml`` of a rosbag2: the files of a recording and the number of messages of each topic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from m2distill_policy.errors import RecordingError

#: Largest size of ``metadata.yaml`` in bytes; that of a recording of 500 topics in 2,000 files has 0.6 MiB.
LARGEST = 4 * 2**20
#: Largest nesting of lists and tables; rosbag2 writes 7 levels.
DEEPEST = 32
#: File name ending -> name of the storage plugin.
STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Metadata:
    """Content of ``metadata.yaml``.

    Attributes:
        storage: Name of the storage plugin, see :data:`STORAGES`.
        files: Files of the recording, in the order listed.
        compression: ``file``, ``message``, or "" for none.
        counts: (topic, type) -> number of messages.
    """

    storage: str
    files: tuple[Path, ...]
    compression: str
    counts: dict[tuple[str, str], int]


def read_metadata(folder: Path) -> Metadata:
    """Read ``folder/metadata.yaml``.

    Raises:
        RecordingError: The content of the file is not valid. The message says what to do.
    """
    path = folder / "metadata.yaml"
    repair = f"repair it with 'ros2 bag reindex {folder}'"
    info = _parse(path, repair).get("rosbag2_bagfile_information")
    if not isinstance(info, dict):
        raise RecordingError(f"{path} has no rosbag2_bagfile_information; {repair}")
    try:
        version = info["version"]
        if type(version) is not int or not 1 <= version <= 9:
            raise RecordingError(f"{path} is of version {str(version)[:40]}; 1 to 9 can be read")
        files = _files(path, info["relative_file_paths"], repair)
        storage = info["storage_identifier"]
        if not storage:
            likely = STORAGES.get(PurePath(files[0].name.removesuffix(".zstd")).suffix, "mcap")
            raise RecordingError(
                f"{path} has an empty storage_identifier; write '{likely}' there, or {repair} -s {likely}"
            )
        if storage not in STORAGES.values():
            raise RecordingError(
                f"{path}: storage_identifier is '{str(storage)[:40]}'; {' or '.join(STORAGES.values())} can be read, "
                "convert it with 'ros2 bag convert'"
            )
        compression = str(info.get("compression_mode") or "none").lower()
        if compression not in ("none", "file", "message", "storage"):
            raise RecordingError(f"{path}: compression_mode is '{compression[:40]}'; none, file or message can be read")
        form = info.get("compression_format") or ""
        if compression in ("file", "message") and form != "zstd":
            raise RecordingError(f"{path}: compression_format is '{str(form)[:40]}'; only zstd can be read")
        counts = _counts(path, info["topics_with_message_count"])
    except KeyError as error:
        raise RecordingError(f"{path} has no {str(error)[:80]}; {repair}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise RecordingError(f"{path} has an entry of a wrong type ({str(error)[:80]}); {repair}") from error
    return Metadata(storage, files, compression if compression in ("file", "message") else "", counts)


def _parse(path: Path, repair: str) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise RecordingError(f"{path} has more than {LARGEST} bytes; {repair}")
    depth = 0
    try:
        text = content.decode("utf-8")
        for event in yaml.parse(text, Loader=_LOADER):
            # Refused, because aliases can expand to huge data and rosbag2 writes none.
            if isinstance(event, yaml.AliasEvent):
                raise RecordingError(f"{path} has the alias *{str(event.anchor)[:40]}; {repair}")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > DEEPEST:
                    raise RecordingError(f"{path} has lists and tables more than {DEEPEST} deep; {repair}")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        data = yaml.load(text, Loader=_LOADER)  # a safe loader: plain types only
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        line = " ".join(str(error).split())[:200]
        raise RecordingError(f"{path} is not YAML that can be read ({line}); {repair}") from error
    if not isinstance(data, dict):
        raise RecordingError(f"{path} holds no table; {repair}")
    return data


def _files(path: Path, names: Any, repair: str) -> tuple[Path, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise RecordingError(f"{path}: relative_file_paths names no files; {repair}")
    files = []
    for name in names:
        place = PurePath(name)
        # Old recordings include the folder's name in the path. A file outside the folder is not part of the recording.
        if place.is_absolute() or ".." in place.parts or not place.name:
            raise RecordingError(f"{path} names the file '{name[:200]}', which is outside its folder; {repair}")
        file = path.parent / place.name
        if file in files:
            raise RecordingError(f"{path} names the file '{name[:200]}' twice; {repair}")
        if not file.is_file():
            raise RecordingError(f"{path} names the file '{name[:200]}', which is not there; copy it, or {repair}")
        files.append(file)
    return tuple(files)


def _counts(path: Path, entries: Any) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for entry in entries:
        topic, count = entry["topic_metadata"], entry["message_count"]
        name, kind, form = topic["name"], topic["type"], topic["serialization_format"]
        if not isinstance(name, str) or not isinstance(kind, str) or type(count) is not int or count < 0:
            raise ValueError("topics_with_message_count")
        if form != "cdr":
            raise RecordingError(
                f"{path}: topic '{name[:200]}' is serialised as '{str(form)[:40]}'; only cdr can be read"
            )
        counts[name, kind] = counts.get((name, kind), 0) + count
    return counts
