"""HDF5 files from unknown sources: read, or refused with one DemonstrationError, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from m2distill_policy import hdf5
from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import DemonstrationError, StorageError
from m2distill_policy.hdf5 import open_hdf5
from tests.test_demonstrations import SIZE, recording, writer

ROOT = Path(__file__).resolve().parent.parent
#: s: the processor time that one request may take, and much for a machine that is busy with other things.
SOON = 60.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two episodes, undamaged."""
    out = writer(tmp_path_factory.mktemp("whole"))
    for seed in (3, 5):
        out.add(recording(seed))
    return out.finish([3, 5], 4).path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / whole.name))


def read_all(path: Path) -> int:
    """Read everything that the product reads from a file."""
    file = DemonstrationFile(path)
    file.lengths()
    for index in range(len(file)):
        file.states(index)
    file.sha256()
    return len(file)


def refused(path: Path) -> str:
    began = time.monotonic()
    with pytest.raises(DemonstrationError) as caught:
        read_all(path)
    assert time.monotonic() - began < SOON
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 1500
    return said


def test_file_that_hangs_the_library_is_refused(tmp_path: Path) -> None:
    """Found in a damaged file: reading an attribute never ends, in C code that no exception interrupts."""
    spins = tmp_path / "spins_demo.hdf5"
    spins.write_bytes(gzip.decompress((ROOT / "tests" / "corpus" / "hdf5" / "spins.hdf5.gz").read_bytes()))
    assert "processor time" in refused(spins)


def test_other_files_are_read_after_a_crash(whole: Path, tmp_path: Path) -> None:
    test_file_that_hangs_the_library_is_refused(tmp_path)
    assert read_all(whole) == 2


# --- what leads out of the file --------------------------------------------------------------------------------------


def _external_link(raw: h5py.File, beside: Path) -> None:
    with h5py.File(beside, "w") as other:
        other["actions"] = np.zeros((7, 7))
    del raw["data/demo_1/actions"]
    raw["data/demo_1/actions"] = h5py.ExternalLink(str(beside), "actions")


def _external_episode(raw: h5py.File, beside: Path) -> None:
    raw["data/demo_2"] = h5py.ExternalLink("not_there.hdf5", "data/demo_0")


def _external_storage(raw: h5py.File, beside: Path) -> None:
    beside.write_bytes(bytes(7 * 7 * 8))
    del raw["data/demo_1/actions"]
    raw.create_dataset("data/demo_1/actions", (7, 7), "f8", external=[(str(beside), 0, 7 * 7 * 8)])


