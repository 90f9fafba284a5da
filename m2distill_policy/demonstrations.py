"""Demonstration files: HDF5 in LIBERO's layout, one file a task. The one place where image rows are flipped.

The layout is in docs/architecture.md. Files hold rows bottom-up (``macros_image_convention = opengl``), as robosuite
and LIBERO store them, so that LIBERO's and robomimic's tools read ours; everything beyond this module is upright.

Reading is strict: a missing key, a wrong shape or dtype, a value out of range is a :class:`DemonstrationError` that
names file, episode and key. LIBERO's published files lack the contract; theirs is derived from their image size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from m2distill_policy import strict_json
from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstration_settings import check_settings, words_of
from m2distill_policy.errors import ContractError, DemonstrationError, StorageError, shorten
from m2distill_policy.hdf5 import Dataset, Hdf5File, open_hdf5
from m2distill_policy.hdf5_writer import create_hdf5
from m2distill_policy.storage import settle, write_atomic, writing

#: How far an action may lie outside [-1, 1] before a file is refused: rounding, nothing more.
ACTION_TOLERANCE = 1e-6

_SUFFIX = "_demo.hdf5"
_EPISODE = re.compile(r"demo_\d{1,9}")
#: Attributes of the group ``data`` that are read.
_ATTRIBUTES = (
    *("macros_image_convention", "problem_info", "env_args", "env_info"),
    *("m2distill_contract", "m2distill_suite", "m2distill_tried"),
)
#: bytes of a file's name, which gets a few more while it is written.
_LONGEST_NAME = 200
#: Characters of an instruction; a text encoder reads some hundreds.
_LONGEST_INSTRUCTION = 1000
#: m and rad: an end-effector pose beyond it is no pose.
_FARTHEST = 1e3

#: What readers take away around an instruction, besides white space.
_QUOTE = '"'

T = TypeVar("T")

logger = logging.getLogger(__name__)
#: Files whose instruction was taken from their name, and that were said to be so.
_said: set[Path] = set()


@dataclass(frozen=True)
class Episode:
    """One demonstration of L steps; what is at index t was seen before action t.

    images: view -> (L, H, W, 3) uint8, RGB, upright. proprioception: group -> (L, n) float32, in the contract's units.
    actions: (L, 7) float32 in [-1, 1]. ee: (L, 6) float32 end-effector pose (m; rotation vector, rad), or None.
    seed: what the initial state was drawn from, or None. init_state: flattened MuJoCo state, or None.
    executed: (L, 7) float32 what the robot was given instead of ``actions``, where it was disturbed, or None.
    seen_after: True for LIBERO's published files, where what is at index t was recorded after action t.
    """

    images: Mapping[str, NDArray[np.uint8]]
    proprioception: Mapping[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    ee: NDArray[np.float32] | None = None
    seed: int | None = None
    init_state: NDArray[np.float64] | None = None
    executed: NDArray[np.float32] | None = None
    seen_after: bool = False

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Recording:
    """What a world adds to an :class:`Episode` for the file; a real one adds nothing.

    states: (L, S) float64 flattened MuJoCo states. robot_states: (L, 9): fingers, grip position, grip quaternion
    (x, y, z, w). model_xml: the scene's MJCF.
    """

    episode: Episode
    states: NDArray[np.float64] | None = None
    robot_states: NDArray[np.float64] | None = None
    model_xml: str = ""


def demonstration_path(folder: Path, task_name: str) -> Path:
    """Where the demonstrations of a task lie in ``folder``.

    Raises :class:`DemonstrationError` where the name is none of a file in that folder.
    """
    name = task_name + _SUFFIX
    if not task_name or task_name.startswith(".") or not task_name.isprintable() or set(task_name) & set("/\\:"):
        raise DemonstrationError(
            f"a task is named {task_name[:80]!r}; a name is part of a file's name: without '/', '\\\\' and ':', not "
            "empty, and not beginning with a dot"
        )
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise DemonstrationError(
            f"a task is named {task_name[:40]!r}... ({len(task_name)} characters); a file's name has at most "
            f"{_LONGEST_NAME} bytes: give a shorter one"
        )
    if _task_name_of(name) != task_name:
        raise DemonstrationError(f"a task is named {task_name!r}; a name does not end in .hdf5: leave that out")
    return folder / f"{task_name}{_SUFFIX}"


def _task_name_of(name: str) -> str:
    """The task's name in the name of its file."""
    return name.removesuffix(_SUFFIX).removesuffix(".hdf5")


