"""Write demonstration files, episode by episode; see :mod:`m2distill_policy.demonstrations`."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from m2distill_policy import strict_json
from m2distill_policy.contract import Contract
from m2distill_policy.demonstration_settings import check_settings
from m2distill_policy.demonstrations import (
    ACTION_TOLERANCE,
    DemonstrationFile,
    Recording,
    demonstration_path,
    instruction_from,
    task_name_of,
)
from m2distill_policy.errors import DemonstrationError, StorageError, shorten
from m2distill_policy.hdf5 import open_hdf5
from m2distill_policy.hdf5_writer import create_hdf5
from m2distill_policy.storage import sync_and_rename, write_atomic, writing


def _differing(begun: str, now: str) -> str:
    """Return the names of the settings that differ between two collections, in brackets; "" if one is damaged."""
    try:
        (one, of_one), (other, of_other) = ((made, made.pop("env_args")) for made in map(json.loads, (begun, now)))
        pairs = ((one, other), (of_one, of_other))
        return f" ({', '.join(sorted({k for a, b in pairs for k in {*a, *b} if a.get(k) != b.get(k)}))})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """If writing ``path`` fails, remove the incomplete file and raise StorageError or DemonstrationError."""
    try:
        with writing(path):
            yield
    except (OSError, RuntimeError, StorageError) as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, StorageError):
            raise
        raise DemonstrationError(f"{path} cannot be written: {error}") from error


class DemonstrationWriter:
    """Writer of the episodes of one task. If the process is killed, at most the episode being written is lost.

    Every attempt is stored in its own file in ``<file>.parts/``: an episode as ``<seed>.hdf5``, a failure as the empty
    ``<seed>.failed``. An episode is written under a temporary name and then renamed. :meth:`finish` merges the parts
    into one file.

    Raises:
        DemonstrationError: The instruction or the name of the file would be read back differently, or the settings
            contradict the contract. In both cases nothing has been written.
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
        demonstration_path(self.path.parent, task_name_of(self.path.name))
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
        """Refuse parts of an earlier collection that has another contract, instruction or ``env_args``."""
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
        """Remove files that a killed process left incomplete. Call it only while no other process writes here."""
        for leftover in self.parts.glob(".*"):
            leftover.unlink()

    def discard_if_empty(self) -> None:
        """Remove the folder of parts if no attempt is stored in it, so that other settings can be used at once."""
        if not self.attempts():
            shutil.rmtree(self.parts, ignore_errors=True)

    def attempts(self) -> dict[int, bool]:
        """Return the attempts so far: seed -> whether the attempt succeeded."""
        done = {int(part.stem): True for part in self.parts.glob("[0-9]*.hdf5")}
        return done | {int(part.stem): False for part in self.parts.glob("[0-9]*.failed")}

    def add_failure(self, seed: int) -> None:
        """Record that the attempt with ``seed`` failed."""
        (self.parts / f"{seed}.failed").touch()

    def add(self, recording: Recording, number: int | None = None) -> None:
        """Store one episode.

        Args:
            recording: The episode.
            number: Number in the name of the episode's part; None uses its seed.

        Raises:
            DemonstrationError: The episode does not fit the contract.
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
            sync_and_rename(temporary, self.parts / f"{number}.hdf5")

    def reopen(self, file: DemonstrationFile, seeds: Sequence[int]) -> None:
        """Split a finished file into parts, so that more episodes can be added. The file stays until :meth:`finish`.

        Args:
            file: The finished file at this writer's path.
            seeds: Seeds of all attempts of that file, in order. An attempt without an episode in the file has failed.

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
                sync_and_rename(temporary, part)
        for seed in missing:
            self.add_failure(seed)

    def finish(self, seeds: list[int], tried: int) -> DemonstrationFile:
        """Merge the episodes of ``seeds`` into the file, in that order, and remove the parts.

        Args:
            seeds: Seeds of the episodes.
            tried: Number of attempts, for the file.
        """
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
                    with h5py.File(self.parts / f"{seed}.hdf5", "r") as part:  # checked above
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
            sync_and_rename(temporary, self.path)
            # Renamed before it is removed. If only a part of the folder were removed, its settings could be missing,
            # and a collection with other settings would use the remaining episodes.
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
                    f"{part} is damaged ({error}); remove it and run the same command again, which collects it again"
                ) from error

    def _check(self, recording: Recording) -> None:
        """Refuse what the reader would refuse."""
        episode, length = recording.episode, len(recording.episode.actions)
        where = f"episode of seed {episode.seed} for {self.path.name}"
        if length == 0 or episode.actions.shape != (length, 7) or not np.all(np.isfinite(episode.actions)):
            raise DemonstrationError(
                f"{where}: actions are {episode.actions.shape}, finite (L, 7) with L > 0 is needed"
            )
        if np.any(np.abs(episode.actions) > 1.0 + ACTION_TOLERANCE):
            raise DemonstrationError(f"{where}: an action lies outside [-1, 1]")
        for camera in self.contract.cameras:
            frames = episode.images.get(camera.name)
            if frames is None or frames.dtype != np.uint8 or frames.shape != (length, *camera.shape):
                got = "missing" if frames is None else f"{frames.dtype} {frames.shape}"
                raise DemonstrationError(
                    f"{where}: view '{camera.name}' is {got}; uint8 {(length, *camera.shape)} is needed"
                )
        for group in self.contract.proprioception:
            values = episode.proprioception.get(group.name)
            if values is None or values.shape != (length, group.size) or not np.all(np.isfinite(values)):
                got = "missing" if values is None else str(values.shape)
                raise DemonstrationError(f"{where}: '{group.name}' is {got}; finite {(length, group.size)} is needed")
            if np.any(values < group.low) or np.any(values > group.high):
                raise DemonstrationError(
                    f"{where}: '{group.name}' leaves the contract's range {group.low:.4g} to {group.high:.4g} "
                    f"{group.unit}"
                )
        for name, poses, size in (("ee", episode.ee, 6), ("executed", episode.executed, 7)):
            if poses is not None and (poses.shape != (length, size) or not np.all(np.isfinite(poses))):
                raise DemonstrationError(f"{where}: '{name}' is {poses.shape}; finite {(length, size)} is needed")
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
        # One chunk for each frame, because training reads windows of frames and not whole episodes.
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
