"""Where there is no ROS 2 for the tests, that is said in one line, and the other tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: scripts/ros_env.sh: no ROS 2 for this machine.
NOTHING_HERE = 75


def _run(script: str, folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("AMENT_PREFIX_PATH", "CI")}
    order = [sys.executable, folder] if script == "test.sh" else [folder, sys.executable]
    return subprocess.run(
        ["bash", f"scripts/{script}", *map(str, order), *map(str, words)],
        cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A PATH on which this machine is one that the wheels are not made for."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uname").write_text("#!/bin/sh\necho Linux aarch64\n")
    (tmp_path / "bin" / "uname").chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def test_a_machine_without_wheels_is_told_so(tmp_path: Path, foreign: str) -> None:
    done = _run("ros_env.sh", tmp_path / "ros", PATH=foreign)
    assert (done.returncode, done.stdout) == (NOTHING_HERE, "")
    assert done.stderr.splitlines() == [
        "no ROS 2 for the tests: its wheels are for x86_64 Linux, and this is Linux aarch64"
    ]
    assert not (tmp_path / "ros").exists()


def test_a_sourced_ros_2_of_another_python_is_not_replaced_by_wheels(tmp_path: Path) -> None:
    if "AMENT_PREFIX_PATH" in os.environ:
        pytest.skip("ROS 2 is sourced")
    done = _run("ros_env.sh", tmp_path / "ros", AMENT_PREFIX_PATH="/opt/ros/none", ROS_DISTRO="jazzy")
    assert done.returncode == NOTHING_HERE
    assert "(jazzy) is not made for Python" in done.stderr
    assert not (tmp_path / "ros").exists()


def test_the_other_tests_run_without_ros_2(tmp_path: Path, foreign: str) -> None:
    words = ["-q", "-p", "no:cacheprovider", "tests/test_status_table.py"]
    done = _run("test.sh", tmp_path / "ros", *words, PATH=foreign)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("skipped: the tests that need ROS 2 (no ROS 2 for the tests: its wheels are for x86_64")
    assert "1 passed in" in lines[-1]


def test_a_failure_of_either_run_is_one_of_all(tmp_path: Path, foreign: str) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_wrong() -> None:\n    assert 1 == 2\n")
    words = ["-q", "-p", "no:cacheprovider", "-p", "tests.conftest", tmp_path / "test_wrong.py"]
    done = _run("test.sh", tmp_path / "ros", *words, PATH=foreign)
    assert done.returncode == 1
    assert "1 failed in" in done.stdout.splitlines()[-1]
