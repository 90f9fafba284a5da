"""New tasks for a finished run: the same weights as learning all at once, without the old demonstrations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from m2distill_policy.bundle import open_bundle
from m2distill_policy.cli import main
from m2distill_policy.config import load_config, override
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import DemonstrationError, TrainingError
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from tests.test_run import SMALL, m2distill
from training.drift import run_drift
from training.extension import extend_run
from training.lifelong.checkpoint import read_json
from training.lifelong.records import EvaluationRecord, ExtensionRecord, RunResults, read_record, write_record
from training.lifelong.run import LifelongRun
from training.lifelong.stage_bundle import export_stage
from training.new_run import create_run
from training.pipeline import finish_run
from training.regression_gate import Gate, gate, publish, verdict
from training.release import ReleaseCriteria
from training.report.latents import flatten, latents
from training.results import sum_up
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
    assert code == 0, "one rollout a cell proves nothing of the gate, which has a test of its own"
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
    assert json.loads((tmp_path / "more" / "gate.json").read_text())["margin"] == 1.0


def test_the_same_extension_again_goes_on_and_another_one_is_refused(
    tmp_path: Path, first: Path, demonstrations: Path
) -> None:
    source = LifelongRun.open(first)
    made = extend_run(source, tmp_path / "more", source.config, [2], demonstrations)
    record = (made.folder / "run.json").read_bytes()
    again = extend_run(source, tmp_path / "more", source.config, [2], demonstrations)
    assert again.folder == made.folder and (made.folder / "run.json").read_bytes() == record
    with pytest.raises(TrainingError, match=r"holds another run, whose 'extends' differs"):
        extend_run(source, made.folder, source.config, [2], demonstrations, ReleaseCriteria(margin=0.5))
    (tmp_path / "notes").mkdir()
    with pytest.raises(TrainingError, match="is not a run"):
        extend_run(source, tmp_path / "notes", source.config, [2], demonstrations)


def test_a_run_folder_alone_is_enough(tmp_path: Path, first: Path) -> None:
    """Exported and summed up where its demonstrations are not to be had."""
    run = LifelongRun.open(Path(shutil.copytree(first, tmp_path / "moved")))
    for stage in range(2):
        assert export_stage(run, stage, tmp_path / f"bundle_{stage}").largest <= 1e-4
    assert sum_up(run).drift == read_record(RunResults, first / "results.json").drift


def test_the_report_shows_where_latents_went(tmp_path: Path, first: Path) -> None:
    run = LifelongRun.open(first)
    found = latents(run)
    assert list(found) == ["joint_states", "gripper_states", "agentview_rgb", "eye_in_hand_rgb"]
    for moved in found.values():
        (then, now), (last_then, last_now) = moved
        assert then.shape == now.shape and then.shape[1] == 16
        assert np.abs(then - now).max() > 0, "the first task's latents moved in the second stage"
        assert np.array_equal(last_then, last_now), "the last task's are as they were learned"
    flat = flatten(found["agentview_rgb"])
    assert all(a.shape == (len(part), 2) for pair, of in zip(flat, found["agentview_rgb"], strict=True)
               for a, part in zip(pair, of, strict=True))  # fmt: skip
    page = tmp_path / "report.html"
    assert main(["report", str(first), "--latents", "--out", str(page)]) == 0
    assert page.read_text().count("<svg") >= 4 + 4 and "t-SNE" in page.read_text()


def test_the_gate_names_what_fell_and_publishes_nothing(
    tmp_path: Path, first: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(LifelongRun.open(first).config, ["optim.steps=2"])
    watched = tmp_path / "watched"
    release = ReleaseCriteria(publish=str(watched))
    run = extend_run(LifelongRun.open(first), tmp_path / "more", config, [2], demonstrations, release)
    assert gate(run, 0.2) is None, "the new stage is not there yet"
    finish_run(run, quiet=True)
    rows = run.folder / "evaluation"
    for stage, rates in ((1, (0.9, 0.8)), (2, (0.65, 0.6))):
        cells = list(run.cells(stage) or ())
        for index, rate in enumerate(rates):
            cells[index] = dataclasses.replace(cells[index], rate=rate, successes=round(20 * rate), rollouts=20)
        write_record(rows / f"stage_{stage}.json", EvaluationRecord(tuple(cells)))
    found = gate(run, 0.2)
    assert found is not None and found.fallen == ("'lift the red box' from 0.90 to 0.65",)
    again = ["train", "--resume", "--out", str(run.folder), "--quiet"]
    assert main(again) == 1
    said = capsys.readouterr().out
    assert "rejected" in said and "'lift the red box' from 0.90 to 0.65" in said
    assert not watched.exists()
    assert main([*again, "--margin", "0.3"]) == 0, (
        "with a larger margin it is published to the folder in the run's release criteria"
    )
    assert "0.90 -> 0.65, 0.80 -> 0.60" in capsys.readouterr().out and len(list(watched.iterdir())) == 1
    assert not Gate(("a", "b"), (0.9, 0.8), (0.7, 0.6), 0.2, 20).fallen
    # One rollout that succeeded and nineteen in which the policy gave up: its rate is 1, and it is nothing to publish.
    cells[0] = dataclasses.replace(cells[0], rate=1.0, successes=1, rollouts=20, errors=19)
    write_record(rows / "stage_2.json", EvaluationRecord(tuple(cells)))
    found = gate(run, 0.2)
    assert found is not None and found.fallen == ("'lift the red box' from 0.90 to 0.05",)
    assert "(19 of them ended in an error and count as failures)" in verdict(found, tmp_path)


def test_several_extensions_together_may_not_cost_more_than_one(tmp_path: Path, first: Path) -> None:
    run = LifelongRun.open(Path(shutil.copytree(first, tmp_path / "run")))
    known = (run.cells(1) or ())[0]

    def evaluated(stage: int, rates: list[float]) -> None:
        cells = (dataclasses.replace(known, rate=r, successes=round(10 * r), rollouts=10, errors=0) for r in rates)
        write_record(run.evaluation_path(stage), EvaluationRecord(tuple(cells)))

    for stage, rates in ((0, [1.0]), (1, [0.7, 0.9]), (2, [0.6, 0.9, 1.0])):
        evaluated(stage, rates)
    run.record = dataclasses.replace(
        run.record,
        config=dataclasses.replace(run.config, tasks=(0, 1, 2)),
        tasks=(*run.tasks, run.tasks[0]),
        extends=tuple(ExtensionRecord("earlier", stages, run.config, ReleaseCriteria()) for stages in (1, 2)),
    )
    found = gate(run, 0.2)
    assert found is not None and found.before == (1.0, 0.9) and found.after == (0.6, 0.9)
    assert "'lift the red box' from 1.00 to 0.60" in verdict(found, tmp_path)


def test_another_bundle_under_that_name_is_left_alone(tmp_path: Path, first: Path) -> None:
    one, other = first / "bundles" / "stage_0", first / "bundles" / "stage_1"
    at = publish(one, tmp_path / "watched", "new")
    assert publish(one, tmp_path / "watched", "new") == at
    with pytest.raises(TrainingError, match="new is another bundle; remove it"):
        publish(other, tmp_path / "watched", "new")
    assert open_bundle(at).identifier == open_bundle(one).identifier


def test_ones_own_files_are_added_by_their_number(tmp_path: Path, demonstrations: Path) -> None:
    data = _part(demonstrations, tmp_path / "old", "lift_the_green_box", "lift_the_red_box")
    own = [*THREE, "tasks=[1]", "suite=files", "evaluation.rollouts=0", "optim.steps=2"]
    finish_run(create_run(tmp_path / "run", load_config(RunConfig, TINY, own), data), quiet=True)
    new = _part(demonstrations, tmp_path / "new", "lift_the_blue_box", "lift_the_green_box")
    source = LifelongRun.open(tmp_path / "run")
    run = extend_run(source, tmp_path / "more", source.config, [0, 1], new)
    assert [task.name for task in run.tasks] == ["lift_the_red_box", "lift_the_blue_box", "lift_the_green_box"]
    assert run.config.tasks == (1, 2, 3)
    assert finish_run(run, quiet=True) is None and gate(run, 0.2) is None
    assert open_bundle(run.bundle_folder(2)).task_names == tuple(task.name for task in run.tasks)


def test_recordings_are_learned_on_top_of_simulation(
    tmp_path: Path, first: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old tasks are still rolled out, and decide; the new one has no environment."""
    data = _part(demonstrations, tmp_path / "recordings", "lift_the_blue_box")
    words = ["train", "--extend", first, "--files", "--tasks", "0", "--data", data, "--quiet"]
    words += [
        "--out",
        tmp_path / "arm",
        "--margin",
        "1",
        "--publish",
        tmp_path / "watched",
        "evaluation.cross_instruction=1",
    ]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "old tasks before and after" in said and "'lift the blue box'" in said
    run = LifelongRun.open(tmp_path / "arm")
    assert [task.suite for task in run.tasks] == ["tabletop", "tabletop", "files"]
    assert run.config.suite == "tabletop" and run.config.tasks == (0, 1, 1000)
    results = read_json(run.folder / "results.json")
    assert [None not in row for row in results["success"]] == [True, True, False] and results["success"][2][2] is None
    assert results["metrics"]["nbt"] is None and results["metrics"]["mean_final"] is not None
    assert {cell["task"] for cell in results["cross_instruction"]} == {"lift_the_red_box", "lift_the_green_box"}
    assert read_json(run.folder / "gate.json")["tasks"] == ["lift the red box", "lift the green box"]
    assert open_bundle(tmp_path / "watched" / "arm_stage_2").instructions[2] == "lift the blue box"
    assert main(["report", str(first), str(run.folder), "--out", str(tmp_path / "report.html")]) == 0
    with pytest.raises(TrainingError, match=r"tasks names 1 and .* holds 1 files"):
        extend_run(LifelongRun.open(first), tmp_path / "x", run.config, [1], data, files=True)


