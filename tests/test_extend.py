"""New tasks for a finished run: the same weights as learning all at once, without the old demonstrations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from m2distill_policy.bundle import open_bundle
from m2distill_policy.cli import main
from m2distill_policy.config import load_config, override
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import TrainingError
from m2distill_policy.runtime.watcher import FolderWatcher
from tests.test_run import SMALL, m2distill
from training.extend import extend_run
from training.gate import Gate, gate, publish, require_passed
from training.lifelong.run import LifelongRun
from training.pipeline import create_run, finish_run, sum_up
from training.run_config import RunConfig

TINY = "config/tiny.toml"
THREE = [*SMALL, "optim.steps=6"]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    m2distill("demos", "--tasks", "0,1,2", "--episodes", "2", "--size", "32", "--workers", "1", "--out", str(folder))
    return folder


def _part(demonstrations: Path, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(demonstration_path(demonstrations, name), folder)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, demonstrations: Path) -> Path:
    """A finished run of two tasks, whose demonstrations are gone."""
    at = tmp_path_factory.mktemp("first")
    data = _part(demonstrations, at / "data", "lift_the_red_box", "lift_the_green_box")
    finish_run(create_run(at / "run", load_config(RunConfig, TINY, THREE), data), quiet=True)
    shutil.rmtree(data)
    return at / "run"


def test_extended_it_ends_as_if_it_had_learned_all_at_once(tmp_path: Path, first: Path, demonstrations: Path) -> None:
    data = _part(demonstrations, tmp_path / "data", "lift_the_blue_box")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    watched = tmp_path / "watched"
    watched.mkdir()
    seen: list[Path] = []
    watcher = FolderWatcher(watched, seen.append)
    code = main(
        ["train", "--extend", str(first), "--tasks", "2", "--data", str(data), "--out", str(tmp_path / "more"),
         "--quiet", "--publish", str(watched), "--margin", "1.0"]
    )  # fmt: skip
    assert code == 0
    whole = create_run(
        tmp_path / "whole", load_config(RunConfig, TINY, [*THREE, "tasks=[0,1,2]", "evaluation.rollouts=0"]),
        demonstrations,
    )  # fmt: skip
    finish_run(whole, quiet=True)
    more = LifelongRun.open(tmp_path / "more")
    a, b = more.policy(2).state_dict(), whole.policy(2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before, "the old run stays"

    results = json.loads((tmp_path / "more" / "results.json").read_text())
    assert [len(row) for row in results["success"]] == [1, 2, 3]
    assert len(results["drift"][2]) == 3
    (found,) = watched.iterdir()
    bundle = open_bundle(found)
    assert bundle.instructions == ("lift the red box", "lift the green box", "lift the blue box")
    assert bundle.provenance["stage"] == 2
    assert watcher.poll() == found and seen == [found]
    assert json.loads((tmp_path / "more" / "gate.json").read_text())["fallen"] == []


def test_a_run_folder_alone_is_enough(tmp_path: Path, first: Path) -> None:
    """Exported and summed up where its demonstrations are not to be had."""
    run = LifelongRun.open(Path(shutil.copytree(first, tmp_path / "moved")))
    for stage in range(2):
        assert run.export(stage, tmp_path / f"bundle_{stage}").largest <= 1e-4
    assert sum_up(run)["drift"] == json.loads((first / "results.json").read_text())["drift"]


def test_the_gate_names_what_fell_and_publishes_nothing(
    tmp_path: Path, first: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(LifelongRun.open(first).config, ["optim.steps=2"])
    run = extend_run(LifelongRun.open(first), tmp_path / "more", config, [2], demonstrations)
    assert gate(run, 0.2) is None, "the new stage is not there yet"
    finish_run(run, quiet=True)
    rows = run.folder / "evaluation"
    for stage, rates in ((1, (0.9, 0.8)), (2, (0.65, 0.6))):
        cells = json.loads((rows / f"stage_{stage}.json").read_text())
        for cell, rate in zip(cells, rates, strict=False):
            cell["rate"] = rate
        (rows / f"stage_{stage}.json").write_text(json.dumps(cells))
    found = gate(run, 0.2)
    assert found is not None and found.fallen == ("'lift the red box' from 0.90 to 0.65",)
    code = main(["train", "--resume", "--out", str(run.folder), "--quiet", "--publish", str(tmp_path / "watched")])
    said = capsys.readouterr().err
    assert code == 2 and "fell by more than 0.2 over 1 rollouts on 'lift the red box' from 0.90 to 0.65" in said
    assert not (tmp_path / "watched").exists()
    require_passed(Gate(("a", "b"), (0.9, 0.8), (0.7, 0.6), 0.2, 20), tmp_path)


def test_another_bundle_under_that_name_is_left_alone(tmp_path: Path, first: Path) -> None:
    one, other = first / "bundles" / "stage_0", first / "bundles" / "stage_1"
    at = publish(one, tmp_path / "watched", "new")
    assert publish(one, tmp_path / "watched", "new") == at
    with pytest.raises(TrainingError, match="new is another bundle; move it away"):
        publish(other, tmp_path / "watched", "new")
    assert open_bundle(at).identifier == open_bundle(one).identifier


def test_ones_own_files_are_added_by_their_number(tmp_path: Path, demonstrations: Path) -> None:
    data = _part(demonstrations, tmp_path / "old", "lift_the_red_box")
    own = [*THREE, "tasks=[0]", "suite=files", "evaluation.rollouts=0", "optim.steps=2"]
    finish_run(create_run(tmp_path / "run", load_config(RunConfig, TINY, own), data), quiet=True)
    new = _part(demonstrations, tmp_path / "new", "lift_the_blue_box", "lift_the_green_box")
    source = LifelongRun.open(tmp_path / "run")
    run = extend_run(source, tmp_path / "more", source.config, [0, 1], new)
    assert [task.name for task in run.tasks] == ["lift_the_red_box", "lift_the_blue_box", "lift_the_green_box"]
    assert run.config.tasks == (0, 1, 2)
    assert finish_run(run, quiet=True) is None and gate(run, 0.2) is None
    assert open_bundle(run.bundle_folder(2)).task_names == tuple(task.name for task in run.tasks)


@pytest.mark.parametrize(
    ("changes", "tasks", "sentence"),
    [
        ([], [1], r"has learned 'lift the green box' \(lift_the_green_box\) already; name tasks that are new"),
        (["network.embed=32"], [2], r"under another setting: network.embed is 16 there and 32 here; leave it as it is"),
        (["memory.episodes=2"], [2], r"memory.episodes is 1 there and 2 here"),
        (["seed=3"], [2], r"seed is 0 there and 3 here"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, first: Path, demonstrations: Path, changes: list[str], tasks: list[int], sentence: str
) -> None:
    source = LifelongRun.open(first)
    with pytest.raises(TrainingError, match=sentence):
        extend_run(source, tmp_path / "more", override(source.config, changes), tasks, demonstrations)
    assert not any(tmp_path.iterdir())


def test_an_unfinished_run_is_not_extended(tmp_path: Path, demonstrations: Path) -> None:
    run = create_run(tmp_path / "run", load_config(RunConfig, TINY, THREE), demonstrations)
    with pytest.raises(TrainingError, match="has not learned 'lift the red box' yet; finish it with"):
        extend_run(run, tmp_path / "more", run.config, [2], demonstrations)


def test_demonstrations_that_were_not_kept_cannot_be_replayed(tmp_path: Path, demonstrations: Path) -> None:
    bare = [*THREE, "tasks=[0]", "strategy=sequential", "evaluation.rollouts=0", "optim.steps=1"]
    run = create_run(tmp_path / "run", load_config(RunConfig, TINY, bare), demonstrations)
    finish_run(run, quiet=True)
    with pytest.raises(TrainingError, match=r"strategy=sequential and kept no demonstrations; set memory.episodes=0"):
        extend_run(run, tmp_path / "more", override(run.config, ["strategy=m2distill"]), [1], demonstrations)