def instruction_from(text: str) -> str:
    """The instruction that ``text`` holds, without quotes and white space around it, as every reader takes it.

    Applied to its own result it changes nothing. Raises :class:`DemonstrationError` where nothing is left, or it is
    not one line of at most 1000 printable characters.
    """
    # By hand: stripping one after the other until nothing changes takes minutes for a long text of both.
    kept = [index for index, character in enumerate(text) if character != _QUOTE and not character.isspace()]
    if not kept:
        raise DemonstrationError(f"the instruction is {shorten(repr(text))}; write what the robot has to do")
    words = text[kept[0] : kept[-1] + 1]
    if len(words) > _LONGEST_INSTRUCTION or not words.isprintable():
        raise DemonstrationError(
            f"the instruction is {words[:60]!a}... ({len(words)} characters); allowed is one line of at most "
            f"{_LONGEST_INSTRUCTION} printable characters"
        )
    return words


class DemonstrationFile:
    """The demonstrations of one task. Opened for each read, so it may be shared between processes.

    Attributes: ``path``, ``instruction``, ``task_name``, ``contract``. ``len(file)`` episodes, iterated in order.
    ``suite`` (empty where unknown), ``settings`` (robomimic's ``env_args``), ``tried`` (attempts behind the successes).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DemonstrationError(
                f"there is no demonstration file at {self.path}; 'm2distill demos' collects a suite's, 'm2distill "
                "import-bag' makes one of recordings"
            )
        file = open_hdf5(self.path)
        if "data" not in file.groups:
            raise DemonstrationError(
                f"{self.path}: group 'data' is missing; this is not a demonstration file in LIBERO's layout"
            )
        self._names = sorted(
            (name for name in (group.removeprefix("data/") for group in file.groups) if _EPISODE.fullmatch(name)),
            key=lambda name: int(name.removeprefix("demo_")),
        )
        if not self._names:
            raise DemonstrationError(f"{self.path}: group 'data' holds no episode 'demo_<i>'")
        data = file.attributes("data", _ATTRIBUTES)
        convention = data.get("macros_image_convention", "opengl")
        if convention not in ("opengl", "opencv"):
            raise DemonstrationError(
                f"{self.path}: attribute 'macros_image_convention' is {str(convention)[:80]!r}; "
                "known are 'opengl' (rows bottom-up) and 'opencv'"
            )
        self._bottom_up = convention == "opengl"
        self.task_name = _task_name_of(self.path.name)
        self.instruction = self._read_instruction(data)
        self.contract = self._read_contract(file, data)
        # A file without any attribute is one that OpenVLA's script made anew, which looks before it acts.
        self._seen_after = bool(data) and "m2distill_contract" not in data
        self.suite = self._text(data, "m2distill_suite") or ""
        self.settings = self._read_settings(data, "env_args")
        self._read_settings(data, "env_info")
        self.tried = self._whole_number(data, "m2distill_tried", len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    @property
    def episode_names(self) -> tuple[str, ...]:
        """Names of the episodes' groups in the file, in order."""
        return tuple(self._names)

    def __iter__(self) -> Iterator[Episode]:
        for index in range(len(self)):
            yield self.episode(index)

    def episode(self, index: int) -> Episode:
        """Episode ``index``, checked. Raises :class:`DemonstrationError`, or IndexError beyond the last one."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} episodes; there is no episode {index}")
        name = self._names[index]
        file = open_hdf5(self.path)
        actions = self._actions(file, name, "actions", None)
        length = len(actions)
        executed = None
        if f"data/{name}/executed_actions" in file.datasets:
            executed = self._actions(file, name, "executed_actions", length)
        images: dict[str, NDArray[np.uint8]] = {}
        for camera in self.contract.cameras:
            frames = self._dataset(file, name, f"obs/{camera.name}", camera.shape, "u1", length)
            images[camera.name] = np.ascontiguousarray(frames[:, ::-1]) if self._bottom_up else frames
        proprioception: dict[str, NDArray[np.float32]] = {}
        for reading in self.contract.proprioception:
            key = f"obs/{reading.name}"
            values = self._dataset(file, name, key, (reading.size,), "f", length)
            if not np.all(np.isfinite(values)):
                raise self._wrong(name, key, "holds a value that is not finite")
            if np.any(values < reading.low) or np.any(values > reading.high):
                raise self._wrong(
                    name, key, f"leaves the contract's range {reading.low:.4g} to {reading.high:.4g} {reading.unit}"
                )
            proprioception[reading.name] = values.astype(np.float32)
        ee: NDArray[np.float32] | None = None
        if f"data/{name}/obs/ee_states" in file.datasets:
            poses = self._dataset(file, name, "obs/ee_states", (6,), "f", length)
            if not np.all(np.abs(poses) <= _FARTHEST):  # also where one is not a number
                raise self._wrong(name, "obs/ee_states", f"holds a value that is not finite, or beyond {_FARTHEST:g}")
            ee = poses.astype(np.float32)
        attributes = file.attributes(f"data/{name}", ("seed", "init_state"))
        seed = self._whole_number(attributes, "seed", None)
        state = attributes.get("init_state")
        if state is not None and not (isinstance(state, list) and np.all(np.isfinite(np.asarray(state, dtype=float)))):
            raise self._wrong(name, "init_state", "is not a list of finite numbers")
        return Episode(
            images,
            proprioception,
            actions,
            ee,
            seed,
            None if state is None else np.asarray(state, dtype=np.float64),
            executed,
            self._seen_after,
        )

    def _actions(self, file: Hdf5File, name: str, key: str, length: int | None) -> NDArray[np.float32]:
        """Actions (L, 7), checked; what rounding put over the edge of [-1, 1] is clipped."""
        actions = self._dataset(file, name, key, (7,), "f", length)
        if len(actions) == 0:
            raise self._wrong(name, key, "holds no step")
        if not np.all(np.isfinite(actions)):
            raise self._wrong(name, key, "holds a value that is not finite")
        if np.any(np.abs(actions) > 1.0 + ACTION_TOLERANCE):
            worst = float(actions.flat[int(np.argmax(np.abs(actions)))])
            raise self._wrong(name, key, f"holds {worst:.6g}; allowed are -1 to 1")
        return np.clip(actions, -1.0, 1.0).astype(np.float32)

    def lengths(self) -> list[int]:
        """Steps of every episode, without reading them."""
        file = open_hdf5(self.path)
        return [self._declared(file, name, "actions", (7,), "f").shape[0] for name in self._names]

    def states(self, index: int) -> NDArray[np.float64]:
        """Flattened MuJoCo states (L, S) of episode ``index``."""
        name = self._names[index]
        file = open_hdf5(self.path)
        if f"data/{name}/states" not in file.datasets:
            raise self._wrong(name, "states", "is missing")
        return np.asarray(file.read(f"data/{name}/states"), dtype=np.float64)

    def sha256(self) -> str:
        """Hash of what is demonstrated: instruction, contract, and every episode's views, readings and actions."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.instruction, self.contract.to_dict()], sort_keys=True).encode())
        for episode in self:
            contents: list[tuple[str, NDArray[Any]]] = [*sorted(episode.images.items())]
            contents += [*sorted(episode.proprioception.items()), ("actions", episode.actions)]
            for key, values in contents:
                digest.update(f"{key} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _wrong(self, episode: str, key: str, what: str) -> DemonstrationError:
        return DemonstrationError(f"{self.path}: episode '{episode}', key '{key}' {what}")

    def _declared(self, file: Hdf5File, episode: str, key: str, shape: tuple[int, ...], kind: str) -> Dataset:
        """Dataset ``key`` of shape (L, *shape); ``kind`` is 'f' for any float or 'u1' for uint8. Nothing is read."""
        dataset = file.datasets.get(f"data/{episode}/{key}")
        if dataset is None:
            start = f"data/{episode}/"
            there = sorted(name.removeprefix(start) for name in file.datasets if name.startswith(start))
            raise self._wrong(episode, key, f"is missing; the episode has {there[:30]}")
        dtype = dataset.dtype
        if dtype is None or ((dtype.kind != "f") if kind == "f" else (dtype != np.uint8)):
            got = dataset.kind if dtype is None else dtype
            raise self._wrong(episode, key, f"is {got}; {'a float' if kind == 'f' else 'uint8'} is wanted")
        if len(dataset.shape) != 1 + len(shape) or dataset.shape[1:] != shape:
            raise self._wrong(episode, key, f"has shape {dataset.shape}; (L, {', '.join(map(str, shape))}) is wanted")
        return dataset

    def _dataset(
        self, file: Hdf5File, episode: str, key: str, shape: tuple[int, ...], kind: str, length: int | None = None
    ) -> NDArray[Any]:
        """The numbers of :meth:`_declared`, of ``length`` steps where that is known."""
        dataset = self._declared(file, episode, key, shape, kind)
        if length is not None and dataset.shape[0] != length:
            raise self._wrong(episode, key, f"has {dataset.shape[0]} steps; 'actions' has {length}")
        return file.read(f"data/{episode}/{key}")

    def _text(self, attributes: Mapping[str, Any], name: str) -> str | None:
        """The text of an attribute; None where it is not there."""
        value = attributes.get(name)
        if value is not None and not isinstance(value, str):
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(value)[:80]}; a text is wanted")
        return value

    def _whole_number(self, attributes: Mapping[str, Any], name: str, default: T) -> int | T:
        value = attributes.get(name, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(value)[:80]}; a whole number is wanted")
        return value

    def _read_json(self, attributes: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        text = self._text(attributes, name)
        if text is None:
            return None
        try:
            found = strict_json.parse(text)
        except strict_json.JsonError as error:
            raise DemonstrationError(
                f"{self.path}: attribute '{name}' is not JSON that can be read: {error}"
            ) from error
        if not isinstance(found, dict):
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(found)[:80]}; a JSON object is wanted")
        return found

    def _read_instruction(self, data: Mapping[str, Any]) -> str:
        found = self._read_json(data, "problem_info")
        if not data and self.path.name.endswith(_SUFFIX):
            words = words_of(self.task_name)
            if words is not None:
                if self.path not in _said:
                    _said.add(self.path)
                    logger.warning("%s has no attributes: its instruction is '%s', from its name", self.path, words)
                return words
        if found is None:
            raise DemonstrationError(f"{self.path}: attribute 'problem_info' is missing; it holds the instruction")
        words = found.get("language_instruction")
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            words = _joined(words)
        if not isinstance(words, str):
            raise DemonstrationError(
                f"{self.path}: 'language_instruction' in 'problem_info' is {str(words)[:80]}; a text is wanted"
            )
        try:
            return instruction_from(words)
        except DemonstrationError as error:
            raise DemonstrationError(f"{self.path}: in 'problem_info' {error}") from error

    def _read_settings(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        """What an attribute says of how the episodes came about; empty where it says nothing.

        Raises :class:`DemonstrationError` where the contract says something else.
        """
        found = self._read_json(data, name) or {}
        try:
            check_settings(found, self.contract, name)
        except DemonstrationError as error:
            raise DemonstrationError(f"{self.path}: {error}") from error
        return found

    def _read_contract(self, file: Hdf5File, data: Mapping[str, Any]) -> Contract:
        raw = self._text(data, "m2distill_contract")
        if raw is not None:
            try:
                return Contract.from_json(raw)
            except ContractError as error:
                raise DemonstrationError(f"{self.path}: attribute 'm2distill_contract': {error}") from error
        first = self._names[0]
        view = file.datasets.get(f"data/{first}/obs/agentview_rgb")
        if view is None or len(view.shape) != 4 or view.shape[1] != view.shape[2]:
            raise self._wrong(
                first, "obs/agentview_rgb", "is missing or not (L, H, H, 3), so no contract can be derived from it"
            )
        try:
            return libero_contract(view.shape[1])
        except ContractError as error:
            raise DemonstrationError(f"{self.path}: {error}") from error


def _differing(begun: str, now: str) -> str:
    """Which settings of two collections differ, in brackets; empty where one is damaged and does not say."""
    try:
        (one, of_one), (other, of_other) = ((made, made.pop("env_args")) for made in map(json.loads, (begun, now)))
        pairs = ((one, other), (of_one, of_other))
        return f" ({', '.join(sorted({k for a, b in pairs for k in {*a, *b} if a.get(k) != b.get(k)}))})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """One sentence for whatever HDF5 says when it cannot write ``path``; what is half written goes."""
    try:
        with writing(path):
            yield
    except (OSError, RuntimeError, StorageError) as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, StorageError):
            raise
        raise DemonstrationError(f"{path} cannot be written: {error}") from error


def _joined(pieces: list[str]) -> str:
    """The instruction of which some of LIBERO's files hold the words, or all of it in one piece, or its letters."""
    letters = len(pieces) > 1 and all(len(piece) == 1 for piece in pieces)
    return "".join(pieces) if letters else " ".join(word for piece in pieces for word in piece.split())


class DemonstrationWriter:
    """Collects the episodes of one task; a kill at any moment loses at most the episode being written.

    Every attempt is committed on its own, by renaming a finished part into ``<file>.parts/``: an episode as
    ``<seed>.hdf5``, a failure as the empty ``<seed>.failed``. :meth:`finish` merges the parts into one file.

    Raises :class:`DemonstrationError`, before anything is written, for an instruction or a name that would not be read
    back as it is, and where the settings contradict the contract.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        instruction: str,
        contract: Contract,
        suite: str = "",
        env_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.instruction = instruction
        self.contract = contract
        self.suite = suite
        self.env_args = dict(env_args or {})
        if instruction_from(instruction) != instruction:
            raise DemonstrationError(
                f"the instruction is {shorten(repr(instruction))} and would be read as "
                f"{shorten(repr(instruction_from(instruction)))}; write it without quotes and spaces around it"
            )
        demonstration_path(self.path.parent, _task_name_of(self.path.name))
        try:
            check_settings(strict_json.parse(json.dumps(self.env_args)), contract)
        except strict_json.JsonError as error:
            raise DemonstrationError(f"the settings of {self.path} could not be read back: {error}") from error
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._require_same_contract()
        except OSError as error:
            raise DemonstrationError(f"demonstrations cannot be written to {self.parts}: {error}") from error

    def _require_same_contract(self) -> None:
        """Parts of an earlier collection under another contract or instruction are never mixed in."""
        marker = self.parts / "collection.json"
        wanted = json.dumps(
            {"instruction": self.instruction, "contract": self.contract.to_dict(), "env_args": self.env_args},
            sort_keys=True,
        )
        if not marker.exists():
            write_atomic(marker, wanted.encode())
        elif marker.read_text() != wanted:
            raise DemonstrationError(
                f"{self.parts} holds an unfinished collection under another setting"
                f"{_differing(marker.read_text(), wanted)}; delete that folder or choose another output"
            )

    def clean(self) -> None:
        """Remove what a killed process left half written. Only while no other process writes here."""
        for leftover in self.parts.glob(".*"):
            leftover.unlink()

    def discard_if_empty(self) -> None:
        """Remove the folder of parts if no attempt was committed, so that other settings can be tried at once."""
        if not self.attempts():
            shutil.rmtree(self.parts, ignore_errors=True)

    def attempts(self) -> dict[int, bool]:
        """Seeds tried so far -> whether the attempt succeeded."""
        done = {int(part.stem): True for part in self.parts.glob("[0-9]*.hdf5")}
        return done | {int(part.stem): False for part in self.parts.glob("[0-9]*.failed")}

    def add_failure(self, seed: int) -> None:
        """Remember that the attempt from ``seed`` failed."""
        (self.parts / f"{seed}.failed").touch()

    def add(self, recording: Recording, number: int | None = None) -> None:
        """Commit one episode, known by ``number``, or by its seed where it was drawn from one.

        :class:`DemonstrationError` if it is not of the contract's form.
        """
        episode = recording.episode
        number = episode.seed if number is None else number
        if number is None:
            raise DemonstrationError("a collected episode needs the seed of its initial state; got None")
        self._check(recording)
        temporary = self.parts / f".{number}.hdf5"
        with _writing(temporary):
            with create_hdf5(temporary) as output:
                _write_episode(output.file.create_group("demo"), recording)
            settle(temporary, self.parts / f"{number}.hdf5")

    def reopen(self, file: DemonstrationFile, seeds: Sequence[int]) -> None:
        """Split a finished file into parts, so that more episodes can be added. The file stays until :meth:`finish`.

        Args:
            file: The finished file of this writer's path.
            seeds: Seeds of the attempts behind it, in order. Attempts whose seed has no episode have failed.

        Raises:
            DemonstrationError: An episode is damaged, or its seed is not one of ``seeds``.
        """
        missing = set(seeds)
        for index in range(len(file)):
            seed = file.episode(index).seed  # reads the whole episode, so damage is found here
            if seed not in missing:
                raise DemonstrationError(
                    f"{file.path}: episode 'demo_{index}' has seed {seed}, which this collection does not use or used "
                    "before; episodes can only be added to a file that 'm2distill demos' wrote"
                )
            missing.remove(seed)
            part = self.parts / f"{seed}.hdf5"
            if part.exists():
                continue
            temporary = self.parts / f".{seed}.hdf5"
            with _writing(temporary):
                with h5py.File(file.path, "r") as source, create_hdf5(temporary) as output:
                    source.copy(f"data/{file.episode_names[index]}", output.file, name="demo")
                settle(temporary, part)
        for seed in missing:
            self.add_failure(seed)

    def finish(self, seeds: list[int], tried: int) -> DemonstrationFile:
        """Merge the episodes of ``seeds``, in that order, into the file; ``tried`` attempts gave them. Parts go."""
        if not seeds:
            raise DemonstrationError(
                f"no episode was collected for {self.path}; a file without episodes is not written"
            )
        self._require_whole(seeds)
        temporary = self.path.with_name(f".{self.path.name}")
        total = 0
        with _writing(temporary):
            with create_hdf5(temporary) as output:
                data = output.file.create_group("data")
                for index, seed in enumerate(seeds):
                    with h5py.File(self.parts / f"{seed}.hdf5", "r") as part:  # read whole just before
                        part.copy("demo", data, name=f"demo_{index}")
                        total += int(part["demo"].attrs["num_samples"])
                    output.check()
                data.attrs["num_demos"] = len(seeds)
                data.attrs["total"] = total
                data.attrs["macros_image_convention"] = "opengl"
                data.attrs["problem_info"] = json.dumps({"language_instruction": self.instruction})
                data.attrs["env_args"] = json.dumps(self.env_args, sort_keys=True)
                data.attrs["env_name"] = str(self.env_args.get("env_name", self.suite))
                data.attrs["m2distill_contract"] = self.contract.to_json()
                data.attrs["m2distill_suite"] = self.suite
                data.attrs["m2distill_tried"] = tried
            settle(temporary, self.path)
            # The parts go at once or not at all: some that were left without their settings would be taken for others'.
            done = self.parts.with_name(f".{self.parts.name}")
            shutil.rmtree(done, ignore_errors=True)
            self.parts.rename(done)
        shutil.rmtree(done)
        return DemonstrationFile(self.path)

    def _require_whole(self, seeds: list[int]) -> None:
        for seed in seeds:
            part = self.parts / f"{seed}.hdf5"
            try:
                file = open_hdf5(part)
                for name in file.datasets:
                    file.read(name)
                if not isinstance(file.attributes("demo", ["num_samples"]).get("num_samples"), int):
                    raise DemonstrationError("it does not say how many steps it has")
            except DemonstrationError as error:
                raise DemonstrationError(
                    f"{part} is damaged ({error}); remove it and go on with the same command, which makes it anew"
                ) from error

    def _check(self, recording: Recording) -> None:
        """Refuse at the source what the reader would refuse."""
        episode, length = recording.episode, len(recording.episode.actions)
        where = f"episode of seed {episode.seed} for {self.path.name}"
        if length == 0 or episode.actions.shape != (length, 7) or not np.all(np.isfinite(episode.actions)):
            raise DemonstrationError(
                f"{where}: actions are {episode.actions.shape}, finite (L, 7) with L > 0 is wanted"
            )
        if np.any(np.abs(episode.actions) > 1.0 + ACTION_TOLERANCE):
            raise DemonstrationError(f"{where}: an action lies outside [-1, 1]")
        for camera in self.contract.cameras:
            frames = episode.images.get(camera.name)
            if frames is None or frames.dtype != np.uint8 or frames.shape != (length, *camera.shape):
                got = "missing" if frames is None else f"{frames.dtype} {frames.shape}"
                raise DemonstrationError(
                    f"{where}: view '{camera.name}' is {got}; uint8 {(length, *camera.shape)} is wanted"
                )
        for reading in self.contract.proprioception:
            values = episode.proprioception.get(reading.name)
            if values is None or values.shape != (length, reading.size) or not np.all(np.isfinite(values)):
                got = "missing" if values is None else str(values.shape)
                raise DemonstrationError(
                    f"{where}: '{reading.name}' is {got}; finite {(length, reading.size)} is wanted"
                )
            if np.any(values < reading.low) or np.any(values > reading.high):
                raise DemonstrationError(
                    f"{where}: '{reading.name}' leaves the contract's range {reading.low:.4g} to {reading.high:.4g} "
                    f"{reading.unit}"
                )
        for name, poses, size in (("ee", episode.ee, 6), ("executed", episode.executed, 7)):
            if poses is not None and (poses.shape != (length, size) or not np.all(np.isfinite(poses))):
                raise DemonstrationError(f"{where}: '{name}' is {poses.shape}; finite {(length, size)} is wanted")
        for states in (recording.states, recording.robot_states):
            if states is not None and len(states) != length:
                raise DemonstrationError(f"{where}: {len(states)} states for {length} actions")


def _write_episode(group: h5py.Group, recording: Recording) -> None:
    episode = recording.episode
    length = len(episode)
    ends = np.zeros(length, dtype=np.uint8)
    ends[-1] = 1
    group.create_dataset("actions", data=np.asarray(episode.actions, dtype=np.float64))
    if episode.executed is not None:
        group.create_dataset("executed_actions", data=np.asarray(episode.executed, dtype=np.float64))
    if recording.states is not None:
        group.create_dataset("states", data=recording.states)
        group.attrs["init_state"] = recording.states[0]
    if recording.robot_states is not None:
        group.create_dataset("robot_states", data=recording.robot_states)
    group.create_dataset("rewards", data=ends)
    group.create_dataset("dones", data=ends)
    obs = group.create_group("obs")
    for name, frames in episode.images.items():
        # A chunk a frame: training reads windows of frames, not whole episodes.
        obs.create_dataset(
            name, data=frames[:, ::-1], chunks=(1, *frames.shape[1:]), compression="gzip", compression_opts=1
        )
    for name, values in episode.proprioception.items():
        obs.create_dataset(name, data=np.asarray(values, dtype=np.float64))
    if episode.ee is not None:
        pose = np.asarray(episode.ee, dtype=np.float64)
        obs.create_dataset("ee_states", data=pose)
        obs.create_dataset("ee_pos", data=pose[:, :3])
        obs.create_dataset("ee_ori", data=pose[:, 3:])
    group.attrs["num_samples"] = length
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    group.attrs["model_file"] = recording.model_xml
