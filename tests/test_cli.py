"""The ``m2distill`` command: lazy, and every mistake is one sentence."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m2distill_policy import __version__, cli
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.errors import BundleError

HEAVY = ("torch", "robosuite", "mujoco", "cyclonedds", "onnxruntime", "cv2", "transformers", "h5py", "numpy")


def command(behaviour: Any) -> Any:
    """A stand-in for a subcommand's module whose ``run`` calls ``behaviour``."""

    def add_parser(subparsers: Any) -> None:
        parser = subparsers.add_parser("train")
        parser.add_argument("words", nargs="*")
        parser.set_defaults(run=behaviour)

    return SimpleNamespace(add_parser=add_parser)


@pytest.fixture
def run_train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call ``main`` with a ``train`` that does what is asked."""

    def call(behaviour: Any, *argv: str) -> int:
        monkeypatch.setattr(cli, "load_command", lambda name: command(behaviour))
        return cli.main(["train", *argv])

    return call


def raises(error: BaseException) -> Any:
    def behaviour(args: argparse.Namespace) -> int:
        raise error

    return behaviour


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command_and_imports_no_room() -> None:
    done = fresh(
        "import sys; from m2distill_policy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    for name in SUMMARIES:
        assert f"  {name}" in done.stdout
    assert "loaded: []" in done.stdout


def test_the_commands_are_the_modules() -> None:
    folder = Path(cli.__file__).parent / "commands"
    assert {path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py")} == set(SUMMARIES)


@pytest.mark.parametrize("name", SUMMARIES)
def test_each_command_explains_itself_without_heavy_imports(name: str) -> None:
    done = fresh(
        "import sys; from m2distill_policy.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('loaded:', [name for name in {HEAVY[:-1]!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: m2distill {name}" in done.stdout
    assert "example" in done.stdout, "the help ends with an example"
    assert "loaded: []" in done.stdout


def test_nothing_is_the_help_and_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"m2distill {__version__}\n"


def test_unknown_command_is_named_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evalute"]) == 2
    error = capsys.readouterr().err
    assert "no command 'evalute'" in error
    assert "did you mean 'evaluate'?" in error


def test_the_exit_code_is_the_commands(run_train: Any) -> None:
    assert run_train(lambda args: 0) == 0
    assert run_train(lambda args: 1) == 1
    with pytest.raises(TypeError, match="not an exit code"):
        run_train(lambda args: None)


def test_an_error_is_one_sentence(run_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(raises(BundleError("the bundle has a hole"))) == 2
    assert capsys.readouterr().err == "m2distill: the bundle has a hole\n"


def test_debug_shows_the_traceback_on_either_side(run_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(raises(BundleError("a hole")), "--debug") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("m2distill: a hole\n")
    seen: list[str] = []

    def remember(args: argparse.Namespace) -> int:
        seen.extend(args.words)
        return 0

    assert run_train(remember, "--", "--debug") == 0
    assert seen == ["--debug"], "behind -- it is the command's"


def test_stopping_says_how_to_go_on(run_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped; run again to resume\n"


@pytest.mark.parametrize("words", [("report", "FILE"), ("demos", "--tasks", "0", "--episodes", "1", "--out", "FILE/x")])
def test_a_path_that_is_none_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cli.main([word.replace("FILE", str(file)) for word in words]) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "Traceback" not in said


def test_other_errors_are_bugs_and_keep_their_traceback(run_train: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        run_train(raises(ZeroDivisionError()))
    with pytest.raises(ImportError):
        run_train(raises(ImportError("no such thing", name="m2distill_policy.nothing")))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("torch", "'m2distill train' needs the package 'torch', which is not installed"),
        ("torch", "make venv ROLES='robot train sim'"),
        ("robosuite.utils", "pip install --no-deps -r requirements/train-nodeps.txt -r requirements/sim-nodeps.txt"),
        ("rclpy", "source /opt/ros/"),
    ],
)
def test_a_missing_role_names_its_requirements(
    run_train: Any, capsys: pytest.CaptureFixture[str], module: str, words: str
) -> None:
    assert run_train(raises(ModuleNotFoundError(f"No module named '{module}'", name=module))) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_every_command_has_roles_and_every_file_that_is_named_exists() -> None:
    assert set(cli.ROLES) == set(SUMMARIES)
    folder = Path(cli.__file__).parents[1] / "requirements"
    for role in {role for roles in cli.ROLES.values() for role in roles}:
        assert (folder / f"{role}.txt").is_file()
    for role in cli.WITH_NODEPS:
        assert (folder / f"{role}-nodeps.txt").is_file()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys; from types import SimpleNamespace; from m2distill_policy import cli\n"
        "def run(args):\n"
        "    for i in range(100000): print(i)\n"
        "    return 0\n"
        "module = SimpleNamespace(add_parser=lambda sub: sub.add_parser('train').set_defaults(run=run))\n"
        "cli.load_command = lambda name: module\n"
        "sys.exit(cli.main(['train']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141
