"""The road in small: real demonstrations, two stages, kill -9, resume, export, report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import TrainingError
from training.lifelong.run import LifelongRun, share_first_stage
from training.pipeline import create_run
from training.run_config import RunConfig

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


def test_run_folder_holds_everything(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert [len(row) for row in results["success"]] == [1, 2]
    assert results["errors"] == 0
    assert results["bytes_kept"] > 0
    assert set(results["drift"][1][0]) == {"text", "joint_states", "gripper_states", "agentview_rgb", "eye_in_hand_rgb"}
    assert results["drift"][1][0]["agentview_rgb"]["l2"] > 0
    assert results["drift"][1][1]["agentview_rgb"]["l2"] == 0
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {0, 1}
    assert any("policy/old_instructions" in row for row in rows)
    assert list((whole / "tensorboard").iterdir())
    bundle = open_bundle(whole / "bundles" / "stage_1")
    assert bundle.instructions == ("lift the red box", "lift the green box")
    assert bundle.provenance["parity"]["largest_difference"] <= 1e-4
    assert results["config"]["optim"]["steps"] == 30


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


def test_changed_demonstrations_are_noticed(tmp_path: Path, demonstrations: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(demonstrations, copy)
    run = create_run(tmp_path / "run", load_config(RunConfig, "config/tiny.toml", SMALL), copy)
    run.data(0)
    names = [DemonstrationFile(f).task_name for f in sorted(copy.glob("*_demo.hdf5"))]
    first, second = (demonstration_path(copy, name) for name in ("lift_the_red_box", "lift_the_green_box"))
    assert set(names) == {"lift_the_red_box", "lift_the_green_box"}
    shutil.copy(second, first)
    with pytest.raises(TrainingError, match="has changed since this run first read it"):
        LifelongRun.open(tmp_path / "run").data(0)


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
