"""If a ROS 2 under /opt/ros is not sourced, everything that needs it runs in a process that has sourced it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Where all tests have run on ROS 2's wheels: those that show that the node works here, and ``ros2 launch``.
ALWAYS = ("test_ros_node.py", "test_ros_arm.py", "test_ros_launch.py")
TESTS = ALWAYS if os.environ.get("M2DISTILL_ROS_TESTED") else tuple(
    sorted(p.name for pattern in ("test_ros_*.py", "test_behaviour_*.py") for p in ROOT.glob(f"tests/{pattern}")
           if p != Path(__file__).resolve())
)  # fmt: skip
#: What the node and its tests import of a ROS 2, beyond what comes with rclpy.
MODULES = (
    "rclpy",
    "ament_index_python",
    "control_msgs.action",
    "diagnostic_msgs.msg",
    "launch_ros",
    "ros2launch",
    "tf2_ros",
    "visualization_msgs.msg",
)
HERE = f"python{sys.version_info.major}.{sys.version_info.minor}"


def _sourced(
    distribution: Path,
    command: Sequence[object],
    *more: Path,
    cwd: Path = ROOT,
    timeout: float = 300,
    home: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that has sourced ``distribution``, and ``more`` setup files after it."""
    apart = ("PYTHONPATH", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "LD_LIBRARY_PATH")
    setups = " && ".join(f". {shlex.quote(str(file))}" for file in (distribution / "setup.bash", *more))
    variables = {name: value for name, value in os.environ.items() if name not in apart}
    if home is not None:
        variables["HOME"] = str(home)
    return subprocess.run(
        ["bash", "-c", f"{setups} && {shlex.join(str(word) for word in command)}"],
        env=variables,
        cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def _found(root: Path) -> Path:
    """Return the newest distribution under ``root`` that can be loaded; skip the test, naming what is missing."""
    distributions = sorted(path.parent for path in root.glob("*/setup.bash"))
    if not distributions:
        pytest.skip(f"no ROS 2 is sourced, and none lies under {root}")
    newest = distributions[-1]
    if not (newest / "lib" / HERE / "site-packages").is_dir():
        theirs = ", ".join(sorted(path.name for path in (newest / "lib").glob("python3.*"))) or "no Python"
        pytest.skip(f"{newest} is made for {theirs}, and these tests run under {HERE}: make venv PYTHON={theirs}")
    missing = {module: _last(done) for module in MODULES if (done := _import(newest, module)).returncode != 0}
    if missing:
        reasons = "; ".join(f"{module} ({reason})" for module, reason in missing.items())
        pytest.skip(f"{newest} cannot run these tests: not importable under {HERE}: {reasons}")
    if _sourced(newest, ["command", "-v", "colcon"]).returncode != 0:
        pytest.skip(f"{newest} is there, but not colcon, which builds ros2_ws: install it")
    return newest


def _import(distribution: Path, module: str) -> subprocess.CompletedProcess[str]:
    return _sourced(distribution, [sys.executable, "-c", f"import {module}"])


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line with the error: Python's last error, or the last line."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line and line.split("Error:")[0].isidentifier()]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]


def _build(
    distribution: Path, folder: Path, base_paths: Sequence[Path], packages: Sequence[str], python: object
) -> subprocess.CompletedProcess[str]:
    words = ["colcon", "--log-base", folder / "log", "build", "--base-paths", *base_paths]
    words += ["--packages-select", *packages]
    words += ["--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={python}"]
    folder.mkdir(exist_ok=True)
    # What colcon installs is started by colcon's own Python otherwise, which may lack what a policy needs.
    (folder / ".pydistutils.cfg").write_text(f"[build_scripts]\nexecutable = {sys.executable}\n")
    return _sourced(distribution, words, cwd=folder, timeout=900, home=folder)


def _generating_python(distribution: Path, folder: Path) -> str:
    """A Python of this version with which the distribution's generators can build a message; skips where there is none.

    They need packages (empy, lark, catkin_pkg, NumPy's headers) that the project's environment lacks, and that the
    system's Python mostly has. What has one field is built, so that a failure says nothing about this project.
    """
    package = folder / "probe_msgs"
    (package / "msg").mkdir(parents=True)
    (package / "msg" / "Probe.msg").write_text("bool works\n")
    messages = ROOT / "ros2_ws" / "src" / "m2distill_msgs"
    (package / "package.xml").write_text((messages / "package.xml").read_text().replace("m2distill_msgs", "probe_msgs"))
    (package / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(probe_msgs)\nfind_package(ament_cmake REQUIRED)\n"
        "find_package(rosidl_default_generators REQUIRED)\n"
        'rosidl_generate_interfaces(probe_msgs "msg/Probe.msg")\nament_package()\n'
    )
    reasons = []
    for number, python in enumerate([sys.executable, f"/usr/bin/{HERE}"]):
        if not Path(python).exists():
            continue
        built = _build(distribution, folder / f"probe-{number}", [package], ["probe_msgs"], python)
        if built.returncode == 0:
            return python
        reasons.append(f"{python}: {_last(built)}")
    pytest.skip(f"the message generators of {distribution} do not work here: {'; '.join(reasons)}")


def test_with_the_installed_ros_2(tmp_path: Path) -> None:
    """Build ros2_ws in a copy, then run the tests that need ROS 2 with both."""
    if importlib.util.find_spec("rclpy") is not None:
        pytest.skip("ROS 2 is sourced: its tests run by themselves")
    _run_on(Path("/opt/ros"), tmp_path)


def _run_on(root: Path, folder: Path) -> None:
    distribution = _found(root)
    python = _generating_python(distribution, folder)
    packages = ["m2distill_msgs", "m2distill_policy"]
    built = _build(distribution, folder / "workspace", [ROOT, ROOT / "ros2_ws" / "src"], packages, python)
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in TESTS)]
    done = _sourced(distribution, words, folder / "workspace" / "install" / "local_setup.bash", timeout=1800)
    print(done.stdout[-2000:])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-500:]


