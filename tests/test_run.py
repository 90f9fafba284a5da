"""The pipeline on a small scale: real demonstrations, two stages, kill -9, resume, export, report."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch
from safetensors import SafetensorError

from m2distill_policy.bundle import open_bundle
from m2distill_policy.cli import main
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import ConfigError, DemonstrationError, DivergedError, StorageError, TrainingError
from m2distill_policy.lock import only_writer
from m2distill_policy.storage import disk_full_error
from training.extension import extend_run
from training.lifelong.checkpoint import read_json
from training.lifelong.first_stage import share_first_stage
from training.lifelong.records import RunResults, SelectionRecord, read_record
from training.lifelong.run import LifelongRun
from training.lifelong.stage import end_stage
from training.lifelong.stage_bundle import export_stage
from training.lifelong.strategies import make_strategy
from training.new_run import create_run
from training.parallel_runs import Job, progress, run_jobs
from training.pipeline import finish_run
from training.regression_gate import gate
from training.report.page import distinct_labels, text_table
from training.run_config import RunConfig, first_difference

SMALL = [
    "tasks=[0,1]", "episodes=2", "image_size=32", "network.channels=[8,8]", "network.keypoints=4", "network.embed=16",
    "network.layers=1", "network.heads=2", "network.head_size=8", "network.mlp=16", "network.head_hidden=16",
    "network.modes=3", "optim.steps=30", "optim.batch=2", "optim.threads=1", "optim.checkpoint_seconds=0",
    "memory.episodes=1", "memory.replay_batch=1", "memory.instruction_batch=1", "evaluation.rollouts=1",
    "evaluation.workers=1",
]  # fmt: skip


def m2distill(*arguments: str, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "m2distill_policy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if wait:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    return process


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    m2distill(
        "demos", "--tasks", "0,1", "--episodes", "2", "--size", "32", "--workers", "1", "--out", str(folder)
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, demonstrations: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    m2distill("train", "--config", "config/tiny.toml", "--data", str(demonstrations), "--out", str(folder), *SMALL)
    return folder


def test_a_run_that_is_being_trained_is_not_gone_on_with(whole: Path) -> None:
    with only_writer(whole), pytest.raises(StorageError, match="being written by process"):
        finish_run(LifelongRun.open(whole), quiet=True)


def test_run_folder_holds_everything(whole: Path) -> None:
    results = read_record(RunResults, whole / "results.json")
    assert [len(row) for row in results.success] == [1, 2]
    assert results.errors == 0
    assert results.bytes_kept > 0
    assert set(results.drift[1][0]) == {"text", "joint_states", "gripper_states", "agentview_rgb", "eye_in_hand_rgb"}
    assert results.drift[1][0]["agentview_rgb"].l2 > 0
    assert results.drift[1][1]["agentview_rgb"].l2 == 0
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {0, 1}
    assert any("policy/old_instructions" in row for row in rows)
    assert {path.name for path in (whole / "tensorboard").iterdir()} == {"stage_0", "stage_1"}
    with pytest.raises(TrainingError, match="stages is 0; allowed are 1 to 2"):
        finish_run(LifelongRun.open(whole), stages=0)
    bundle = open_bundle(whole / "bundles" / "stage_1")
    assert bundle.instructions == ("lift the red box", "lift the green box")
    assert bundle.provenance["parity"]["largest_difference"] <= 1e-4
    assert results.config.optim.steps == 30
    run = LifelongRun.open(whole)
    assert results.data == {str(task): run.data(task).content_hash() for task in (0, 1)}


def test_a_damaged_memory_is_noticed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "memory" / "exemplars_0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"exemplars_0\.safetensors is damaged or missing; restore it"):
        LifelongRun.open(tmp_path / "run").memory(1)
    path.unlink()
    with pytest.raises(TrainingError, match="damaged or missing"):
        LifelongRun.open(tmp_path / "run").memory(1)


def test_killed_in_the_second_stage_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, whole: Path, demonstrations: Path
) -> None:
    folder = tmp_path / "cut"
    process = m2distill(
        "train", "--config", "config/tiny.toml", "--data", str(demonstrations), "--out", str(folder),
        "--no-evaluation", "--quiet", *SMALL, wait=False,
    )  # fmt: skip
    record = folder / "stages" / "stage_1" / "partial.json"
    deadline = time.monotonic() + 120
    while not record.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "stages" / "stage_1" / "stage.json").exists(), "killed too late to prove anything"
    m2distill("train", "--out", str(folder), "--resume", "--no-evaluation", "--quiet")
    a, b = (LifelongRun.open(f).policy(1).state_dict() for f in (whole, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in steps] == [(s, n) for s in (0, 1) for n in (10, 20, 30)]


def test_first_stage_is_shared_only_with_a_run_that_begins_alike(
    tmp_path: Path, whole: Path, demonstrations: Path
) -> None:
    source = LifelongRun.open(whole)
    same = load_config(RunConfig, "config/tiny.toml", [*SMALL, "strategy=er"])
    target = create_run(tmp_path / "same", same, demonstrations)
    assert share_first_stage(source, target)
    a, b = source.policy(0).state_dict(), target.policy(0).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert target.memory(1).exemplars[0].content_hash() == source.memory(1).exemplars[0].content_hash()
    other = load_config(RunConfig, "config/tiny.toml", [*SMALL, "seed=1"])
    assert not share_first_stage(source, create_run(tmp_path / "other", other, demonstrations))


def test_what_a_strategy_keeps_is_in_the_run_also_where_its_first_stage_was_shared(
    tmp_path: Path, whole: Path, demonstrations: Path
) -> None:
    ewc = load_config(RunConfig, "config/tiny.toml", [*SMALL, "strategy=ewc", "ewc.batches=3", "evaluation.rollouts=0"])
    shared = create_run(tmp_path / "shared", ewc, demonstrations)
    assert share_first_stage(LifelongRun.open(whole), shared)
    alone = create_run(tmp_path / "alone", ewc, demonstrations)
    assert finish_run(alone, quiet=True) is None
    finish_run(LifelongRun.open(shared.folder), quiet=True)
    for run in (shared, alone):
        fisher = sum(p.numel() * 4 for p in run.new_policy().parameters())
        assert read_json(run.stage_folder(1) / "stage.json")["bytes_kept"] == fisher
    a, b = alone.policy(1).state_dict(), shared.policy(1).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    held = next((alone.folder / "memory").glob("ewc_0_1.safetensors"))
    data = bytearray(held.read_bytes())
    data[-1] ^= 1
    held.write_bytes(bytes(data))
    (alone.stage_folder(1) / "stage.json").unlink()
    with pytest.raises(TrainingError, match=r"ewc_0_1\.safetensors has sha256 .* it is damaged"):
        finish_run(LifelongRun.open(alone.folder), quiet=True)


def test_all_tasks_at_once(tmp_path: Path, whole: Path, demonstrations: Path) -> None:
    joint = load_config(RunConfig, "config/tiny.toml", [*SMALL, "strategy=multitask", "optim.steps=4"])
    run = create_run(tmp_path / "joint", joint, demonstrations)
    assert not share_first_stage(LifelongRun.open(whole), run)
    results = finish_run(run, quiet=True)
    assert results is not None and [len(row) for row in results.success] == [2]
    assert results.metrics["mean_final"] == sum(rate or 0.0 for rate in results.success[0]) / 2
    assert results.metrics["nbt"] is None and results.bytes_kept == 0
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == rows[-1]["steps"] == 2 * 4
    bundle = open_bundle(run.bundle_folder(0))
    assert bundle.instructions == ("lift the red box", "lift the green box")
    assert "multitask" in text_table([results]) and "--" in text_table([results])
    assert export_stage(run, 0, tmp_path / "again").largest <= 1e-4
    m2distill("report", str(whole), str(run.folder), "--out", str(tmp_path / "report.html"))


def test_each_task_of_packnet_is_answered_by_its_own_network(tmp_path: Path, whole: Path, demonstrations: Path) -> None:
    packed = load_config(RunConfig, "config/tiny.toml", [*SMALL, "strategy=packnet", "optim.steps=4"])
    run = create_run(tmp_path / "run", packed, demonstrations)
    assert not share_first_stage(LifelongRun.open(whole), run), "its first stage prunes"
    results = finish_run(run, quiet=True)
    assert results is not None and results.metrics["nbt"] == 0 and results.bytes_kept > 0
    assert "PackNet (task identity)" in text_table([results])
    bundles = [open_bundle(run.bundle_folder(stage)) for stage in (0, 1)]
    assert [bundle.instructions for bundle in bundles] == [("lift the red box",), ("lift the green box",)]
    for stage, bundle in enumerate(bundles):
        lines = (run.folder / "evaluation" / f"stage_{stage}.jsonl").read_text().splitlines()
        asked = [(row["instruction"], row["bundle"]) for row in map(json.loads, lines)]
        assert asked == [(bundle.instructions[0], bundle.identifier)], "what it answered once is not asked again"
    assert results.cells[1][0] == results.cells[0][0]
    assert all(figures.l2 == 0 for figures in results.drift[1][0].values())
    with pytest.raises(TrainingError, match="cannot be extended from or by strategy=packnet"):
        extend_run(run, tmp_path / "more", packed, [2], demonstrations)


def test_changed_demonstrations_are_noticed(tmp_path: Path, demonstrations: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(demonstrations, copy)
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", SMALL), copy)
    run.data(0)
    first, second = (demonstration_path(copy, name) for name in ("lift_the_red_box", "lift_the_green_box"))
    with h5py.File(first, "r+") as file:
        file["data/demo_0/actions"][0, 0] = 0.123
    with pytest.raises(TrainingError, match="has changed since this run read it first"):
        LifelongRun.open(tmp_path / "run").data(0)
    shutil.copy(second, first)
    with pytest.raises(
        DemonstrationError, match="has the instruction 'lift the green box' and the task is 'lift the red box'"
    ):
        create_run(tmp_path / "other", load_config(RunConfig, "config/tiny.toml", SMALL), copy)
    assert not (tmp_path / "other").exists()
    second.unlink()
    with pytest.raises(DemonstrationError, match=r"no demonstration file at .*lift_the_green_box"):
        create_run(tmp_path / "other", load_config(RunConfig, "config/tiny.toml", ["tasks=[1,0]", *SMALL[1:]]), copy)


def test_ones_own_files_are_learned_without_a_world(tmp_path: Path, demonstrations: Path) -> None:
    for name, mine in (("lift_the_red_box", "first"), ("lift_the_green_box", "second")):
        shutil.copy(demonstration_path(demonstrations, name), demonstration_path(tmp_path, mine))
    own = [*SMALL, "suite=files", "evaluation.rollouts=0", "optim.steps=2"]
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", own), tmp_path)
    assert finish_run(run, quiet=True) is None
    bundle = open_bundle(run.bundle_folder(1))
    assert bundle.task_names == ("first", "second")
    assert bundle.instructions == ("lift the red box", "lift the green box")
    with pytest.raises(TrainingError, match=r"tasks names 2 .* holds 2 files; allowed are 0 \(first_demo.hdf5\), 1"):
        create_run(tmp_path / "x", load_config(RunConfig, "config/tiny.toml", [*own, "tasks=[2]"]), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"holds no file '<task>_demo.hdf5'"):
        create_run(tmp_path / "x", load_config(RunConfig, "config/tiny.toml", own), tmp_path / "empty")


def test_the_best_candidate_is_chosen_on_selection_states_or_it_is_the_last(
    tmp_path: Path, demonstrations: Path
) -> None:
    choices = [*SMALL, "tasks=[0]", "evaluation.candidates=2", "optim.steps=4", "strategy=ewc", "ewc.batches=2"]
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", choices), demonstrations)
    results = finish_run(run, quiet=True)
    assert results is not None and len(results.success_curves[0]) == 3
    chosen = json.loads((run.stage_folder(0) / "selection.json").read_text())
    assert (chosen["rates"], chosen["chosen"]) == ([0.0, 0.0], 1), "of equals the earliest"
    stage = json.loads((run.stage_folder(0) / "stage.json").read_text())
    assert (stage["candidate"], stage["file"]) == (1, "candidate_1.safetensors")
    logs = {path.name: path.read_text() for path in (run.folder / "evaluation").glob("*.jsonl")}
    assert {name: '"selection"' in log for name, log in logs.items()} == {
        "stage_0.jsonl": False,
        "stage_0_candidate_0.jsonl": False,
        "stage_0_selection_1.jsonl": True,
        "stage_0_selection_2.jsonl": True,
    }, "the chosen candidate is the stage's end, and what is behind it changes no figure"
    # EWC holds weights where the next stage finds them, which is not where the last step left them.
    (held,) = (run.folder / "memory").glob("ewc_*")
    assert held.name == "ewc_0_1.safetensors"
    for candidate in (1, 2):
        strategy = make_strategy(run.config, run.memory(0), run.contract.history)
        end_stage(run.candidate_policy(0, candidate), strategy, run.data(0), run.config, 0)
        alike = all(torch.equal(value, strategy.state[name]) for name, value in run.strategy_state(0).items())
        assert alike == (candidate == 1)
    latest = [*choices, "evaluation.ties=latest", "evaluation.rollouts=1"]
    last = create_run(tmp_path / "last", load_config(RunConfig, "config/tiny.toml", latest), demonstrations)
    assert finish_run(last, quiet=True) is not None
    assert read_record(SelectionRecord, last.selection_path(0)) == SelectionRecord(2, (0.0, 0.0))
    assert last.strategy_state(0) and next((last.folder / "memory").glob("ewc_*")).name == "ewc_0_2.safetensors"
    later = create_run(tmp_path / "later", load_config(RunConfig, "config/tiny.toml", choices), demonstrations)
    assert finish_run(later, quiet=True, evaluate=False) is None
    results = finish_run(LifelongRun.open(later.folder), quiet=True)
    assert results is not None
    assert read_record(SelectionRecord, later.selection_path(0)) == SelectionRecord(2, None)
    assert json.loads((later.stage_folder(0) / "stage.json").read_text())["candidate"] == 2
    assert {path.name for path in (later.folder / "evaluation").glob("*.jsonl")} == {
        "stage_0.jsonl",
        "stage_0_candidate_0.jsonl",
        "stage_0_candidate_1.jsonl",
    }


def test_epochs_make_a_stage_as_long_as_its_demonstrations(demonstrations: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "tasks=[0,1]", "evaluation.rollouts=0", "optim.epochs=0.5", "optim.first_epochs=0.75"]
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", settings), demonstrations)
    finish_run(run, quiet=True)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for stage, epochs in enumerate((0.75, 0.5)):
        wanted = round(epochs * run.data(stage).steps / (2 * run.contract.history))
        assert [(r["step"], r["steps"]) for r in rows if r["stage"] == stage][-1] == (wanted, wanted)
    assert run.data(0).steps != run.data(1).steps
    assert progress(run.folder)[0] == 1.0
    settings = [*settings, "optim.first_epochs=0.01", "evaluation.candidates=3"]
    short = create_run(tmp_path / "short", load_config(RunConfig, "config/tiny.toml", settings), demonstrations)
    with pytest.raises(TrainingError, match=r"evaluation.candidates is 3, and '\w+' is learned in 1 steps"):
        finish_run(short, quiet=True)


class _Diverges(Job):
    """A run whose loss is not finite, as its process says."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", f"import sys; sys.exit({DivergedError.exit_code})"]


