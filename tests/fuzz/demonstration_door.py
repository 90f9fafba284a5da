"""Demonstration files: damage to the bytes of an HDF5 file, and files with odd attributes, shapes, types and links.

An input is the bytes of one file, and what is known of it after a mark: which parts of a whole file were changed, and
whether something in it leads elsewhere. What opens is read whole, as training and evaluation do; what nobody changed
must be read as it was written, and what leads elsewhere must be refused: it leads to data that could be read.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import DemonstrationFile, Episode, Recording
from m2distill_policy.errors import M2DistillError
from m2distill_policy.recordings.contract import read_contract
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door, Folder
from tests.fuzz.invariant import Violation, finite, require

CONTRACT: Contract = dataclasses.replace(libero_contract(16), text=None)
NAME = "lift_the_red_box_demo.hdf5"
#: Between the bytes of a file and what is known of it, as JSON, see :class:`Known`.
MARK = b"\n=== known ==="
#: Where links lead: a whole file beside the one that is read; and plain numbers, whatever the working directory is.
OTHER, PLAIN = "other.hdf5", "/dev/zero"
INSTRUCTION = "lift the red box"
#: Bytes of one file at most, so that a corpus stays small.
LARGEST = 1 << 20


def _episode(steps: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        images={c.name: rng.integers(0, 256, (steps, *c.shape), dtype=np.uint8) for c in CONTRACT.cameras},
        proprioception={
            g.name: rng.uniform(max(g.low, -1), min(g.high, 1), (steps, g.size)).astype(np.float32)
            for g in CONTRACT.proprioception
        },
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        ee=rng.normal(size=(steps, 6)).astype(np.float32),
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a file.

    touched: names (``demo_0/actions``) of changed datasets; ``*`` where everything may differ, and names of attributes
    of ``data``. whole: whether it must be taken. leads_out: whether it must be refused.
    """

    touched: tuple[str, ...] = ()
    whole: bool = False
    leads_out: bool = False

    def marked(self, data: bytes) -> bytes:
        """An input of a file."""
        return data + MARK + json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def of(data: bytes) -> tuple[bytes, Known]:
        """A file, and what is known of it; nothing is where there is no mark."""
        file, mark, text = data.rpartition(MARK)
        try:
            fields = json.loads(text) if mark else {}
            known = Known(tuple(map(str, fields["touched"])), bool(fields["whole"]), bool(fields["leads_out"]))
            return file, known
        except (ValueError, KeyError, TypeError):
            return (file if mark else data), Known(("*",))

    def has(self, name: str) -> bool:
        """Whether the dataset or attribute ``name`` may differ from what was written."""
        return "*" in self.touched or any(name == t or name.startswith(f"{t}/") for t in self.touched)

    def has_any_of(self, group: str) -> bool:
        """Whether something in ``group`` may differ."""
        return self.has(group) or any(t.startswith(f"{group}/") for t in self.touched)


