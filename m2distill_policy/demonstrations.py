"""Demonstration files: HDF5 in LIBERO's layout, one file for each task.

The layout is described in docs/reference/demonstrations.md. Files store image rows bottom-up
(``macros_image_convention = opengl``), as robosuite and LIBERO do, so that LIBERO's and robomimic's tools can read
them. Elsewhere images are upright; the reader and :mod:`m2distill_policy.demonstration_writer` flip them.

Reading is strict: a missing key, a wrong shape or dtype, or a value out of range raises :class:`DemonstrationError`,
which names file, episode and key. LIBERO's published files have no contract. For them, LIBERO's contract with the image
size of the file is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy import strict_json
from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstration_settings import check_settings, words_of
from m2distill_policy.errors import ContractError, DemonstrationError, shorten
from m2distill_policy.hdf5 import Dataset, Hdf5File, open_hdf5

#: How far an action may be outside [-1, 1] because of rounding. A file with a larger action is refused.
ACTION_TOLERANCE = 1e-6

_SUFFIX = "_demo.hdf5"
_EPISODE = re.compile(r"demo_\d{1,9}")
#: Attributes of the group ``data`` that are read.
_ATTRIBUTES = (
    *("macros_image_convention", "problem_info", "env_args", "env_info"),
    *("m2distill_contract", "m2distill_suite", "m2distill_tried"),
)
#: Largest length of a file's name in bytes. The temporary name during writing is a few bytes longer.
_LONGEST_NAME = 200
#: Largest number of characters of an instruction; a text encoder reads some hundreds.
_LONGEST_INSTRUCTION = 1000
#: Largest plausible absolute value in an end-effector pose, m and rad.
_FARTHEST = 1e3

#: Characters that readers remove around an instruction, in addition to white space.
_QUOTE = '"'

T = TypeVar("T")

logger = logging.getLogger(__name__)
#: Files for which a warning was logged that their instruction was taken from their name.
_said: set[Path] = set()


@dataclass(frozen=True)
class Episode:
    """One demonstration of L steps. Index t was observed before action t.

    Attributes:
        images: Name of the view -> images, (L, H, W, 3) uint8, RGB, upright.
        proprioception: Name of the group -> joint positions, (L, n) float32, in the contract's units.
        actions: Actions, (L, 7) float32 in [-1, 1].
        ee: End-effector poses, (L, 6) float32 (m; rotation vector, rad), or None.
        seed: Seed of the initial state, or None.
        init_state: Flattened MuJoCo state, or None.
        executed: Actions that the robot executed instead of ``actions``, if it was disturbed, (L, 7) float32, or None.
        seen_after: True for LIBERO's published files, where index t was recorded after action t.
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
    """An :class:`Episode` and the data that only a simulated environment can add to the file.

    Attributes:
        episode: The episode.
        states: Flattened MuJoCo states, (L, S) float64; None for a real robot.
        robot_states: Finger positions, grip position and grip quaternion (x, y, z, w), (L, 9); None for a real robot.
        model_xml: MJCF of the scene; empty for a real robot.
    """

    episode: Episode
    states: NDArray[np.float64] | None = None
    robot_states: NDArray[np.float64] | None = None
    model_xml: str = ""


def demonstration_path(folder: Path, task_name: str) -> Path:
    """Return the path of a task's file in ``folder``; raise :class:`DemonstrationError` for an invalid name."""
    name = task_name + _SUFFIX
    if not task_name or task_name.startswith(".") or not task_name.isprintable() or set(task_name) & set("/\\:"):
        raise DemonstrationError(
            f"the task name {task_name[:80]!r} cannot be part of a file name: leave out '/', '\\\\' and ':', do not "
            "begin with a dot, and do not leave it empty"
        )
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise DemonstrationError(
            f"the task name {task_name[:40]!r}... has {len(task_name)} characters; a file name has at most "
            f"{_LONGEST_NAME} bytes: use a shorter one"
        )
    if task_name_of(name) != task_name:
        raise DemonstrationError(f"the task name {task_name!r} must not end in .hdf5; leave that out")
    return folder / f"{task_name}{_SUFFIX}"


def task_name_of(name: str) -> str:
    """Return the name of the task, given the name of its demonstration file."""
    return name.removesuffix(_SUFFIX).removesuffix(".hdf5")


def instruction_from(text: str) -> str:
    """Return ``text`` without the quotes and white space around it. All readers of instructions do this.

    Raises :class:`DemonstrationError` if it is not one line of 1 to 1000 printable characters.
    """
    # One pass, because stripping quotes and spaces in turn takes minutes for a long text of quotes and spaces.
    kept = [index for index, character in enumerate(text) if character != _QUOTE and not character.isspace()]
    if not kept:
        raise DemonstrationError(f"the instruction is {shorten(repr(text))}; write what the robot should do")
    words = text[kept[0] : kept[-1] + 1]
    if len(words) > _LONGEST_INSTRUCTION or not words.isprintable():
        raise DemonstrationError(
            f"the instruction is {words[:60]!a}... ({len(words)} characters); allowed is one line of at most "
            f"{_LONGEST_INSTRUCTION} printable characters"
        )
    return words


