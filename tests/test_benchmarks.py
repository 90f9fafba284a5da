"""The benchmarks' command lines; what they measure is not timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_tabletop_plans_every_arm_and_seed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tabletop", "--plan", "--folder", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 3 * 6 and all(row[3] == "0" and row[-1] == "starting" for row in rows)
    assert [row[1] for row in rows[::6]] == ["0", "1", "2"]
    assert not list(tmp_path.iterdir()), "a plan does nothing"


def test_results_of_another_configuration_are_not_summed_up(tmp_path: Path) -> None:
    run = tmp_path / "seed_0" / "er"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": {"strategy": "er", "episodes": 3, "memory": {"episodes": 1}}}))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tabletop", "--plan", "--folder", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "holds a run under another configuration" in done.stderr
