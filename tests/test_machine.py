"""What a machine with several users, a read-only installation or other versions of packages does to the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from m2distill_policy import doctor, installation, pins
from m2distill_policy.dds import domain
from m2distill_policy.sim import library_settings

ROOT = Path(__file__).parents[1]


def run_python(code: str, home: Path, **environment: str) -> str:
    """Run Python code in a process of its own with an empty home; returns its output."""
    names = ("PATH", "MUJOCO_GL", "PYOPENGL_PLATFORM", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: Whatever is imported first of this project, onnxruntime is imported after it.
IMPORTS = (
    "m2distill_policy.runtime.engine",
    pytest.param("training.graph_runner", marks=pytest.mark.role("train")),
    pytest.param("benchmarks.policy_latency", marks=pytest.mark.role("train")),
    "m2distill_policy.doctor",
)


@pytest.mark.parametrize("module", IMPORTS)
def test_onnxruntime_leaves_no_device_id_in_any_process(module: str, tmp_path: Path) -> None:
    child = "import onnxruntime, time; onnxruntime.SessionOptions(); time.sleep(0.2)"
    run_python(
        f"import {module}, onnxruntime, subprocess, sys, time\n"
        "time.sleep(0.2)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)",
        tmp_path,
        M2DISTILL_CACHE=str(tmp_path / "ours"),
    )
    written = [path for path in tmp_path.rglob("*") if "Microsoft" in str(path) or "deviceid" in path.name]
    assert not written


def test_a_process_that_imports_onnxruntime_alone_shows_what_is_switched_off(tmp_path: Path) -> None:
    """Tells when a release of onnxruntime no longer does it, so that the test above proves something."""
    if tuple(int(part) for part in metadata.version("onnxruntime").split(".")[:2]) < (1, 31):
        pytest.skip("this release has no telemetry on Linux")
    run_python("import onnxruntime, time; time.sleep(0.5)", tmp_path)
    assert list(tmp_path.rglob("deviceid")), "onnxruntime changed; see what ORT_DISABLE_TELEMETRY is for now"


@pytest.mark.role("sim")
def test_robosuite_writes_no_log_file_and_asks_for_no_settings() -> None:
    code = (
        "import logging, m2distill_policy.sim, robosuite, robosuite.utils.log_utils\n"
        "handlers = logging.getLogger('robosuite_logs').handlers\n"
        "print([type(handler).__name__ for handler in handlers])"
    )
    assert run_python(code, Path("/nonexistent")).strip() == "['StreamHandler']"


def test_compiled_code_gets_a_folder_where_nothing_is_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_settings, "_is_writable", lambda folder: False)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("M2DISTILL_CACHE", str(tmp_path / "cache"))
    library_settings.prepare_libraries()
    assert os.environ.pop("NUMBA_CACHE_DIR") == str(tmp_path / "cache" / "numba")
    monkeypatch.setenv("M2DISTILL_CACHE", "/proc/none")  # no home
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    library_settings.prepare_libraries()
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert folder == tmp_path / f"m2distill-numba-{os.geteuid()}" and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/chosen")
    library_settings.prepare_libraries()
    assert os.environ["NUMBA_CACHE_DIR"] == "/chosen"


def test_a_folder_that_somebody_else_could_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name = f"m2distill-numba-{os.geteuid()}"
    (tmp_path / name).mkdir(mode=0o700)
    assert library_settings.private_temporary("numba") == tmp_path / name
    (tmp_path / name).chmod(0o777)
    other = library_settings.private_temporary("numba")
    assert other is not None and other != tmp_path / name and other.stat().st_mode & 0o777 == 0o700
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to(other)
    assert library_settings.private_temporary("numba") not in (other, tmp_path / name)


@pytest.mark.role("sim")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.slow
def test_another_user_without_a_home_can_build_the_scene(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    # Reads everything, as a user of a machine-wide installation does, and writes nothing but the temporary folder.
    drop = (
        "import ctypes, os, tempfile\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.prctl(8, 1, 0, 0, 0) == 0\n"  # keep capabilities over setuid
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "sets = (ctypes.c_uint32 * 6)(4, 4, 4, 0, 0, 0)\n"  # CAP_DAC_READ_SEARCH
        "assert libc.capset(header, sets) == 0\n"
        "assert not os.access('/', os.W_OK)\n"
    )
    code = drop + (
        "from m2distill_policy.sim.tabletop.scene import build_xml\n"
        "from m2distill_policy.sim import osc\n"
        "print(len(build_xml()) > 1000, os.environ['NUMBA_CACHE_DIR'])"
    )
    output = run_python(code, Path("/nonexistent"), TMPDIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert output.split() == ["True", str(tmp_path / "m2distill-numba-65534")]


def test_a_lock_that_another_user_made_is_no_domain_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.umask(0o077)
    try:
        with domain.reserve_domain() as number:
            assert (tmp_path / f"m2distill-domain-{number}.lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_doctor_names_versions_that_are_not_those_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    others = {"robosuite": "1.5.0", "numpy": "2.2.6"}
    monkeypatch.setattr(metadata, "version", lambda name: others.get(name) or real(name))
    monkeypatch.setitem(installation.ROLE_MODULES, "sim", ("json",))
    finding = doctor.check_role("sim")
    assert finding.state == "missing" and "robosuite is 1.5.0, needs 1.4.0" in finding.detail
    assert "numpy is 2.2.6, needs 1.26.4" in finding.detail
    assert finding.cure == installation.install_command("sim")


def test_pins_are_read_with_their_markers_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(
        '# one\n-r b.txt\npytest==0.1; python_version < "3.0"\npytest==0.2; python_version >= "3.0"  # two\nnumpy<1\n'
    )
    (tmp_path / "b.txt").write_text("surely-not-here==1.0\n")
    assert pins.read_pins(tmp_path / "a.txt") == [
        ("surely-not-here", "==", "1.0"),
        ("pytest", "==", "0.2"),
        ("numpy", "<", "1"),
    ]
    phrases = pins.find_mismatches(tmp_path / "a.txt")
    assert [phrase.split()[0] for phrase in phrases] == ["surely-not-here", "pytest", "numpy"]
    monkeypatch.setattr(metadata, "version", lambda name: {"pytest": "0.2+cpu", "numpy": "0.9"}.get(name, "1.0"))
    assert not pins.find_mismatches(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("onnxruntime==1.0\n")
    assert "onnxruntime-gpu" in pins.find_mismatches(tmp_path / "a.txt")[0]


def test_every_line_of_requirements_is_understood() -> None:
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        if file.name in ("dev.txt", "ros-wheels.txt", "libero-loader.txt"):
            continue  # not compared
        for line in file.read_text().splitlines():
            text = line.partition("#")[0].strip()
            assert not text or text.startswith("-r ") or pins._LINE.fullmatch(text), f"{file}: {line}"


def test_doctor_says_where_compiled_code_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_trial", lambda code, environment: ("", "RuntimeError: cannot cache function"))
    finding = doctor.check_compiled_code()
    assert finding.state == "missing" and "NUMBA_CACHE_DIR" in finding.cure
