"""Where a ROS 2 lies under /opt/ros and is not sourced, everything that needs it runs in a process where it is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "test_ros_node.py",
    "test_ros_arm.py",
    "test_ros_launch.py",
    *sorted(p.name for p in ROOT.glob("tests/test_behaviour_*.py")),
)


def _found() -> Path:
    """The newest distribution that is there; skips, with the reason, where nothing can be run."""
    if importlib.util.find_spec("rclpy") is not None:
        pytest.skip("ROS 2 is sourced: its tests run by themselves")
    distributions = sorted(path.parent for path in Path("/opt/ros").glob("*/setup.bash"))
    if not distributions:
        pytest.skip("no ROS 2 is sourced, and none lies under /opt/ros")
    newest = distributions[-1]
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (newest / "lib" / here / "site-packages").is_dir():
        theirs = ", ".join(sorted(path.name for path in (newest / "lib").glob("python3.*"))) or "no Python"
        pytest.skip(f"{newest} is made for {theirs}, and these tests run under {here}: make venv PYTHON={theirs}")
    return newest


def _sourced(distribution: Path, more: str, command: str) -> list[str]:
    return ["bash", "-c", f". {distribution}/setup.bash && {more} {command}"]


def test_with_the_ros_2_that_lies_here(tmp_path: Path) -> None:
    """Builds ros2_ws beside it, then runs the tests that need ROS 2, with both."""
    distribution = _found()
    apart = ("PYTHONPATH", "AMENT_PREFIX_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in apart}
    colcon = subprocess.run(_sourced(distribution, "", "command -v colcon"), env=environment, check=False)
    if colcon.returncode != 0:
        pytest.skip(f"{distribution} is there, but not colcon, which builds ros2_ws: install it")
    build = (
        f"cd {tmp_path} && colcon --log-base log build --base-paths {ROOT} {ROOT}/ros2_ws/src "
        f"--packages-select m2distill_msgs m2distill_policy "
        f"--cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE={sys.executable}"
    )
    built = subprocess.run(
        _sourced(distribution, "", build), env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    tests = " ".join(f"tests/{name}" for name in TESTS)
    run = f"cd {ROOT} && {sys.executable} -m pytest -q -p no:cacheprovider {tests}"
    done = subprocess.run(
        _sourced(distribution, f". {tmp_path}/install/local_setup.bash &&", run),
        env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    print(done.stdout[-2000:])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-500:]