class DemonstrationFile:
    """The demonstrations of one task. The file is opened for each read, so the object may be shared between processes.

    ``len(file)`` is the number of episodes; iteration yields the episodes in order.

    Attributes:
        path, contract: Path of the file, and contract of the demonstrations.
        task_name, instruction, suite: Name of the task, its instruction, and the name of its suite or "".
        settings: Settings of the environment, robomimic's ``env_args``.
        tried: Number of attempts that were needed to collect the episodes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DemonstrationError(
                f"there is no demonstration file at {self.path}; 'm2distill demos' collects those of a suite, "
                "'m2distill import-bag' converts recordings"
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
        self.task_name = task_name_of(self.path.name)
        self.instruction = self._read_instruction(data)
        self.contract = self._read_contract(file, data)
        # A file without attributes was made by OpenVLA's script, which records the observation before the action.
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
        """Read and check episode ``index``. Raise IndexError without one, DemonstrationError for an invalid one."""
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
        for group in self.contract.proprioception:
            key = f"obs/{group.name}"
            values = self._dataset(file, name, key, (group.size,), "f", length)
            if not np.all(np.isfinite(values)):
                raise self._wrong(name, key, "holds a value that is not finite")
            if np.any(values < group.low) or np.any(values > group.high):
                raise self._wrong(
                    name, key, f"leaves the contract's range {group.low:.4g} to {group.high:.4g} {group.unit}"
                )
            proprioception[group.name] = values.astype(np.float32)
        ee: NDArray[np.float32] | None = None
        if f"data/{name}/obs/ee_states" in file.datasets:
            poses = self._dataset(file, name, "obs/ee_states", (6,), "f", length)
            if not np.all(np.abs(poses) <= _FARTHEST):  # this form of the condition also refuses NaN
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
        """Return the checked actions (L, 7). Values that exceed [-1, 1] by rounding are clipped."""
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
        """Return the number of steps of every episode, without reading the episodes."""
        file = open_hdf5(self.path)
        return [self._declared(file, name, "actions", (7,), "f").shape[0] for name in self._names]

    def states(self, index: int) -> NDArray[np.float64]:
        """Return the flattened MuJoCo states (L, S) of episode ``index``."""
        name = self._names[index]
        file = open_hdf5(self.path)
        if f"data/{name}/states" not in file.datasets:
            raise self._wrong(name, "states", "is missing")
        return np.asarray(file.read(f"data/{name}/states"), dtype=np.float64)

    def sha256(self) -> str:
        """Return a hash of instruction, contract, and every episode's views, proprioception and actions."""
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
        """Return dataset ``key`` without its data, if it has shape (L, *shape) and type 'f' (any float) or 'u1'."""
        dataset = file.datasets.get(f"data/{episode}/{key}")
        if dataset is None:
            start = f"data/{episode}/"
            there = sorted(name.removeprefix(start) for name in file.datasets if name.startswith(start))
            raise self._wrong(episode, key, f"is missing; the episode has {there[:30]}")
        dtype = dataset.dtype
        if dtype is None or ((dtype.kind != "f") if kind == "f" else (dtype != np.uint8)):
            got = dataset.kind if dtype is None else dtype
            raise self._wrong(episode, key, f"is {got}; {'a float' if kind == 'f' else 'uint8'} is needed")
        if len(dataset.shape) != 1 + len(shape) or dataset.shape[1:] != shape:
            raise self._wrong(episode, key, f"has shape {dataset.shape}; (L, {', '.join(map(str, shape))}) is needed")
        return dataset

    def _dataset(
        self, file: Hdf5File, episode: str, key: str, shape: tuple[int, ...], kind: str, length: int | None = None
    ) -> NDArray[Any]:
        """Read a dataset, checked by :meth:`_declared`; ``length`` is the required number of steps, or None."""
        dataset = self._declared(file, episode, key, shape, kind)
        if length is not None and dataset.shape[0] != length:
            raise self._wrong(episode, key, f"has {dataset.shape[0]} steps; 'actions' has {length}")
        return file.read(f"data/{episode}/{key}")

    def _text(self, attributes: Mapping[str, Any], name: str) -> str | None:
        """Return the text of an attribute; None if it is missing."""
        value = attributes.get(name)
        if value is not None and not isinstance(value, str):
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(value)[:80]}; a text is needed")
        return value

    def _whole_number(self, attributes: Mapping[str, Any], name: str, default: T) -> int | T:
        value = attributes.get(name, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(value)[:80]}; a whole number is needed")
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
            raise DemonstrationError(f"{self.path}: attribute '{name}' is {str(found)[:80]}; a JSON object is needed")
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
                f"{self.path}: 'language_instruction' in 'problem_info' is {str(words)[:80]}; a text is needed"
            )
        try:
            return instruction_from(words)
        except DemonstrationError as error:
            raise DemonstrationError(f"{self.path}: in 'problem_info' {error}") from error

    def _read_settings(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the settings in attribute ``name``, or {} without it; refuse settings that contradict the contract."""
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


def _joined(pieces: list[str]) -> str:
    """Join an instruction that one of LIBERO's files stores as a list of words, of letters, or of one text."""
    letters = len(pieces) > 1 and all(len(piece) == 1 for piece in pieces)
    return "".join(pieces) if letters else " ".join(word for piece in pieces for word in piece.split())
