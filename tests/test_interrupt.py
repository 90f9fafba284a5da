"""Ctrl-C: training saves what it has learned, and the printed line continues the run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_info import write_demonstrations
from tests.test_run import SMALL

pytestmark = pytest.mark.role("train")

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_the_line_that_ctrl_c_prints_finishes_the_run(tmp_path: Path) -> None:
    data, out = tmp_path / "my data", tmp_path / "run"
    for instruction in ("lift it", "put it down"):
        write_demonstrations(data, instruction, steps=15)
    words = ["train", "--config", "tiny", "--data", data.name, *SMALL, "--out", out.name]
    words += ["suite=files", "evaluation.rollouts=0", "optim.steps=60"]
    command = [sys.executable, "-m", "m2distill_policy", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (out / "stages" / "stage_0" / "partial.json").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert not (out / "stages" / "stage_1" / "stage.json").exists(), "it was not stopped"
    line = said.splitlines()[-1]
    found = re.fullmatch("finished work is kept; to continue: (.+)", line)
    assert found is not None and "Traceback" not in said, said
    assert shlex.split(found.group(1)) == command
    done = subprocess.run(
        found.group(1),
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in range(2):
        assert (out / "stages" / f"stage_{stage}" / "stage.json").is_file()
        assert (out / "bundles" / f"stage_{stage}" / "bundle.json").is_file()
    assert f"next: {sys.executable} -m m2distill_policy info run" in done.stderr
    assert "tensorboard --logdir run/tensorboard" in done.stdout