def test_a_run_is_not_taken_for_one_of_another_configuration(whole: Path, demonstrations: Path, tmp_path: Path) -> None:
    same = load_config(RunConfig, "config/tiny.toml", [*SMALL, "evaluation.workers=2"])
    Job("same", whole, (), same, demonstrations).require_same()
    with pytest.raises(TrainingError, match=rf"of the demonstrations in {demonstrations}, and {tmp_path} was given"):
        Job("collected anew", whole, (), same, tmp_path).require_same()
    older = tmp_path / "older"
    older.mkdir()
    record = json.loads((whole / "run.json").read_text())
    del record["config"]["optim"]["epochs"]  # a setting that came later, at its default here
    (older / "run.json").write_text(json.dumps(record))
    Job("older", older, (), same, demonstrations).require_same()
    other = load_config(RunConfig, "config/tiny.toml", [*SMALL, "distill.image.weight=0.5"])
    with pytest.raises(TrainingError, match=r"distill.image.weight is 0.003 there and 0.5 here"):
        run_jobs([Job("other", whole, (), other, demonstrations)], 1)
    with pytest.raises(DivergedError, match="run 'far too fast' ended with code 3"):
        run_jobs([_Diverges("far too fast", tmp_path / "diverges", (), other, demonstrations)], 1)


