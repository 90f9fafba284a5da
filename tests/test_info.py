"""``m2distill info``: every kind of file is described from a real one, and a damaged one is an error of one line."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2distill_policy import cli, provenance
from m2distill_policy.arguments import MEMORY_EPISODES
from m2distill_policy.commands.info import describe
from m2distill_policy.config import to_dict
from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import Episode, Recording, demonstration_path
from m2distill_policy.errors import M2DistillError
from m2distill_policy.evaluation.results import CellSummary, EvaluationSummary
from tests.bundles import INSTRUCTIONS, edit_manifest, observations, write_toy

CELL = CellSummary("tabletop", 0, "lift_it", "lift it", 2, 1, 1, 1.0, 0.2, 1.0, None, 30.0)
EVALUATION = EvaluationSummary(
    bundle="abc", bundle_path="/bundles/first", tasks_learned=("lift_it",), provenance={"run": "first", "stage": 1},
    sampling="mode", temperature=1.0, seed=7, visuals="fast", cells=(CELL,), curves={}, **provenance.describe(),
)  # fmt: skip


def write_demonstrations(
    folder: Path, instruction: str, *, suite: str = "files", episodes: int = 2, steps: int = 3
) -> Path:
    """Write a demonstration file; each episode is one step longer than the one before."""
    contract = dataclasses.replace(libero_contract(32), text=None)
    path = demonstration_path(folder, instruction.replace(" ", "_"))
    writer = DemonstrationWriter(
        path, instruction=instruction, contract=contract, suite=suite, env_args={"commands": "x"}
    )
    for number in range(episodes):
        seen = observations(contract, steps + number, seed=number)
        episode = Episode(
            images={name: np.stack([each.images[name] for each in seen]) for name in contract.camera_names},
            proprioception={
                group.name: np.stack([each.proprioception[group.name] for each in seen])
                for group in contract.proprioception
            },
            actions=np.zeros((len(seen), 7), dtype=np.float32),
        )
        writer.add(Recording(episode), number)
    writer.finish(list(range(episodes)), episodes + 1)
    return path


def write_bundle(folder: Path) -> Path:
    return write_toy(folder / "bundle")


def write_evaluation(folder: Path) -> Path:
    (folder / "videos").mkdir()
    (folder / "videos" / "first.mp4").touch()
    (folder / "summary.json").write_text(json.dumps(to_dict(EVALUATION)))
    return folder


def write_study(name: str, content: dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(content))
        return folder

    return write


NUMBERS = dict.fromkeys(("mean_final", "nbt", "auc", "fwt"), (0.5, None, None))
write_ablation = write_study(
    "ablation.json",
    {
        "seeds": [3],
        "arms": {"whole": {"label": "all terms", "mean_and_interval": NUMBERS, "beside_whole": NUMBERS}},
        **provenance.describe(),
    },
)
write_sweep = write_study(
    "sweep.json",
    {
        "metric": "auc",
        "trials": [{"number": 4, "value": 0.75, "settings": {"distill.samples": 2}}],
        "importance": None,
        **provenance.describe(),
    },
)


def write_run(folder: Path, *, finished: bool = True) -> Path:
    """Write the records of a run that has one stage."""
    from tests.test_records import RESULTS, RUN
    from training.lifelong.records import write_record

    write_record(folder / "run.json", RUN)
    if finished:
        write_record(folder / "results.json", RESULTS)
    return folder


def write_recording(folder: Path) -> Path:
    from rosbags.rosbag2 import StoragePlugin

    from tests.test_recordings import teleoperation

    return teleoperation(steps=4).write(folder / "bag", StoragePlugin.MCAP)


def facts_of(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], list[str]]:
    """Return what ``info --json`` prints, and the words of the command that ``info`` names next."""
    assert cli.main(["info", str(path), "--json", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert cli.main(["info", str(path), *words]) == 0
    shown = capsys.readouterr()
    for label, value in facts.items():
        assert label in shown.out
        for line in [value] if isinstance(value, str) else value:
            assert line.rstrip() in shown.out
    (line,) = [line for line in shown.err.splitlines() if line.startswith("next: ")]
    return facts, shlex.split(line.removeprefix("next: "))


def parses(words: Sequence[str]) -> Any:
    """Parse a command line with the parser of its command."""
    assert words[0] == "m2distill"
    parser = cli._parser(words[1])[1]
    assert parser is not None
    return parser.parse_in_any_order(list(words[2:]))


def test_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bundle(tmp_path)
    edit_manifest(path, lambda m: m["provenance"].update(strategy="er", stage=1, metrics={"success": [0.25, None]}))
    facts, following = facts_of(path, capsys)
    assert facts["what"].startswith("bundle ") and facts["signed"] == "no"
    assert facts["made from"] == "stage 1 of run toy, strategy er, seed 0"
    assert facts["tasks"] == [f"0  {INSTRUCTIONS[0]}  (success 0.25)", f"1  {INSTRUCTIONS[1]}"]
    assert "32 x 32" in facts["cameras"] and "20 Hz" in facts["cameras"]
    assert parses(following).instruction == INSTRUCTIONS[0]


def test_a_signed_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, key = write_bundle(tmp_path), tmp_path / "key.pem"
    assert cli.main(["sign", "--new-key", str(key)]) == 0
    assert cli.main(["sign", str(path), "--key", str(key)]) == 0
    capsys.readouterr()
    facts, _ = facts_of(path, capsys)
    assert facts["signed"].startswith("yes") and f"m2distill sign {path} --verify" in facts["signed"]


@pytest.mark.role("train")
def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_records import RUN

    facts, following = facts_of(write_run(tmp_path), capsys)
    assert "strategy ewc, seed 0" in facts["what"] and RUN.demonstrations in facts["made from"]
    assert facts["tasks"] == ["0  lift it  (success 1.00)"]
    assert facts["extends"] == "old (2 stages)"
    assert facts["metrics"] == "auc 0.50" and facts["measured on"] == "2 rollouts for each task, sampling mode"
    assert facts["commit"] == RUN.commit and facts["time"] == RUN.time and RUN.versions["numpy"] in facts["versions"]
    assert following == ["m2distill", "report", str(tmp_path)]


@pytest.mark.role("train")
def test_a_run_that_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.lifelong.records import EvaluationRecord, StageRecord, write_record

    write_run(tmp_path, finished=False)
    facts, following = facts_of(tmp_path, capsys)
    assert facts["stages"].startswith("0 of ") and facts["bundles"] == []
    assert facts["tasks"] == ["0  lift it"]
    assert parses(following).resume and parses(following).out == tmp_path
    for folder in ("stages/stage_0", "evaluation", "bundles/stage_0"):
        (tmp_path / folder).mkdir(parents=True)
    write_record(tmp_path / "stages/stage_0/stage.json", StageRecord("a", "b", 1, 100))
    write_record(tmp_path / "evaluation/stage_0.json", EvaluationRecord((CELL,)))
    facts, _ = facts_of(tmp_path, capsys)
    assert facts["stages"].startswith("1 of ") and facts["tasks"] == ["0  lift it  (success 1.00)"]
    assert facts["bundles"] == [str(tmp_path / "bundles/stage_0")]


@pytest.mark.role("train")
@pytest.mark.parametrize(("suite", "number"), [("tabletop", 1), ("files", 0)])
def test_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str], suite: str, number: int) -> None:
    from m2distill_policy.config import load_config
    from training.run_config import RunConfig

    path = write_demonstrations(tmp_path, "lift the green box", suite=suite)
    for given in (path, tmp_path):
        facts, following = facts_of(given, capsys)
        assert "32 x 32" in facts["cameras"]
        args = parses(following)
        assert args.data == tmp_path
        config = load_config(RunConfig, args.config, args.overrides)  # raises where the command could not run
        assert (config.suite, config.tasks, config.episodes) == (suite, (number,), 2)
        assert config.image_size == 32 and config.memory.episodes <= 2
    assert facts["files"] == ["lift_the_green_box_demo.hdf5: 2 episodes, 'lift the green box'"]
    facts, _ = facts_of(path, capsys)
    assert facts["instruction"] == "lift the green box" and facts["made from"] == suite
    assert facts["episodes"] == "2 of 3 attempts, 3 to 4 steps" and facts["settings"] == ["commands: x"]


@pytest.mark.role("train")
@pytest.mark.parametrize("profile", ["tiny", "libero_small"])
def test_the_suggested_memory_is_that_of_the_profiles(profile: str) -> None:
    from m2distill_policy.arguments import training_config
    from m2distill_policy.config import load_config
    from training.run_config import RunConfig

    assert load_config(RunConfig, training_config(profile)).memory.episodes == MEMORY_EPISODES


@pytest.mark.role("train")
def test_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recording(tmp_path)
    for given in (path, next(path.glob("*.mcap"))):
        facts, following = facts_of(given, capsys)
        assert facts["what"] == "rosbag2 recording"
        (joints,) = [line.split() for line in facts["topics"] if line.startswith("/joint_states ")]
        assert joints == ["/joint_states", "sensor_msgs/msg/JointState", "75"]
        assert parses(following).bags == [given]


def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, following = facts_of(write_evaluation(tmp_path), capsys)
    assert "/bundles/first" in facts["what"] and facts["made from"] == "stage 1 of run first"
    assert facts["sampling"] == "mode, seed 7" and re.search(r"1\.00 \(1/1\)", facts["success"][1])
    assert facts["videos"] == [str(tmp_path / "videos" / "first.mp4")] and facts["commit"] == EVALUATION.commit
    assert parses(following).bundle == Path("/bundles/first")


@pytest.mark.role("train")
def test_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, write, shown in (("a", write_ablation, "all terms"), ("s", write_sweep, "distill.samples=2")):
        folder = tmp_path / name
        (folder / "seed_3" / "one").mkdir(parents=True)
        (folder / "seed_3" / "one" / "run.json").touch()
        facts, following = facts_of(write(folder), capsys)
        assert shown in facts["result"][1] and facts["runs"] == [str(folder / "seed_3" / "one")]
        assert parses(following).runs == [folder / "seed_3" / "one"]


def spoil(path: Path) -> Path:
    """Cut a file in half and change a byte; return its folder."""
    data = bytearray(path.read_bytes())
    data = data[: len(data) // 2]
    data[len(data) // 2] ^= 0xFF
    return replace(path, bytes(data))


def edit(path: Path, **changes: Any) -> Path:
    """Change keys of a JSON file; return its folder."""
    return replace(path, json.dumps({**json.loads(path.read_text()), **changes}).encode())


def replace(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path.parent


def mcap(folder: Path) -> Path:
    return next(folder.glob("*.mcap"))


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "bundle": lambda p: spoil(write_bundle(p) / "step.onnx"),
    "manifest": lambda p: spoil(write_bundle(p) / "bundle.json"),
    "run": lambda p: spoil(write_run(p) / "run.json"),
    "run of another format": lambda p: edit(write_run(p) / "run.json", format=1),
    "strategy of one's own": lambda p: edit(write_run(p) / "run.json", config={"strategy": "mine"}),
    "results": lambda p: edit(write_run(p) / "results.json", success="high"),
    "demonstrations": lambda p: spoil(write_demonstrations(p, "lift it")) / "lift_it_demo.hdf5",
    "folder of demonstrations": lambda p: spoil(write_demonstrations(p, "lift it")),
    "no HDF5": lambda p: replace(p / "x.hdf5", b"text") / "x.hdf5",
    "recording": lambda p: spoil(mcap(write_recording(p))),
    "recording's metadata": lambda p: replace(write_recording(p) / "metadata.yaml", b"- 1"),
    "evaluation": lambda p: spoil(write_evaluation(p) / "summary.json"),
    "evaluation without cells": lambda p: edit(write_evaluation(p) / "summary.json", cells=[{"suite": 1}]),
    "evaluation of another kind": lambda p: replace(p / "summary.json", b"[]"),
    "ablation": lambda p: edit(write_ablation(p) / "ablation.json", arms={"whole": 3}),
    "sweep": lambda p: edit(write_sweep(p) / "sweep.json", trials=[{}]),
}


@pytest.mark.role("train")
@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DAMAGED[case](tmp_path)
    assert cli.main(["info", str(path)]) == 2
    said = capsys.readouterr()
    assert not said.out
    (line,) = said.err.splitlines()
    assert line.startswith("m2distill: ") and str(tmp_path) in line


def test_what_is_unknown_is_one_line_that_says_what_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "none", tmp_path / "notes.txt", tmp_path):
        assert cli.main(["info", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"'{path}'" in line and "a run, a bundle" in line
    shutil.move(write_bundle(tmp_path), tmp_path / "other")
    with pytest.raises(M2DistillError, match=re.escape(f"inside it are: {tmp_path / 'other'}")):
        describe(tmp_path)
