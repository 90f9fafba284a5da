"""A run's folder: names stay inside it, nothing is missing from it, and training that is stopped is saved in it."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from m2distill_policy.cli import main
from m2distill_policy.config import load_config
from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import ConfigError, DemonstrationError, M2DistillError, StorageError, TrainingError
from tests.test_demonstrations import recording
from tests.test_run import SMALL
from tests.training_fixtures import CONTRACT, NETWORK, config, task_data
from training.extension import extend_run
from training.lifelong.checkpoint import read_json, save_tensors, write_json
from training.lifelong.memory import Memory
from training.lifelong.run import LifelongRun
from training.lifelong.stage import train_stage
from training.lifelong.stop import StoppedError
from training.lifelong.strategies import make_strategy
from training.models.resnet_t import ResNetT
from training.new_run import create_run
from training.pipeline import finish_run
from training.run_config import RunConfig

OWN = [*SMALL, "suite=files", "evaluation.rollouts=0", "optim.steps=2", "tasks=[0,1]", "episodes=2"]


def _demonstrate(folder: Path, name: str, instruction: str) -> None:
    out = DemonstrationWriter(
        demonstration_path(folder, name), instruction=instruction, contract=libero_contract(32), suite="files"
    )
    for seed in (1, 2):
        made = recording(seed, length=14, size=32)
        out.add(dataclasses.replace(made, episode=dataclasses.replace(made.episode, ee=None)))
    out.finish([1, 2], 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    _demonstrate(folder, "a", "lift the red box")
    _demonstrate(folder, "b", "lift the green box")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    before = os.umask(0o002)
    try:
        assert main(_train(folder, data)) == 0
    finally:
        os.umask(before)
    return folder


def _train(out: Path, data: Path, *more: str) -> list[str]:
    return ["train", "--config", "config/tiny.toml", "--data", str(data), "--out", str(out), "--quiet", *OWN, *more]


def test_two_tasks_with_one_instruction_are_refused_before_training(tmp_path: Path, data: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    _demonstrate(tmp_path / "data", "c", "Lift the RED box")
    settings = load_config(RunConfig, "config/tiny.toml", [*OWN, "tasks=[0,1,2]"])
    with pytest.raises(TrainingError, match="'a' and 'c' have the instruction"):
        create_run(tmp_path / "run", settings, tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_an_extension_by_one_instruction_twice_is_refused(tmp_path: Path, finished: Path) -> None:
    for name in ("c", "d"):
        _demonstrate(tmp_path / "data", name, "lift the blue box")
    source = LifelongRun.open(finished)
    with pytest.raises(TrainingError, match="'c' and 'd' have the instruction"):
        extend_run(source, tmp_path / "more", source.config, [0, 1], tmp_path / "data")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", "..", ".x", "", "a\0b", "a\nb", "x" * 300, "é" * 150])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DemonstrationError, match="task name"):
        demonstration_path(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_the_same_command_goes_on_and_another_is_refused(
    finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = (finished / "stages" / "stage_1" / "stage.json").stat().st_mtime_ns
    assert main(_train(finished, data)) == 0
    assert "continuing the run" in capsys.readouterr().err
    assert (finished / "stages" / "stage_1" / "stage.json").stat().st_mtime_ns == stamp
    assert main(_train(finished, data, "optim.lr=1e-4")) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert main(_train(finished, finished)) == 2


#: Sizes that no machine can train with, or that one cannot.
TOO_LARGE = ("optim.batch=100000000", "network.embed=1000000000", "optim.batch=65536", "network.layers=128")


@pytest.mark.parametrize("sizes", TOO_LARGE)
def test_sizes_that_cannot_be_trained_leave_nothing(
    tmp_path: Path, data: Path, sizes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.new_run.free_bytes", lambda device: 2**20)
    assert main(_train(tmp_path / "run", data, sizes)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and sizes.partition("=")[0].partition(".")[0] in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_run_of_which_nothing_is_trained_is_begun_anew_by_another_command(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr("training.lifelong.stage.Learner.step", no_memory)
        assert main(_train(tmp_path / "run", data, "optim.batch=3")) == 2
    assert "Traceback" not in capsys.readouterr().err and not LifelongRun.begun(tmp_path / "run")
    assert main(_train(tmp_path / "run", data)) == 0
    assert LifelongRun.open(tmp_path / "run").config.optim.batch == 2
    assert main(_train(tmp_path / "run", data, "optim.batch=3")) == 2, "now there is something to lose"


@pytest.mark.parametrize("cls", [RunConfig])
def test_every_number_of_a_configuration_has_a_largest_value(cls: type[RunConfig]) -> None:
    found = []

    def look(section: object, within: str) -> None:
        assert dataclasses.is_dataclass(section)
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                look(value, f"{within}{field.name}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                found.append(f"{within}{field.name}")

    look(cls(), "")
    assert len(found) > 40
    for name in found:
        whole = load_config(cls, None, [])
        for part in name.split("."):
            whole = getattr(whole, part)
        for value in ("9000000000000000000", "-9000000000000000000") if isinstance(whole, int) else ("1e300", "-1e300"):
            with pytest.raises(ConfigError, match=re.escape(name.rpartition(".")[2])):
                load_config(cls, None, [f"{name}={value}"])
    for name in ("tasks=[9000000000000000000]", "network.channels=[9000000000,8]", "network.channels=[8,0]"):
        with pytest.raises(ConfigError, match=name.partition("=")[0]):
            load_config(cls, None, [name])


@pytest.mark.parametrize("profile", sorted(Path("config").glob("*.toml")), ids=str)
def test_the_profiles_are_within_the_bounds(profile: Path) -> None:
    load_config(RunConfig, profile, [])


@pytest.mark.parametrize("write", ["json", "tensors"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    def save(value: float) -> None:
        if write == "json":
            write_json(tmp_path / "x", {"value": value})
        else:
            save_tensors(tmp_path / "x", {"value": torch.tensor([value])})

    save(1.0)
    before = (tmp_path / "x").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            save(2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == before


def _files(folder: Path) -> list[str]:
    kinds = (
        "stages/*/candidate_*.safetensors",
        "stages/*/candidates.json",
        "bundles/*/*",
        "memory/*",
        "stages/*/episode*",
    )
    return sorted(str(path.relative_to(folder)) for kind in kinds for path in folder.glob(kind))


def test_a_finished_run_with_a_missing_file_is_not_taken_for_whole(finished: Path, tmp_path: Path) -> None:
    names = _files(finished)
    assert len(names) > 10
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        (folder / name).unlink()
        if name.endswith(("bundle.json", "bundle.json.sha256")) or "views" in name:
            continue  # a bundle without its manifest is written anew; its other files are the bundle's own test
        with pytest.raises(M2DistillError):
            finish_run(LifelongRun.open(folder), evaluate=False, quiet=True)
        shutil.rmtree(folder)


def test_files_follow_the_umask(finished: Path) -> None:
    for path in finished.rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o775 if path.is_dir() else 0o664), (path, oct(mode))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_that_is_stopped_is_saved_first(tmp_path: Path, number: signal.Signals, code: int) -> None:
    settings = dataclasses.replace(config(), optim=dataclasses.replace(config().optim, checkpoint_seconds=1e9))
    before = signal.getsignal(number)

    def train(folder: Path, stop_at: int = 0) -> dict[str, torch.Tensor]:
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        policy = ResNetT(NETWORK, CONTRACT)
        strategy = make_strategy(settings, Memory(settings.memory), CONTRACT.history)

        def listener(step: int, steps: int, terms: dict[str, float]) -> None:
            if step == stop_at:
                os.kill(os.getpid(), number)

        train_stage(policy, strategy, task_data(1), settings, 0, folder, listener, lambda candidate: None)
        return policy.state_dict()

    cut = tmp_path / "run" / "stages" / "stage_0"
    for stop_at in (4, 12):  # in the middle, and at the last step
        with pytest.raises(StoppedError) as caught:
            train(cut, stop_at)
        assert caught.value.exit_code == code and str(tmp_path / "run") in str(caught.value)
        assert read_json(cut / "partial.json")["step"] == stop_at
        assert signal.getsignal(number) is before
    whole, resumed = train(tmp_path / "whole" / "stages" / "stage_0"), train(cut)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
