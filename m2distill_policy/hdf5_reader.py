"""The process that opens HDF5 files for :mod:`m2distill_policy.hdf5`, so that a file can harm only this process.

HDF5 is a large C library. Damaged files can make it hang, read invalid memory or request too much of it. Here each
request has a limit on processor time and memory, and errors are sent back as one line.

A request is a line of JSON on standard input, ``{"do": "open" | "attributes" | "read", "path": ..., ...}``. An answer
is a line of JSON. ``read`` answers with lines ``{"bytes": n}``, each followed by n bytes, and finally ``{"done":
true}``.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

#: Memory that a request may use in addition to the memory of the process before the request, bytes.
MEMORY = 512 * 2**20
#: Largest number of groups and datasets of a file; 50 episodes have about 800.
MOST_OBJECTS = 100_000
#: Bytes of data that are sent at once.
_BLOCK = 16 * 2**20
#: Largest size of an attribute that is not a text, bytes.
_LARGEST_ATTRIBUTE = 2**20
#: Time without a request after which the process ends, s.
_IDLE = 60.0
#: Filters that are part of every HDF5 library; others are plugins, which are never loaded.
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "n-bit", 6: "scale-offset", 32000: "lzf"}

Identity = tuple[int, int, int, int]


class Refused(Exception):
    """The file can be read but is not allowed; the message says why."""


def main() -> None:
    """Answer requests until standard input ends, or until no request has come for a minute."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # HDF5's setting for loading no plugins
    import h5py  # noqa: F401 (slow, so imported before the first request is timed)

    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    _send(answers, {"ready": True})
    os.dup2(silent, 2)  # hide last messages of the library, such as "free(): invalid pointer"
    known: dict[str, Identity] = {}
    while select.select([0], [], [], _IDLE)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            for answer in _answer(request, known):
                _send(answers, answer)
        except Refused as error:
            _send(answers, {"refused": str(error)})
        except MemoryError:
            _send(answers, {"refused": f"needs more than {MEMORY // 2**20} MiB of memory in addition to its data"})
        # Any error of the library is sent to the parent process, which raises it.
        except Exception as error:
            _send(answers, {"damaged": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _send(answers: BinaryIO, answer: dict[str, Any] | memoryview) -> None:
    answers.write(answer if isinstance(answer, memoryview) else json.dumps(answer).encode() + b"\n")
    answers.flush()


def _answer(request: dict[str, Any], known: dict[str, Identity]) -> Iterator[dict[str, Any] | memoryview]:
    import h5py

    path = Path(request["path"])
    _limit_memory(MEMORY)
    last: dict[str, Any] = {"done": True}
    with h5py.File(path, "r") as file:
        found = path.stat()
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if request["do"] == "open" or known.get(request["path"]) != identity:
            described = _describe(file)
            known[request["path"]] = identity
        if request["do"] == "open":
            last = described
        elif request["do"] == "attributes":
            last = {"values": _attributes(file[request["group"]], request["names"])}
        else:
            yield from _blocks(file[request["name"]])
    yield last  # sent after the file is closed, because the parent process may write to the file from now on


def _limit_memory(more: int) -> None:
    """Limit the memory of this process to its present size plus ``more`` bytes."""
    try:
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # without /proc only time is limited
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = taken + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _describe(file: Any) -> dict[str, Any]:
    """Describe every group and dataset once. Raise :class:`Refused` for links and external data."""
    import h5py

    groups: list[str] = []
    datasets: dict[str, Any] = {}
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting: list[tuple[str, Any]] = [("", file)]
    while waiting:
        where, group = waiting.pop()
        for name in group:
            at = f"{where}/{name}" if where else name
            if len(groups) + len(datasets) >= MOST_OBJECTS:
                raise Refused(f"holds more than {MOST_OBJECTS} groups and datasets")
            _require_hard(group.get(name, getlink=True), at)
            item = group[name]
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise Refused(f"'{at}' is a group that has another name too")
                seen.add(address)
                groups.append(at)
                waiting.append((at, item))
            elif isinstance(item, h5py.Dataset):
                datasets[at] = _describe_dataset(item, at)
    return {"groups": groups, "datasets": datasets}


def _require_hard(link: Any, at: str) -> None:
    import h5py

    if isinstance(link, h5py.ExternalLink):
        raise Refused(f"'{at}' is an external link to '{link.path}' in '{link.filename}'")
    if isinstance(link, h5py.SoftLink):
        raise Refused(f"'{at}' is a soft link to '{link.path}'")
    if not isinstance(link, h5py.HardLink):
        raise Refused(f"'{at}' is a link of a kind that is not known")


def _describe_dataset(dataset: Any, at: str) -> dict[str, Any]:
    made = dataset.id.get_create_plist()
    if made.get_external_count():
        raise Refused(f"'{at}' has its data in another file, '{os.fsdecode(made.get_external(0)[0])}'")
    if dataset.is_virtual:
        raise Refused(f"'{at}' is a virtual dataset, which has its data in others")
    for index in range(made.get_nfilters()):
        number, _, _, name = made.get_filter(index)
        if number not in FILTERS:
            raise Refused(
                f"'{at}' is compressed by filter {number} ({os.fsdecode(name) or 'no name'}); those that every HDF5 "
                f"library has are {', '.join(FILTERS.values())}: convert the file with h5repack -f GZIP=1"
            )
    try:
        kind = dataset.dtype.str
    except TypeError:
        kind = "of a type that is not known"
    if dataset.shape is None:
        raise Refused(f"'{at}' has no data space")
    return {"shape": [int(n) for n in dataset.shape], "kind": kind}


def _attributes(group: Any, names: list[str]) -> dict[str, Any]:
    """Return the attributes ``names`` of a group, without missing ones: texts, numbers, or lists of numbers."""
    import numpy as np

    values: dict[str, Any] = {}
    for name in names:
        if name not in group.attrs:
            continue
        declared = group.attrs.get_id(name)
        if declared.shape is None:
            raise Refused(f"attribute '{name}' is empty; a text or numbers are needed")
        if math.prod(declared.shape) * declared.dtype.itemsize > _LARGEST_ATTRIBUTE:
            raise Refused(f"attribute '{name}' has more than {_LARGEST_ATTRIBUTE} bytes")
        value = group.attrs[name]
        if isinstance(value, bytes | np.bytes_):
            value = value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
            values[name] = str(value)
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            values[name] = value.tolist()
        else:
            raise Refused(f"attribute '{name}' is {type(value).__name__}; a text or numbers are needed")
    return values


def _blocks(dataset: Any) -> Iterator[dict[str, Any] | memoryview]:
    """Yield the numbers of a dataset in the machine's byte order, some rows at a time."""
    import numpy as np

    kind = dataset.dtype.newbyteorder("=")
    _require_whole(dataset)
    rows = 1
    if dataset.ndim:
        of_row = max(1, math.prod(dataset.shape[1:]) * kind.itemsize)
        tall = dataset.chunks[0] if dataset.chunks else 1
        rows = max(1, _BLOCK // of_row // tall) * tall  # whole chunks, so that none is decompressed twice
    for first in range(0, dataset.shape[0] if dataset.ndim else 1, rows):
        part = np.ascontiguousarray(dataset[first : first + rows] if dataset.ndim else dataset[()], dtype=kind)
        if part.nbytes:
            yield {"bytes": part.nbytes}
            yield part.reshape(-1).view(np.uint8).data


def _require_whole(dataset: Any) -> None:
    """Raise :class:`Refused` if data were declared but never written, because they would be read as zeros."""
    import h5py

    if not dataset.size:
        return
    layout = dataset.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CHUNKED:
        wanted = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        there = dataset.id.get_num_chunks()
        if there != wanted:
            raise Refused(f"'{dataset.name}' has {there} of its {wanted} chunks: it was never written whole")
    elif layout == h5py.h5d.CONTIGUOUS and dataset.id.get_offset() is None:
        raise Refused(f"'{dataset.name}' was declared and never written")


if __name__ == "__main__":
    main()
