"""What pip and colcon install: versions from ``requirements/``, every file that is needed at run time, one version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from m2distill_policy import __version__, installation, pins
from m2distill_policy.commands import SUMMARIES

ROOT = Path(__file__).resolve().parent.parent
SHARE = "data/share/m2distill_policy"
ROLES = ("train", "sim", "ray", "dev")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is installed: setuptools writes into the folder that it builds."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("source")
    for name in ("m2distill_policy", "training", "config", "launch", "requirements", "resource"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def call(source: Path, *words: str) -> None:
    """Run Python in ``source``, without the packages on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=source, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    """The wheel that pip builds and installs."""
    call(source, "-c", "from setuptools import build_meta; build_meta.build_wheel('wheels')")
    return zipfile.ZipFile(next((source / "wheels").glob("*.whl")))


def lines(role: str) -> set[str]:
    """The requirements of a role's file and of the files it includes, without spaces."""
    found: set[str] = set()
    for line in (ROOT / "requirements" / f"{role}.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        found |= lines(text[3:].removesuffix(".txt")) if text.startswith("-r ") else {text}
    return {re.sub(r"[\s()]", "", text) for text in found if text}


def test_a_wheel_asks_for_the_versions_of_the_requirements(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    asked: dict[str, set[str]] = {role: set() for role in ("robot", *ROLES)}
    for requirement in metadata.get_all("Requires-Dist", []):
        text = re.sub(r"[\s()]", "", requirement)
        found = re.fullmatch(r"(.*?)(?:;|and)extra==[\"'](\w+)[\"']", text)
        role, bare = (found.group(2), found.group(1)) if found else ("robot", text)
        if role in asked:
            asked[role].add(bare)
    assert asked == {role: lines(role) for role in asked}
    assert metadata["Version"] == __version__


def test_a_wheel_holds_every_file_that_is_read_at_run_time(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    for folder, pattern in (
        ("config", "**/*.toml"),
        ("config", "*.xml"),
        ("config/arms", "*.yaml"),
        ("launch", "*.py"),
        ("requirements", "*.txt"),
    ):
        files = [str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)]
        assert files, folder
        for file in files:
            assert any(name.endswith(f"{SHARE}/{file}") for name in names), f"{file} is not in the wheel"
    for package in ("m2distill_policy", "training"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert modules <= set(names)
        assert f"{package}/py.typed" in names
    pretrained = [str(path.relative_to(ROOT)) for path in (ROOT / "m2distill_policy/pretrained").rglob("*.*")]
    assert len(pretrained) == 6 and set(pretrained) <= set(names)
    scripts = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "m2distill = m2distill_policy.cli:main" in scripts


def test_colcon_gets_the_node_without_a_list_for_pip(source: Path, tmp_path: Path) -> None:
    """With a list, pkg_resources would refuse to start the node where NumPy and OpenCV come from apt."""
    # What colcon calls; see colcon_core/task/python/build.py.
    words = [
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build",
        "--build-base",
        str(tmp_path / "build"),
    ]
    words += ["install", "--prefix", str(tmp_path / "prefix"), "--record", str(tmp_path / "record")]
    words += ["--install-scripts", str(tmp_path / "prefix/lib/m2distill_policy"), "--single-version-externally-managed"]
    call(source, "-W", "ignore", *words)
    required = (tmp_path / "m2distill_policy.egg-info" / "requires.txt").read_text()
    assert not required.partition("[")[0].strip(), "dependencies outside of the extras"
    for script in ("policy_node", "sim_robot", "viewpoint_check", "m2distill"):
        assert (tmp_path / "prefix/lib/m2distill_policy" / script).is_file()
    for file in ("launch/policy.launch.py", "config/arms/fr3_moveit_servo.yaml", "requirements/robot-ros.txt"):
        assert next((tmp_path / "prefix").glob(f"**/share/m2distill_policy/{file}"), None)
    assert next((tmp_path / "prefix").glob("**/m2distill_policy/pretrained/tabletop/step.onnx"), None)


def test_no_project_table_overrides_setup_py() -> None:
    assert "[project]" not in re.sub(r"#.*", "", (ROOT / "pyproject.toml").read_text())


def test_all_files_have_one_version() -> None:
    for file in ("package.xml", "ros2_ws/src/m2distill_msgs/package.xml"):
        assert ElementTree.parse(ROOT / file).getroot().findtext("version") == __version__, file


# --- how it was installed -------------------------------------------------------------------------------------------


@pytest.fixture
def unsourced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMENT_PREFIX_PATH", "ROS_DISTRO"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def installed(unsourced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix in which pip or colcon has installed the package."""
    package = tmp_path / "lib/python3.11/site-packages/m2distill_policy"
    share = tmp_path / "share/m2distill_policy"
    for folder in (package, share / "requirements", share / "config"):
        folder.mkdir(parents=True)
    (share / "config/tiny.toml").touch()
    resource = tmp_path / "share/ament_index/resource_index/packages/m2distill_policy"
    resource.parent.mkdir(parents=True)
    resource.touch()
    monkeypatch.setattr(installation, "_PACKAGE", package)
    return tmp_path


def test_a_clone_is_recognised(unsourced: None) -> None:
    assert installation.kind() == "clone"
    assert installation.find_file("config/tiny.toml") == ROOT / "config" / "tiny.toml"
    assert installation.find_file("no/such/file") is None


def test_pip_and_colcon_are_told_apart(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.kind() == "pip"
    assert installation.find_file("config/tiny.toml") == installed / "share/m2distill_policy/config/tiny.toml"
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/opt/ros/none{os.pathsep}{installed}")
    assert installation.kind() == "colcon"
    monkeypatch.setattr(sys, "prefix", str(installed))
    assert installation.kind() == "pip", "pip installed it into the environment that ROS 2 uses"


def test_the_advice_after_pip_is_pip(installed: Path) -> None:
    lists = installed / "share/m2distill_policy/requirements"
    pip = f"{sys.executable} -m pip install"
    assert installation.install_command("train", "sim") == (
        f"{pip} -r {lists}/train.txt -r {lists}/sim.txt && {pip} --no-deps -r {lists}/sim-nodeps.txt"
    )
    assert installation.install_command("ray") == f"{pip} -r {lists}/ray.txt"


def test_the_advice_after_colcon_keeps_the_packages_of_ros(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(installed))
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert installation.install_command("robot").endswith("/share/m2distill_policy/requirements/robot-ros.txt")


def test_the_advice_in_an_environment_of_make_is_make(
    unsourced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "-m pip install" in installation.install_command("sim"), "the environment is the user's own"
    (tmp_path / ".roles").write_text("robot-gpu train\n")
    command = installation.install_command("robot", "sim")
    assert command == f"make -C {ROOT} venv VENV={tmp_path} ROLES='robot-gpu train sim'"
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "robot")
    assert installation.install_command("sim") == f"make -C {ROOT} venv ROLES='robot sim'"


def test_a_gpu_replaces_the_packages_of_a_robot(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = installation.install_command("robot-gpu")
    assert command.startswith(f"{sys.executable} -m pip uninstall --yes onnxruntime && {sys.executable} -m pip install")
    assert command.endswith("/requirements/robot-gpu.txt")
    monkeypatch.setattr(installation, "_PACKAGE", ROOT / "m2distill_policy")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / ".roles").write_text("robot train\n")
    assert installation.install_command("robot-gpu").endswith("ROLES='train robot-gpu'")


def test_a_package_is_installed_again_in_its_pinned_version(unsourced: None) -> None:
    pip = f"{sys.executable} -m pip install --force-reinstall --no-deps"
    pinned = dict(line.split("==") for line in lines("sim-nodeps"))
    for name, version in pinned.items():
        assert installation.reinstall_command(name) == f"{pip} {name}=={version}"
    assert installation.reinstall_command("no-such-package") == f"{pip} no-such-package"


def test_a_gpu_build_of_onnxruntime_is_kept(unsourced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "installed_version", lambda name: "1.0" if name == "onnxruntime-gpu" else None)
    assert installation.requirement_files("robot") == ("robot-gpu.txt",)


# --- without any dependency -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["doctor", "--json"], ["--help"], *([name, "--help"] for name in SUMMARIES)])
def test_the_standard_library_is_enough(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        # -S leaves out site-packages.
        [sys.executable, "-S", "-m", "m2distill_policy", *words],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = "--json" in words
    assert done.returncode == (1 if report else 0), done.stderr
    assert not done.stderr
    if report:
        for role in ("robot", "train", "sim"):
            assert f"requirements/{role}.txt" in done.stdout


@pytest.mark.parametrize("module", ["ray", "cryptography", "libero"])
def test_a_missing_package_comes_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2distill_policy import bundle_signature, cluster
    from m2distill_policy.errors import M2DistillError
    from m2distill_policy.sim.libero import files

    calls: dict[str, Callable[[], object]] = {
        "ray": cluster.RayLauncher,
        "cryptography": bundle_signature._cryptography,
        "libero": files.package_folder,
    }
    role = {"ray": "ray", "cryptography": "robot", "libero": "sim"}[module]
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(M2DistillError) as caught:
        calls[module]()
    assert str(caught.value).endswith(installation.install_command(role))


@pytest.mark.parametrize(
    ("module", "needed", "installed_roles", "wanted"),
    [
        ("torch", ("robot", "train", "sim"), ("robot",), ("train", "sim")),
        ("h5py", ("robot", "train"), ("robot",), ("train",)),
        ("numba", ("robot", "train"), ("robot",), ("train", "sim")),  # also the role that the module belongs to
        ("numba", ("robot", "sim"), ("robot", "train", "sim"), ("sim",)),  # it is there, and its own import failed
    ],
)
def test_only_the_roles_that_are_missing_are_installed(
    module: str, needed: tuple[str, ...], installed_roles: tuple[str, ...], wanted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(installation, "missing_modules", lambda role: [] if role in installed_roles else ["x"])
    advice = installation.missing_package(module, needed)
    assert advice is not None and f"'{module}'" in advice
    assert advice.endswith(installation.install_command(*wanted))


def test_a_module_of_no_role_is_a_bug() -> None:
    assert installation.missing_package("m2distill_policy", ["robot"]) is None


@pytest.mark.parametrize(("name", "module", "role"), [("make_env", "gymnasium", "sim"), ("load", "numpy", "robot")])
def test_the_python_api_says_what_to_install(name: str, module: str, role: str) -> None:
    code = (
        f"import importlib.util, sys; sys.modules[{module!r}] = None\n"
        "real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name == {module!r} else real(name, package)\n"
        "import m2distill_policy as m2\n"
        f"m2.{name}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: m2distill_policy.{name} needs the package '{module}'")
    assert last.endswith(installation.install_command(role))