def test_what_only_another_strategy_reads_makes_no_other_run() -> None:
    def difference(*settings: str) -> str | None:
        made, wanted = (
            to_dict(load_config(RunConfig, "config/tiny.toml", s)) for s in (settings, [*settings, "ewc.weight=7.0"])
        )
        return first_difference(made, wanted)

    assert difference("strategy=er") is None
    assert difference("strategy=ewc") == "ewc.weight is 50000.0 there and 7.0 here"
    er, held = (to_dict(load_config(RunConfig, "config/tiny.toml", [f"strategy={s}"])) for s in ("er", "m2distill"))
    assert first_difference(er, held) == "strategy is er there and m2distill here"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["memory.episodes=9", "episodes=8"], "memory.episodes is 9 and episodes is 8"),
        (["strategy=er", "memory.episodes=0"], "strategy=er replays demonstrations, and memory.episodes is 0"),
        (["seed=5000"], "seed is 5000; .*0 to 4999"),
        (["optim.steps=3", "evaluation.candidates=4"], "evaluation.candidates is 4 and optim.steps is 3"),
        (["optim.later_lr=0.0"], "optim.later_lr is 0"),
        (["suite=files"], "suite=files has no environment to roll a policy out in"),
        (["suite=libero_goal", "evaluation.rollouts=51"], "has 50 initial states: ask for at most 50"),
        (["suite=libero_goal", "evaluation.rollouts=26", "evaluation.candidates=2"], "states and half .* at most 25"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(RunConfig, "config/tiny.toml", overrides)


def test_labels_tell_runs_apart(whole: Path) -> None:
    known = read_record(RunResults, whole / "results.json")
    runs = [dataclasses.replace(known, label="er", seed=s, run=r) for s, r in ((0, "a"), (1, "b"), (1, "c"))]
    runs.append(dataclasses.replace(known, label="sequential", seed=0, run="d"))
    assert [r.label for r in distinct_labels(runs)] == ["er, seed 0", "er, seed 1, b", "er, seed 1, c", "sequential"]
    off = load_config(RunConfig, "config/tiny.toml", ["distill.image.on=false", "distill.policy.on=false"])
    assert off.strategy_class.describe(off).endswith("without image, policy")


def test_export_and_report_commands(tmp_path: Path, whole: Path) -> None:
    m2distill("export", str(whole), "--stage", "0", "--out", str(tmp_path / "bundle"))
    assert open_bundle(tmp_path / "bundle").instructions == ("lift the red box",)
    m2distill("report", str(whole), "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "lift the green box" in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--out", "x"], "--data is missing"),
        (["train", "--data", "nowhere", "--out", "x", "optim.stepz=3"], "did you mean"),
        (["train", "--data", "nowhere", "--out", "x", "tasks=[]"], "tasks is empty"),
        (["train", "--out", "nowhere", "--resume"], "is this a run folder"),
        (["export", "nowhere", "--out", "y"], "is this a run folder"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m2distill_policy", *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_several_tasks_learned_together_before_the_others_come_one_at_a_time(
    tmp_path: Path, demonstrations: Path
) -> None:
    """The protocol of M2Distill's published rows, in small: two tasks jointly, a third, and a fourth by extension."""
    m2distill("demos", "--tasks", "2,3", "--episodes", "2", "--size", "32", "--workers", "1", "--out",
              str(demonstrations))  # fmt: skip
    settings = [*SMALL, "tasks=[0,1,2]", "jointly=2", "later_episodes=1", "optim.steps=6", "evaluation.candidates=2"]
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", settings), demonstrations)
    results = finish_run(run, quiet=True)
    assert results is not None and run.stages == 2
    assert [len(row) for row in results.success] == [2, 3] and len(results.success_curves) == 2
    assert [len(row) for row in results.drift] == [1, 2]
    assert [open_bundle(run.bundle_folder(stage)).task_names for stage in (0, 1)] == [
        tuple(task.name for task in run.tasks[:2]), tuple(task.name for task in run.tasks)
    ]  # fmt: skip
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {(row["stage"], row["steps"]) for row in rows} == {(0, 12), (1, 6)}, "two tasks, twice the steps"
    assert [run.data(task).episodes for task in range(3)] == [2, 2, 1]
    assert len(run.memory(1).exemplars) == 2 and len(run.memory(2).exemplars) == 3
    assert progress(run.folder) == (1.0, progress(run.folder)[1])
    # Another strategy with the same first stage takes it, both tasks of it.
    other = [*settings, "strategy=er"]
    shared = create_run(tmp_path / "er", load_config(RunConfig, "config/tiny.toml", other), demonstrations)
    assert share_first_stage(LifelongRun.open(run.folder), shared)
    assert len(shared.memory(1).exemplars) == 2
    assert all(torch.equal(a, b) for a, b in zip(
        run.policy(0).state_dict().values(), shared.policy(0).state_dict().values(), strict=True
    ))  # fmt: skip
    more = extend_run(run, tmp_path / "more", run.config, [3], demonstrations)
    results = finish_run(more, quiet=True)
    assert results is not None and [len(row) for row in results.success] == [2, 3, 4]
    found = gate(more, 0.2)
    assert found is not None and found.tasks == tuple(task.instruction for task in run.tasks)
    (run.folder / "memory" / "exemplars_1.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"exemplars_1.safetensors is damaged"):
        run.memory(1)


def test_how_many_tasks_come_first_is_checked() -> None:
    for overrides, sentence in (
        (["jointly=0"], "jointly is 0; allowed are 1 to 2"),
        (["jointly=3"], "jointly is 3; allowed are 1 to 2"),
        (["later_episodes=-1"], "later_episodes is -1"),
        (["episodes=9", "memory.episodes=5", "later_episodes=3"], "memory.episodes is 5 and later_episodes is"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load_config(RunConfig, "config/tiny.toml", [*SMALL, *overrides])


def test_a_full_disk_is_one_sentence_and_costs_the_checkpoint_being_written_alone(
    tmp_path: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", "config/tiny.toml", "--data", str(demonstrations), "--out", str(tmp_path / "run")]
    words += [*SMALL, "tasks=[0]", "optim.steps=2", "optim.checkpoint_seconds=1e6", "evaluation.rollouts=0", "--quiet"]
    (tmp_path / "run/stages/stage_0").mkdir(parents=True)
    record = tmp_path / "run/stages/stage_0/candidates.json.tmp"
    record.symlink_to("/dev/full")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"the disk is full, so {record.with_suffix('')} cannot be written" in said and "run the same command" in said
    assert "Traceback" not in said
    record.unlink(missing_ok=True)
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--quiet"]) == 0


def test_whatever_a_library_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    said = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "disk is full" in str(disk_full_error(said, tmp_path / "x"))
    assert disk_full_error(RuntimeError("another mistake"), tmp_path / "x") is None
    assert disk_full_error(PermissionError(13, "Permission denied"), tmp_path / "x") is None