def test_tasks_without_an_environment_are_published_only_on_request(
    tmp_path: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*THREE, "tasks=[0]", "suite=files", "evaluation.rollouts=0", "optim.steps=1"]
    finish_run(create_run(tmp_path / "run", load_config(RunConfig, TINY, own), demonstrations), quiet=True)
    words = ["train", "--extend", tmp_path / "run", "--tasks", "1", "--data", demonstrations, "--quiet"]
    words += ["--out", tmp_path / "more", "--publish", tmp_path / "watched"]
    assert main([str(word) for word in words]) == 2
    assert "--untested" in capsys.readouterr().err and not (tmp_path / "more").exists()
    assert main([str(word) for word in words[:-2]]) == 0
    again = ["train", "--resume", "--out", str(tmp_path / "more"), "--publish", str(tmp_path / "watched"), "--quiet"]
    assert main(again) == 1 and not (tmp_path / "watched").exists()
    assert "not published" in capsys.readouterr().out
    assert main([*again, "--untested"]) == 0
    assert "not evaluated" in capsys.readouterr().out
    assert open_bundle(tmp_path / "watched" / "more_stage_1")


@pytest.mark.parametrize(
    ("changes", "tasks", "sentence"),
    [
        ([], [1], r"has already learned 'lift the green box' \(lift_the_green_box\)"),
        (["network.embed=32"], [2], r"network.embed is 16 there and 32 here"),
        (["memory.episodes=2"], [2], r"has memory.episodes=1 and the extension asks for 2"),
        (["evaluation.candidates=2"], [2], r"candidates is 1 there and 2 here"),
        (["strategy=ewc"], [2], r"strategy=m2distill, which does not save the state that strategy=ewc needs"),
        (["strategy=multitask"], [2], r"cannot be extended from or by strategy=multitask"),
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


@pytest.mark.parametrize("strategy", ["sequential", "ewc"])
def test_demonstrations_that_were_not_kept_cannot_be_replayed(
    tmp_path: Path, demonstrations: Path, strategy: str
) -> None:
    """Distillation under old instructions still works, and so does extension with the run's own strategy."""
    bare = ["tasks=[0]", f"strategy={strategy}", "evaluation.rollouts=0", "optim.steps=1", "ewc.batches=1"]
    run = create_run(tmp_path / "run", load_config(RunConfig, TINY, [*THREE, *bare]), demonstrations)
    finish_run(run, quiet=True)
    with pytest.raises(TrainingError, match=rf"strategy={strategy} and kept no demonstrations; set memory.episodes=0"):
        extend_run(run, tmp_path / "more", override(run.config, ["strategy=m2distill"]), [1], demonstrations)
    advised = override(run.config, ["memory.episodes=0", "strategy=m2distill", "memory.instructions=true"])
    for name, config in (("words", advised), ("same", run.config)):
        more = extend_run(run, tmp_path / name, config, [1], demonstrations)
        finish_run(more, quiet=True)
        rows = [json.loads(line) for line in (more.folder / "metrics.jsonl").read_text().splitlines()]
        assert ("policy/old_instructions" in rows[-1]) == (name == "words")
        assert ("penalty" in rows[-1]) == (name == "same" and strategy == "ewc")


def test_a_run_without_samples_gets_them_once_from_its_demonstrations(tmp_path: Path, demonstrations: Path) -> None:
    bare = [*THREE, "tasks=[0]", "evaluation.rollouts=0", "optim.steps=1"]
    data = _part(demonstrations, tmp_path / "data", "lift_the_red_box")
    run = create_run(tmp_path / "run", load_config(RunConfig, TINY, bare), data)
    finish_run(run, quiet=True)
    for name in ("samples.json", "episode.safetensors", "probes.safetensors"):
        (run.stage_folder(0) / name).unlink()
    more = extend_run(run, tmp_path / "more", run.config, [1], demonstrations)
    shutil.rmtree(data)
    finish_run(more, quiet=True)
    assert len(run_drift(more)[1]) == 2 and export_stage(more, 0, tmp_path / "bundle").largest <= 1e-4
    with pytest.raises(DemonstrationError, match="no demonstration file at"):
        extend_run(LifelongRun.open(run.folder), tmp_path / "late", run.config, [1], demonstrations)
    assert not (tmp_path / "late").exists()
    probes = more.stage_folder(0) / "probes.safetensors"
    probes.write_bytes(probes.read_bytes()[:-1] + b"x")
    with pytest.raises(TrainingError, match=r"probes\.safetensors is damaged or missing; restore it"):
        run_drift(more)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--margin", "20"], "--margin is '20'; allowed are numbers from 0 to 1"),
        (["--margin", "nan"], "--margin is 'nan'"),
        (["--publish", "x", "evaluation.rollouts=0"], "evaluation.rollouts is 0"),
        (["--tasks", "green"], "--tasks is 'green'"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, first: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
    sentence: str,
) -> None:  # fmt: skip
    words = ["train", "--extend", str(first), "--tasks", "2", "--data", str(demonstrations)]
    assert main([*words, "--out", str(tmp_path / "more"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_there_is_nothing_to_let_through_where_nothing_was_extended(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "--out", str(first), "--publish", "watched"]) == 2
    assert "--publish" in capsys.readouterr().err