class DemonstrationDoor(Door):
    """See the module's text."""

    name = "demonstration"
    seconds = 10.0
    mebibytes = 1024

    def __init__(self) -> None:
        self._folder = Folder("demonstrations")
        self._episodes = [_episode(3, seed) for seed in range(2)]
        self._seeds = self._made()
        self._whole = Known.of(self._seeds[0])[0]

    # --- letting in ---------------------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        data, known = Known.of(data)
        path = self._folder.fill({NAME: data, OTHER: self._whole}) / NAME
        try:
            file, episodes = self._read(path)
        except M2DistillError as error:
            if known.whole:
                raise Violation(f"a whole file is refused: {error}") from error
            raise
        require(not known.leads_out, "what leads out of a file was followed")
        self._compare(file, episodes, known)

    def _compare(self, file: DemonstrationFile, episodes: list[Episode], known: Known) -> None:
        """What nobody changed is as it was written."""
        if not known.has("problem_info") and not known.has("env_args"):
            require(file.instruction == INSTRUCTION, "another instruction", file.instruction)
        for index, (found, wanted) in enumerate(zip(episodes, self._episodes, strict=False)):
            demo = f"demo_{index}"
            for name, frames in wanted.images.items():
                if name in found.images and not known.has(f"{demo}/obs/{name}") and not known.has(_CONVENTION):
                    require(np.array_equal(found.images[name], frames), "pictures are not what was written", name)
            for name, values in wanted.proprioception.items():
                if name in found.proprioception and not known.has(f"{demo}/obs/{name}"):
                    require(np.array_equal(found.proprioception[name], values), "readings differ", name)
            if not known.has(f"{demo}/actions"):
                require(np.array_equal(found.actions, wanted.actions), "actions are not what was written")
            if found.ee is not None and wanted.ee is not None and not known.has_any_of(f"{demo}/obs"):
                require(np.allclose(found.ee, wanted.ee, atol=1e-6), "poses are not what was written")

    @staticmethod
    def _read(path: Path) -> tuple[DemonstrationFile, list[Episode]]:
        file = DemonstrationFile(path)
        episodes: list[Episode] = []
        require(0 < len(file) <= 100_000, "a number of episodes", len(file))
        require(bool(file.instruction.strip()), "an empty instruction")
        require(file.instruction != "None", "an instruction that nobody gave", file.instruction)
        lengths = file.lengths()
        for index, episode in enumerate(file):
            episodes.append(episode)
            require(len(episode) == lengths[index] > 0, "two lengths of one episode", (len(episode), lengths[index]))
            finite("an action", episode.actions, -1.0, 1.0)
            require(episode.actions.shape == (len(episode), 7), "the form of actions", episode.actions.shape)
            for camera in file.contract.cameras:
                frames = episode.images[camera.name]
                require(frames.dtype == np.uint8, "the type of pictures", frames.dtype)
                require(frames.shape == (len(episode), *camera.shape), "the form of pictures", frames.shape)
            for group in file.contract.proprioception:
                values = episode.proprioception[group.name]
                finite("a reading", values, group.low, group.high)
                require(values.shape == (len(episode), group.size), "the form of readings", values.shape)
            if episode.executed is not None:
                finite("an executed action", episode.executed, -1.0, 1.0)
            if episode.ee is not None:
                finite("a pose", episode.ee, -np.inf, np.inf)
            if episode.init_state is not None:
                require(episode.init_state.dtype == np.float64, "the type of a state", episode.init_state.dtype)
        file.sha256()
        json.dumps(file.settings)
        require(isinstance(file.tried, int), "a number of attempts", file.tried)
        read_contract(path)
        return file, episodes

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return self._seeds

    def _made(self) -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NAME
            writer = DemonstrationWriter(path, instruction=INSTRUCTION, contract=CONTRACT, suite="files", env_args={})
            for episode in self._episodes:
                writer.add(Recording(episode))
            writer.finish([0, 1], 2)
            whole = path.read_bytes()
        made = [whole, *(_edited(whole, edit)[0] for edit in (_as_libero, _as_openvla))]
        return [
            *(Known(whole=True).marked(data) for data in made),
            *(self._leading_out(whole, edit) for edit in (*_LINKS, *_STORAGES)),
        ]

    @staticmethod
    def _leading_out(whole: bytes, edit: Callable[[Any, str], None]) -> bytes:
        changed, known = _edited(whole, lambda file: edit(file["data/demo_0"], "actions"))
        return known.marked(changed)

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        kind = choice.integer(0, 5)
        file, known = Known.of(data)
        if kind == 0:
            return choice.damaged(file)[:LARGEST]
        if kind == 1:
            # As a broken download leaves it: a hole of zeros, a lost sector, a cut end.
            size = choice.pick((16, 64, 512, 1024, 4096))
            at = choice.integer(0, max(0, len(file) - 1)) // size * size
            filling = choice.pick((bytes(size), b"\xff" * size, file[:size], b""))
            return (file[:at] + filling + file[at + size :])[:LARGEST]
        # Of whole files alone: HDF5 may hang over a damaged one, and this is not the place to find that.
        file, known = Known.of(choice.pick(self.seeds()[:3]))
        if kind <= 3:
            changed, known = _edited(file, lambda opened: _encode_often(choice, opened), known)
        else:
            changed, known = _edited(file, lambda opened: _edit_often(choice, opened))
            if choice.chance(10):
                return choice.damaged(changed)[:LARGEST]
        return known.marked(changed) if len(changed) < LARGEST else data