# --- a ROS 2 that is there and does not work ------------------------------------------------------------------------


def _prefix(root: Path, modules: Sequence[str], colcon: str | None) -> Path:
    """Make a folder that looks like a sourced ROS 2: empty Python modules, and optionally a ``colcon``."""
    distribution = root / "jazzy"
    site = distribution / "lib" / HERE / "site-packages"
    for module in modules:
        folder = site.joinpath(*module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (folder, *folder.parents):
            if parent == site:
                break
            (parent / "__init__.py").touch()
    site.mkdir(parents=True, exist_ok=True)
    (distribution / "bin").mkdir()
    variables = {"PYTHONPATH": site, "PATH": f"{distribution}/bin:$PATH", "AMENT_PREFIX_PATH": distribution}
    (distribution / "setup.bash").write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
    if colcon is not None:
        (distribution / "bin" / "colcon").write_text(f"#!/bin/sh\n{colcon}\n")
        (distribution / "bin" / "colcon").chmod(0o755)
    return distribution


#: A colcon whose generators lack a package.
LACKING = """echo Traceback >&2; echo "ModuleNotFoundError: No module named 'em'" >&2; exit 1"""


@pytest.mark.parametrize(
    ("modules", "colcon", "reason"),
    [
        ((), None, r"rclpy \(ModuleNotFoundError: No module named 'rclpy'\)"),
        ([m for m in MODULES if not m.startswith("control")], "exit 0", r"control_msgs.action \(ModuleNotFoundError"),
        (MODULES, LACKING, r"generators .* do not work here: .*ModuleNotFoundError: No module named 'em'"),
    ],
    ids=["without rclpy", "without control_msgs", "generators without their packages"],
)
def test_a_ros_2_that_cannot_be_used_is_skipped_with_what_it_lacks(
    tmp_path: Path, modules: Sequence[str], colcon: str | None, reason: str
) -> None:
    _prefix(tmp_path / "ros", modules, colcon)
    with pytest.raises(pytest.skip.Exception, match=reason):
        _run_on(tmp_path / "ros", tmp_path)


def test_a_workspace_that_a_working_ros_2_cannot_build_is_a_failure(tmp_path: Path) -> None:
    """The check for a usable ROS 2 must not hide an error of this project."""
    _prefix(tmp_path / "ros", MODULES, 'case "$*" in *probe_msgs*) exit 0;; *) echo "no such message"; exit 1;; esac')
    with pytest.raises(AssertionError, match="no such message"):
        _run_on(tmp_path / "ros", tmp_path)
