"""Demonstration files: damage to the bytes of an HDF5 file, and files with odd attributes, shapes, types and links.

An input is the bytes of one file. What opens is read whole, as training and evaluation do.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstrations import DemonstrationFile, DemonstrationWriter, Episode, Recording
from m2distill_policy.recordings.contract import read_contract
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door, Folder
from tests.fuzz.invariant import finite, require

CONTRACT: Contract = dataclasses.replace(libero_contract(16), text=None)
NAME = "lift_the_red_box_demo.hdf5"
#: Bytes of one file at most, so that a corpus stays small.
LARGEST = 1 << 20


def _episode(steps: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        images={c.name: np.full((steps, *c.shape), seed * 40, dtype=np.uint8) for c in CONTRACT.cameras},
        proprioception={
            g.name: rng.uniform(max(g.low, -1), min(g.high, 1), (steps, g.size)).astype(np.float32)
            for g in CONTRACT.proprioception
        },
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        ee=rng.normal(size=(steps, 6)).astype(np.float32),
        seed=seed,
    )


class DemonstrationDoor(Door):
    """See the module's text."""

    name = "demonstration"
    seconds = 10.0
    mebibytes = 1024

    def __init__(self) -> None:
        self._folder = Folder("demonstrations")
        self._seeds = self._made()

    # --- letting in ---------------------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        path = self._folder.fill({NAME: data}) / NAME
        file = DemonstrationFile(path)
        require(0 < len(file) <= 100_000, "a number of episodes", len(file))
        require(bool(file.instruction.strip()), "an empty instruction")
        require(file.instruction != "None", "an instruction that nobody gave", file.instruction)
        lengths = file.lengths()
        for index, episode in enumerate(file):
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

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return self._seeds

    @staticmethod
    def _made() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NAME
            writer = DemonstrationWriter(
                path, instruction="lift the red box", contract=CONTRACT, suite="files", env_args={}
            )
            for seed in range(2):
                writer.add(Recording(_episode(3, seed)))
            writer.finish([0, 1], 2)
            whole = path.read_bytes()
        return [whole, _edited(whole, _as_libero), _edited(whole, _as_openvla)]

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        kind = choice.integer(0, 3)
        if kind == 0:
            changed = choice.damaged(data)
        elif kind == 1:
            # As a broken download leaves it: a hole of zeros, a lost sector, a cut end.
            size = choice.pick((16, 64, 512, 1024, 4096))
            at = choice.integer(0, max(0, len(data) - 1)) // size * size
            filling = choice.pick((bytes(size), b"\xff" * size, data[:size], b""))
            changed = data[:at] + filling + data[at + size :]
        else:
            # Of whole files alone: HDF5 may hang over a damaged one, and this is not the place to find that.
            whole = choice.pick(self.seeds())
            changed = _edited(whole, lambda file: _edit_often(choice, file))
            if choice.chance(10):
                changed = choice.damaged(changed)
        return changed[:LARGEST]


def _edited(data: bytes, edit: Any) -> bytes:
    """``data`` after ``edit`` of the open file; as it is where HDF5 cannot do that."""
    memory = io.BytesIO(data)
    try:
        with h5py.File(memory, "r+") as file:
            edit(file)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError):
        return data
    return memory.getvalue()


def _as_libero(file: Any) -> None:
    del file["data"].attrs["m2distill_contract"]


def _as_openvla(file: Any) -> None:
    for name in list(file["data"].attrs):
        del file["data"].attrs[name]


def _edit_often(choice: Choice, file: Any) -> None:
    for _ in range(choice.pick((1, 1, 2, 3, 5))):
        _edit(choice, file)


def _edit(choice: Choice, file: Any) -> None:
    data = file["data"]
    kind = choice.integer(0, 9)
    if kind <= 2:
        _edit_attribute(choice, data)
        return
    episode = data[choice.pick(sorted(name for name in data))]
    names: list[str] = []
    episode.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    name = choice.pick(sorted(names))
    values = episode[name]
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
        with np.errstate(all="ignore"):
            episode[name] = array.astype(
                choice.pick(("f2", "f4", "f8", "i4", "u1", "i1", "u8", "S4", "c8", "?", ">f8"))
            )
    elif kind == 6:
        array = values[()]
        del episode[name]
        episode[name] = choice.pick(
            (array[:0], array[:1], array[:-1], np.concatenate([array, array]), array[..., :-1], array[..., None],
             array.reshape(-1), np.float64(1.0), np.zeros((0, 0)), array.T)
        )  # fmt: skip
    elif kind == 7:
        _odd_storage(choice, episode, name, values.shape, values.dtype)
    elif kind == 8:
        del episode[name]
        episode[name] = choice.pick(
            (h5py.SoftLink("/data/demo_0/actions"), h5py.SoftLink("/nowhere"), h5py.SoftLink("."),
             h5py.ExternalLink("other.hdf5", "/x"), h5py.ExternalLink(NAME, "/data/demo_0/actions"),
             h5py.ExternalLink("/etc/passwd", "/"))
        )  # fmt: skip
    else:
        _odd_group(choice, data, episode)


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


def _edit_attribute(choice: Choice, data: Any) -> None:
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


def make() -> Door:
    """The door."""
    return DemonstrationDoor()