def _edited(data: bytes, edit: Callable[[Any], object], known: Known | None = None) -> tuple[bytes, Known]:
    """``data`` after ``edit`` of the open file, and what is known of it; as it is where HDF5 cannot do that.

    edit: returns the names that it has changed; ``known`` says what is known where it has changed nothing.
    """
    memory = io.BytesIO(data)
    try:
        with h5py.File(memory, "r+") as file:
            names = edit(file)
            touched = tuple(sorted(names)) if isinstance(names, set) else ()
            found = known or Known(touched, leads_out=_leads_out(file))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError):
        return data, Known()
    return memory.getvalue(), found


def _leads_out(group: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether something in an open file has its data elsewhere, or another name."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return True
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.is_virtual or item.id.get_create_plist().get_external_count():
                return True
        elif (address := h5py.h5o.get_info(item.id).addr) not in seen and _leads_out(item, seen | {address}):
            return True
    return False


def _encode_often(choice: Choice, file: Any) -> None:
    for _ in range(choice.pick((1, 2, 4, 8))):
        _encode(choice, file)


def _encode(choice: Choice, file: Any) -> None:
    """Write a dataset otherwise: the same numbers, in another way that HDF5 has for them."""
    episode = file["data"][choice.pick(sorted(file["data"]))]
    name = choice.pick(_datasets(episode))
    values = episode[name][()]
    attributes = dict(episode[name].attrs)
    del episode[name]
    if values.ndim == 0 or choice.chance(3):
        made = episode.create_dataset(name, data=values)
    else:
        ways: list[dict[str, Any]] = [
            {"compression": "gzip", "compression_opts": choice.integer(0, 9)},
            {"compression": "gzip", "shuffle": True, "fletcher32": True},
            {"compression": "lzf"},
            {},
        ]
        chunks = tuple(choice.integer(1, max(1, size)) for size in values.shape)
        longest = choice.pick((None, (None, *values.shape[1:])))
        made = episode.create_dataset(name, data=values, chunks=chunks, maxshape=longest, **choice.pick(ways))
    made.attrs.update(attributes)


def _datasets(episode: Any) -> list[str]:
    names: list[str] = []
    episode.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(names)


def _as_libero(file: Any) -> None:
    del file["data"].attrs["m2distill_contract"]


def _as_openvla(file: Any) -> None:
    for name in list(file["data"].attrs):
        del file["data"].attrs[name]


def _edit_often(choice: Choice, file: Any) -> set[str]:
    touched: set[str] = set()
    for _ in range(choice.pick((1, 1, 2, 3, 5))):
        touched |= _edit(choice, file)
    return touched


def _edit(choice: Choice, file: Any) -> set[str]:
    """Change one thing; the names that it may have changed the values of."""
    data = file["data"]
    kind = choice.integer(0, 10)
    if kind <= 2:
        return {_edit_attribute(choice, data)}
    demo = choice.pick(sorted(name for name in data))
    episode = data[demo]
    name = choice.pick(_datasets(episode))
    values = episode[name]
    touched = {f"{demo}/{name}"}
    if kind == 3:
        del episode[name]
    elif kind == 4:
        array = values[()]
        flat = array.reshape(-1)
        if flat.size and array.dtype.kind in "fiu":
            with np.errstate(all="ignore"):
                flat[choice.integer(0, flat.size - 1)] = np.float64(choice.real()).astype(array.dtype)
            values[...] = array
    elif kind == 5:
        array = values[()]
        del episode[name]
        # Some of them hold the very same numbers.
        other = choice.pick(("f2", "f4", "f8", "i4", "u1", "i1", "u8", "S4", "c8", "?", ">f8", ">f4", "<f8"))
        with np.errstate(all="ignore"):
            changed = array.astype(other)
        if changed.dtype.kind in "fiu" and np.array_equal(changed.astype(np.float64), array.astype(np.float64)):
            touched = set()
        episode[name] = changed
    elif kind == 6:
        array = values[()]
        del episode[name]
        episode[name] = choice.pick(
            (array[:0], array[:1], array[:-1], np.concatenate([array, array]), array[..., :-1], array[..., None],
             array.reshape(-1), np.float64(1.0), np.zeros((0, 0)), array.T)
        )  # fmt: skip
    elif kind == 7:
        if choice.chance(2):
            choice.pick(_STORAGES)(episode, name)
        else:
            _odd_storage(choice, episode, name, values.shape, values.dtype)
    elif kind == 8:
        if choice.chance(2):
            choice.pick(_LINKS)(episode, name)
        else:
            del episode[name]
            episode[name] = choice.pick(
                (h5py.SoftLink("/data/demo_0/actions"), h5py.SoftLink("/nowhere"), h5py.SoftLink("."),
                 h5py.ExternalLink("other.hdf5", "/x"), h5py.ExternalLink(NAME, "/data/demo_0/actions"),
                 h5py.ExternalLink("/etc/passwd", "/"))
            )  # fmt: skip
    elif kind == 9:
        _encode(choice, file)
        return set()
    else:
        _odd_group(choice, data, episode)
        return {"*"}
    return touched


def _link_soft(episode: Any, name: str) -> None:
    """To the same dataset of an episode of this file."""
    shape = episode[name].shape
    other = next(
        (f"{group.name}/{name}" for group in episode.parent.values() if name in group and group.name != episode.name),
        None,
    )
    if other is None or episode[other].shape != shape:
        raise KeyError(name)  # nothing is changed then
    del episode[name]
    episode[name] = h5py.SoftLink(other)


def _link_external(episode: Any, name: str) -> None:
    """To the same dataset of the other file."""
    del episode[name]
    episode[name] = h5py.ExternalLink(OTHER, f"{episode.name}/{name}")


def _link_group(episode: Any, name: str) -> None:
    """All that is observed, of the other file."""
    del episode["obs"]
    episode["obs"] = h5py.ExternalLink(OTHER, f"{episode.name}/obs")


def _store_virtual(episode: Any, name: str) -> None:
    """A virtual dataset of the same one of the other file."""
    shape, dtype = episode[name].shape, episode[name].dtype
    del episode[name]
    layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
    layout[...] = h5py.VirtualSource(OTHER, f"{episode.name}/{name}", shape=shape, dtype=dtype)
    episode.create_virtual_dataset(name, layout)


def _store_external(episode: Any, name: str) -> None:
    """Plain numbers of another file."""
    shape, dtype = episode[name].shape, episode[name].dtype
    del episode[name]
    size = int(np.prod(shape)) * dtype.itemsize
    episode.create_dataset(name, shape=shape, dtype=dtype, external=[(PLAIN, 0, size)])


#: What leads to data that can be read and has the right form.
_LINKS = (_link_soft, _link_external, _link_group)
_STORAGES = (_store_virtual, _store_external)


def _odd_storage(choice: Choice, episode: Any, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    del episode[name]
    kind = choice.integer(0, 5)
    rest = shape[1:] if shape else ()
    if kind == 0:  # promises far more than there is
        count = choice.pick((10**4, 10**6, 10**9, 2**40))
        episode.create_dataset(name, shape=(count, *rest), dtype=dtype, chunks=(1, *rest), compression="gzip")
    elif kind == 1:
        layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
        layout[...] = h5py.VirtualSource("other.hdf5", "x", shape=shape, dtype=dtype)
        episode.create_virtual_dataset(name, layout)
    elif kind == 2:
        file = choice.pick(("other.bin", "/etc/passwd", "/dev/zero"))
        episode.create_dataset(name, shape=shape, dtype=dtype, external=[(file, 0, h5py.h5f.UNLIMITED)])
    elif kind == 3:
        episode.create_dataset(name, shape=shape, dtype=h5py.vlen_dtype(np.float64))
    elif kind == 4:
        episode.create_dataset(name, shape=(shape or (1,))[:1], dtype=h5py.string_dtype())
    else:
        episode.create_dataset(
            name, shape=shape, dtype=np.dtype([("x", "f4"), ("y", "u1")]), maxshape=(None,) * len(shape) or None
        )


def _odd_group(choice: Choice, data: Any, episode: Any) -> None:
    kind = choice.integer(0, 5)
    if kind == 0:
        data[choice.pick(("demo_007", "demo_x", "demo_99999999999999999999", "demo_-1", "demo_²"))] = episode
    elif kind == 1:
        data["demo_2"] = choice.pick((h5py.SoftLink("/data"), h5py.SoftLink("/data/demo_2"), h5py.SoftLink("/")))
    elif kind == 2:
        del data["demo_1"]
    elif kind == 3:
        del episode["obs"]
        episode["obs"] = h5py.SoftLink("/data/demo_0")
    elif kind == 4:
        data.create_dataset("demo_3", data=np.zeros(3))
    else:
        for attribute in ("seed", "init_state", "num_samples"):
            episode.attrs[attribute] = choice.pick(
                (
                    choice.real(),
                    -1,
                    2**63 - 1,
                    "x",
                    np.zeros(0),
                    np.zeros((2, 2)),
                    h5py.Empty("f"),
                    np.array(["a"], "S1"),
                )
            )


_CONVENTION = "macros_image_convention"


def _edit_attribute(choice: Choice, data: Any) -> str:
    """Change an attribute of ``data``; its name."""
    names = ("problem_info", "env_args", "m2distill_contract", "macros_image_convention", "m2distill_suite",
             "m2distill_tried", "num_demos", "total", "env_name")  # fmt: skip
    name = choice.pick(names)
    kind = choice.integer(0, 7)
    old = data.attrs.get(name)
    text = old if isinstance(old, str) else "{}"
    if kind <= 2 and name in ("problem_info", "env_args", "m2distill_contract"):
        try:
            tree = json.loads(text)
        except ValueError:
            tree = {}
        if name == "env_args" and choice.chance(2):
            key = choice.pick(("control_freq", "robots", "controller_configs", "env_kwargs", "camera_heights"))
            tree = {**(tree if isinstance(tree, dict) else {}), key: choice.value()}
        data.attrs[name] = json.dumps(choice.edited(tree, choice.integer(1, 2)))
    elif kind == 3:
        data.attrs.pop(name, None)
    elif kind == 4:
        data.attrs[name] = choice.text()
    elif kind == 5:
        data.attrs[name] = choice.pick(
            (choice.real(), 1, -1, 2**40, np.zeros(3), np.array(["a", "b"], dtype="S1"), h5py.Empty("f"),
             np.zeros(0), np.bytes_(b"\xff\xfe"), np.array([choice.text()], dtype=h5py.string_dtype()))
        )  # fmt: skip
    elif kind == 6:
        data.attrs[name] = choice.damaged(text.encode()).decode("latin-1").replace("\0", "")[:60_000]
    else:
        data.attrs[name] = choice.pick(("opencv", "opengl", "[" * 3000, '{"language_instruction": null}', "x" * 60_000,
                                        '{"language_instruction": ["a", 1]}', '{"language_instruction": {"a": 1}}',
                                        '{"language_instruction": "a\\nb"}', "9" * 5000))  # fmt: skip
    return name


def make() -> Door:
    """The door."""
    return DemonstrationDoor()
