"""Two processes (gloo) that share every batch end with the weights of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_run import SMALL, m2distill
from training.lifelong.run import LifelongRun

#: What every process draws by itself is switched off: dropout, and the samples of the policy term.
ALIKE = [
    *SMALL, "optim.steps=8", "optim.batch=4", "memory.replay_batch=2", "memory.instruction_batch=2",
    "optim.single_steps=0.5", "network.dropout=0", "network.drop_path=0", "distill.policy.weight=0",
    "evaluation.rollouts=0", "optim.precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    m2distill("demos", "--tasks", "0,1", "--episodes", "2", "--size", "32", "--workers", "1", "--out", str(folder))
    return folder


def _train(out: Path, demonstrations: Path, *overrides: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    words = ["train", "--config", "config/tiny.toml", "--data", str(demonstrations), "--out", str(out), "--quiet"]
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.run(
        [*start, "m2distill_policy", *words, *ALIKE, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("network.batch_norm=train", "strategy=er", "optim.recompute=true")],
    ids=["m2distill", "er recomputed"],
)
def test_two_processes_end_as_one(tmp_path: Path, demonstrations: Path, more: tuple[str, ...]) -> None:
    for processes in (1, 2):
        done = _train(tmp_path / str(processes), demonstrations, *more, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (LifelongRun.open(tmp_path / str(processes)) for processes in (1, 2))
    start = one.new_policy().state_dict()
    for stage in (0, 1):
        a, b = one.policy(stage).state_dict(), two.policy(stage).state_dict()
        moved = max(float((a[name] - start[name]).abs().max()) for name in a if a[name].is_floating_point())
        assert moved > 1e-3, "something was learned"
        # Adam divides by a gradient's size, so that rounding in a gradient near 0 becomes a part of a step.
        apart = {name: float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point()}
        assert max(apart.values()) < 0.02 * moved, max(apart.items(), key=lambda item: item[1])
    losses = [json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["total"] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert (two.bundle_folder(1) / "bundle.json").exists(), "the first process exported"
    rows = (two.folder / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == len((one.folder / "metrics.jsonl").read_text().splitlines()), "only one of them writes"


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, demonstrations: Path) -> None:
    done = _train(tmp_path / "run", demonstrations, "optim.batch=3", processes=2)
    assert done.returncode != 0
    assert "optim.batch is 3 and 2 processes share it; set a multiple of 2" in done.stderr