def _external_storage_absent(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/obs/joint_states"]
    raw.create_dataset("data/demo_1/obs/joint_states", (7, 7), "f8", external=[("/etc/passwd", 0, 7 * 7 * 8)])


def _virtual(raw: h5py.File, beside: Path) -> None:
    layout = h5py.VirtualLayout((7, 7), "f8")
    layout[:] = h5py.VirtualSource("not_there.hdf5", "actions", (7, 7))
    del raw["data/demo_1/actions"]
    raw.create_virtual_dataset("data/demo_1/actions", layout)


def _virtual_of_itself(raw: h5py.File, beside: Path) -> None:
    layout = h5py.VirtualLayout((7, 7), "f8")
    layout[:] = h5py.VirtualSource(".", "data/demo_0/actions", (7, 7))
    del raw["data/demo_1/actions"]
    raw.create_virtual_dataset("data/demo_1/actions", layout)


def _soft_link(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw["data/demo_1/actions"] = h5py.SoftLink("/nowhere")


def _cycle(raw: h5py.File, beside: Path) -> None:
    raw["data/demo_1/again"] = raw["data"]


def _references(raw: h5py.File, beside: Path) -> None:
    reference = raw["data/demo_0/actions"].ref
    del raw["data/demo_1/actions"]
    raw.create_dataset("data/demo_1/actions", data=np.array([reference] * 7, dtype=h5py.ref_dtype))


def _region(raw: h5py.File, beside: Path) -> None:
    reference = raw["data/demo_0/actions"].regionref[:2]
    del raw["data/demo_1/actions"]
    raw.create_dataset("data/demo_1/actions", data=np.array([reference], dtype=h5py.regionref_dtype))


def _filter(raw: h5py.File, beside: Path) -> None:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((7, 7))
    made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # zstd, a plugin
    del raw["data/demo_1/actions"]
    h5py.h5d.create(
        raw["data/demo_1"].id, b"actions", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((7, 7)), dcpl=made
    )


def _never_written(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/obs/joint_states"]
    raw.create_dataset("data/demo_1/obs/joint_states", (7, 7), "f8")


def _half_written(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/obs/agentview_rgb"]
    made = raw.create_dataset(
        "data/demo_1/obs/agentview_rgb", (7, SIZE, SIZE, 3), "u1", chunks=(1, SIZE, SIZE, 3), compression="gzip"
    )
    made[:3] = 7


def _endless(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw.create_dataset("data/demo_1/actions", (10**12, 7), "f8", chunks=(1024, 7), compression="gzip")


def _endless_contiguous(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw.create_dataset("data/demo_1/actions", (2**50, 7), "f8")


def _null_space(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw["data/demo_1/actions"] = h5py.Empty("f8")


def _scalar(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw["data/demo_1/actions"] = 1.0


def _texts(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw["data/demo_1/actions"] = ["a"] * 7


def _group_for_a_dataset(raw: h5py.File, beside: Path) -> None:
    del raw["data/demo_1/actions"]
    raw.create_group("data/demo_1/actions")


def _dataset_for_an_episode(raw: h5py.File, beside: Path) -> None:
    raw["data/demo_2"] = np.zeros(3)
    del raw["data/demo_0"], raw["data/demo_1"]


def _attribute(name: str, value: object, group: str = "data") -> Callable[[h5py.File, Path], None]:
    def do(raw: h5py.File, beside: Path) -> None:
        raw[group].attrs[name] = value

    return do


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_external_link, "external link"),
        (_external_episode, "external link"),
        (_external_storage, "another file"),
        (_external_storage_absent, "/etc/passwd"),
        (_virtual, "virtual"),
        (_virtual_of_itself, "virtual"),
        (_soft_link, "soft link"),
        (_cycle, "another name"),
        (_references, "|O"),
        (_region, "|O"),
        (_filter, "filter 32015"),
        (_never_written, "never written"),
        (_half_written, "3 of its 7 chunks"),
        (_endless, "GiB"),
        (_endless_contiguous, "GiB"),
        (_null_space, "no data space"),
        (_scalar, "shape ()"),
        (_texts, "|O"),
        (_group_for_a_dataset, "is missing"),
        (_dataset_for_an_episode, "no episode"),
        (_attribute("problem_info", json.dumps({"language_instruction": None})), "None"),
        (_attribute("problem_info", json.dumps({"language_instruction": 3})), "3"),
        (_attribute("problem_info", json.dumps({"language_instruction": True})), "True"),
        (_attribute("problem_info", json.dumps({"language_instruction": {}})), "{}"),
        (_attribute("problem_info", json.dumps({"language_instruction": [None]})), "None"),
        (_attribute("problem_info", json.dumps({"language_instruction": [["a"]]})), "a"),
        (_attribute("problem_info", json.dumps({"language_instruction": []})), "problem_info"),
        (_attribute("problem_info", json.dumps({"language_instruction": '""'})), "problem_info"),
        (_attribute("problem_info", json.dumps({"language_instruction": "x" * 10_000})), "10000 characters"),
        (_attribute("problem_info", json.dumps({"language_instruction": "a\nb"})), "one line"),
        (_attribute("problem_info", json.dumps({})), "None"),
        (_attribute("problem_info", "[]"), "a JSON object"),
        (_attribute("problem_info", '{"language_instruction": "a", "language_instruction": "b"}'), "twice"),
        (_attribute("problem_info", "[" * 100_000), "deep"),
        (_attribute("problem_info", 7), "problem_info"),
        (_attribute("problem_info", np.zeros(3)), "problem_info"),
        (_attribute("problem_info", h5py.Empty("f8")), "problem_info"),
        (_attribute("problem_info", np.bytes_(b"\xff\xfe")), "UnicodeDecodeError"),
        (_attribute("m2distill_contract", 1.5), "m2distill_contract"),
        (_attribute("m2distill_tried", "many"), "m2distill_tried"),
        (_attribute("m2distill_tried", 1.5), "m2distill_tried"),
        (_attribute("m2distill_suite", np.arange(4)), "m2distill_suite"),
        (_attribute("env_args", "[1]"), "env_args"),
        (_attribute("env_args", "{"), "env_args"),
        (_attribute("macros_image_convention", 3), "macros_image_convention"),
        (_attribute("seed", "x", "data/demo_1"), "seed"),
        (_attribute("init_state", "x", "data/demo_1"), "init_state"),
        (_attribute("init_state", np.array([np.nan]), "data/demo_1"), "init_state"),
    ],
)
def test_links_and_external_data_are_refused(
    path: Path, tmp_path: Path, damage: Callable[[h5py.File, Path], None], named: str
) -> None:
    with h5py.File(path, "r+") as raw:
        damage(raw, tmp_path / "beside.hdf5")
    assert named in refused(path)


def test_files_of_other_tools_are_read(path: Path) -> None:
    """Filters that every library has, other byte orders and precisions, unused names and attributes."""
    before = DemonstrationFile(path).episode(1)
    with h5py.File(path, "r+") as raw:
        episode = raw["data/demo_1"]
        for name, how in (
            ("actions", {"dtype": ">f8"}),
            ("obs/joint_states", {"dtype": "<f4", "compression": "lzf", "shuffle": True}),
            ("obs/gripper_states", {"dtype": ">f4", "compression": "gzip", "fletcher32": True}),
            ("obs/agentview_rgb", {"chunks": (7, 2, SIZE, 1), "compression": "gzip"}),
            ("obs/eye_in_hand_rgb", {}),
        ):
            values = episode[name][()]
            del episode[name]
            episode.create_dataset(name, data=values, **how)
        raw["mask/train"] = np.array([b"demo_0", b"demo_1"])
        raw["data"].attrs["note"] = h5py.Empty("f8")
        episode.attrs["references"] = np.array([episode["actions"].ref], dtype=h5py.ref_dtype)
        episode["obs/text"] = ["a", "b"]
    after = DemonstrationFile(path).episode(1)
    assert np.allclose(before.actions, after.actions)
    for name, frames in before.images.items():
        assert np.array_equal(frames, after.images[name])
    for name, values in before.proprioception.items():
        assert np.allclose(values, after.proprioception[name])


def test_a_small_file_cannot_take_all_memory(path: Path) -> None:
    """One chunk that declares a much larger size than is stored."""
    with h5py.File(path, "r+") as raw:
        del raw["data/demo_1/actions"]
        raw.create_dataset("data/demo_1/actions", (400_000_000, 7), "u1", chunks=(400_000_000, 1), compression="gzip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_too_many_objects_are_refused_in_time(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "many_demo.hdf5"
    with h5py.File(path, "w", libver="latest") as raw:
        group = raw.create_group("data")
        for index in range(3000):
            group.create_group(f"demo_{index}")
    refused(path)


def test_files_that_are_not_hdf5(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe_demo.hdf5")  # opening it would wait for a writer
    with pytest.raises(DemonstrationError):
        DemonstrationFile(tmp_path / "pipe_demo.hdf5")
    for number, content in enumerate((b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(4096), b"\0" * 100)):
        path = tmp_path / f"{number}_demo.hdf5"
        path.write_bytes(content)
        refused(path)


def test_changed_file_is_read_again(path: Path) -> None:
    file = DemonstrationFile(path)
    before = file.episode(0)
    with h5py.File(path, "r+") as raw:
        raw["data/demo_0/actions"][0, 0] = 0.5
    assert file.episode(0).actions[0, 0] == np.float32(0.5) != before.actions[0, 0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DemonstrationError):
        file.episode(0)


def _count(path: Path, answers: multiprocessing.SimpleQueue[int]) -> None:
    answers.put(read_all(path))


def test_processes_and_threads_read_side_by_side(whole: Path) -> None:
    assert read_all(whole) == 2
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    workers = [context.Process(target=_count, args=(whole, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(read_all(whole))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    for worker in workers:
        worker.join(SOON)
        assert worker.exitcode == 0
    assert counts == [2, 2, 2] and [answers.get() for _ in range(3)] == [2, 2, 2]


def test_a_reader_that_was_ended_is_started_anew(whole: Path) -> None:
    assert read_all(whole) == 2
    assert hdf5._reader is not None
    process = hdf5._reader._process
    process.stdin.close()  # type: ignore[union-attr]
    assert process.wait(SOON) == 0  # as when it was idle
    hdf5._reader._in = os.open(os.devnull, os.O_WRONLY)
    assert read_all(whole) == 2


# --- generated -------------------------------------------------------------------------------------------------------


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, write zeros or noise, repeat or remove a part, truncate."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        kind = rng.randrange(6)
        # The structure lies in the first bytes and in short pieces between the data.
        at = rng.randrange(min(len(data), 4096)) if rng.random() < 0.4 else rng.randrange(len(data))
        length = min(rng.choice((1, 4, 16, 64, 512, 4096)), len(data) - at)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + length] = bytes(length)
        elif kind == 3:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 4:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length].ljust(length, b"\xff")
        elif rng.random() < 0.3:
            del data[at:]
            data += bytes(1)
    return bytes(data)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """Write the same demonstrations in the layouts of several tools and versions of HDF5."""
    folder = tmp_path_factory.mktemp("small")
    out = writer(folder)
    for seed in (3, 5):
        out.add(recording(seed, length=3))
    ours = out.finish([3, 5], 2).path
    contents = [ours.read_bytes()]
    for version in ("earliest", "latest", "v110"):
        with h5py.File(ours) as old, h5py.File(folder / "new.hdf5", "w", libver=version) as new:
            old.copy("data", new)
        contents.append((folder / "new.hdf5").read_bytes())
    yield contents


def test_damaged_files_are_read_or_refused(small: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SECONDS", 1.0)
    read = 0
    for seed in range(240):
        rng = random.Random(seed)
        path = tmp_path / f"{seed}_demo.hdf5"
        path.write_bytes(_damaged(rng.choice(small), rng))
        began = time.monotonic()
        try:
            read_all(path)
            read += 1
        except DemonstrationError as error:
            assert str(path) in str(error) and "\n" not in str(error), seed
        assert time.monotonic() - began < SOON, seed
        path.unlink()
    assert 20 < read < 240


# --- a disk that is full ---------------------------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from m2distill_policy.errors import StorageError
from tests.test_demonstrations import recording, writer
out = writer(Path(sys.argv[1]))
try:
    for seed in range(1000):
        out.add(recording(seed, length=40))
except StorageError as error:
    print(len(out.attempts()), error)
    sys.exit(7)
"""
FINISH = """
import resource, sys
from pathlib import Path
from m2distill_policy.errors import StorageError
from tests.test_demonstrations import writer
limit = int(sys.argv[2])
out = writer(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    out.finish(sorted(out.attempts()), 4)
except StorageError as error:
    print(error)
    sys.exit(7)
"""


def _run(code: str, *arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, preexec_fn=restrict,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_file_size_limit_gives_one_error(tmp_path: Path) -> None:
    done = _run(WRITE, tmp_path, limit=40_000)  # an episode of 40 steps has 70 KiB
    assert done.returncode == 7, (done.returncode, done.stderr)
    assert done.stdout.startswith("0 ") and not list(tmp_path.rglob("*[0-9].hdf5"))


def test_merging_on_a_full_disk_keeps_every_part(tmp_path: Path) -> None:
    out = writer(tmp_path)
    for seed in range(4):
        out.add(recording(seed, length=40))
    for limit in (1, 1000, 50_000, 100_000, 200_000):
        done = _run(FINISH, tmp_path, limit)
        assert done.returncode == 7, (limit, done.returncode, done.stderr)
    assert len(out.attempts()) == 4 and not out.path.exists()
    assert len(writer(tmp_path).finish([0, 1, 2, 3], 4)) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        done = _run(WRITE, disk)
        assert done.returncode == 7, (done.returncode, done.stderr)
        kept = int(done.stdout.split()[0])
        assert kept >= 2
        finished = _run(FINISH, disk, 10**9)
        assert finished.returncode == 7, (finished.returncode, finished.stderr)
        assert len(writer(disk).attempts()) == kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_damaged_part_is_named_before_anything_is_merged(tmp_path: Path) -> None:
    out: DemonstrationWriter = writer(tmp_path, libero_contract(SIZE))
    for seed in (1, 2):
        out.add(recording(seed))
    part = out.parts / "2.hdf5"
    content = bytearray(part.read_bytes())
    at = len(content) // 2
    content[at : at + 512] = bytes(512)
    part.write_bytes(content)
    with pytest.raises(DemonstrationError, match=r"2\.hdf5 is damaged"):
        out.finish([1, 2], 2)
    assert not out.path.exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        out = writer(tmp_path / "out")
        out.add(recording(1))
        assert (out.parts / "collection.json").stat().st_mode & 0o777 == mode
        assert out.finish([1], 1).path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_quota_and_size_limit_are_storage_errors() -> None:
    import errno

    from m2distill_policy.storage import disk_full_error

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert isinstance(disk_full_error(OSError(number, "x"), Path("y")), StorageError)
    assert disk_full_error(OSError(errno.EACCES, "x")) is None


def test_reader_process_ends(whole: Path) -> None:
    code = (
        "import sys; from m2distill_policy import hdf5; hdf5.open_hdf5(sys.argv[1]); print(hdf5._reader._process.pid)"
    )
    done = _run(code, whole)
    assert done.returncode == 0 and not done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()
    assert open_hdf5(whole).groups
