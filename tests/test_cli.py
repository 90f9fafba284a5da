"""The ``m2distill`` command: it imports only what is needed, and a mistake of the user is one line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m2distill_policy import __version__, cli, installation
from m2distill_policy.arguments import arm_config, find_bundle, program, training_config
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.errors import BundleError

ROOT = Path(__file__).resolve().parent.parent
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


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
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


def examples(name: str | None) -> list[list[str]]:
    """The command lines at the end of a help text, as a shell would split them."""
    top, command = cli._parser(name)
    text = ((command or top).epilog or "").replace("\\\n", "")
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    return [[word for word in shlex.split(line, comments=True) if word != "&"] for line in lines]


@pytest.mark.parametrize("name", [None, *SUMMARIES])
def test_the_examples_in_the_help_parse(name: str | None) -> None:
    found = examples(name)
    assert found
    assert name is None or any(words[1] == name for words in found)
    for words in found:
        assert words[0] == "m2distill"
        parser = cli._parser(words[1])[1]
        assert parser is not None
        args = parser.parse_in_any_order(words[2:])
        for given in (getattr(args, "config", None), getattr(args, "search", None)):
            assert given is None or given.is_file(), f"{given}: an example names a file that is not installed"
        assert all("=" in setting for setting in getattr(args, "overrides", []))


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["serve", "RUN"], "serve"),
        (["sim", "--bundle", "RUN"], "sim"),
        (["evaluate", "RUN", "--out", "x"], "evaluate"),
        (["viewpoint", "RUN", "image.png", "--out", "x.png"], "viewpoint"),
        (["import-bag", "bag", "--instruction", "lift", "--contract", "RUN", "--out", "x"], "import_bag"),
        (["sign", "RUN", "--key", "key.pem"], "sign"),
        (["sign", "RUN", "--verify", "key.pub.pem"], "sign"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_command_that_takes_a_bundle_takes_a_run(
    words: list[str], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    Path("RUN/run.json").touch()
    assert cli.main(words) == 2, module
    error = capsys.readouterr().err
    assert "the run RUN has no bundle yet" in error and "m2distill train --resume --out RUN" in error


MODULE = str(Path(cli.__file__).parent / "__main__.py")


@pytest.mark.parametrize("started", ["m2distill", "./venv/bin/m2distill", MODULE, "pytest"])
def test_a_printed_command_starts_the_same_program(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = Path("venv/bin/m2distill")
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [started])
    words = {"./venv/bin/m2distill": ["venv/bin/m2distill"], MODULE: [sys.executable, "-m", "m2distill_policy"]}
    assert program() == words.get(started, ["m2distill"])
    monkeypatch.setenv("PATH", str(script.parent.absolute()))
    if started == "./venv/bin/m2distill":
        assert program() == ["m2distill"], "the environment is activated"


def test_nothing_is_the_help_and_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"m2distill {__version__}\n"


def test_unknown_command_is_named_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evalute"]) == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err


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


@pytest.mark.role("train")
def test_stopping_prints_the_same_command(run_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from training.lifelong.stop import StoppedError

    assert run_train(raises(KeyboardInterrupt()), "two words", "optim.steps=3") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(": m2distill train 'two words' optim.steps=3")
    assert run_train(raises(StoppedError(signal.SIGTERM, Path("runs/x"), 0, 3)), "words") == 143
    assert capsys.readouterr().err.splitlines()[-1].endswith(": m2distill train words")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "--conifg", "tiny", "--out", "x"], "--config"),
        (["train", "optim.steps=3", "--out", "x", "--dta=y"], "--data"),
        (["serve", "x", "--lock-step"], "--lockstep"),
        (["evaluate", "x", "--out", "y", "--rollout5", "3"], "--rollouts"),
        (["--verson"], "--version"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistyped_option_gets_the_closest_and_its_own_usage(
    capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    error = capsys.readouterr().err
    assert f"did you mean '{meant}'?" in error
    command = words[0] if words[0] in SUMMARIES else "[-h]"
    assert error.startswith(f"usage: m2distill {command}")


@pytest.mark.parametrize("words", [["evaluate", "x", "y", "--out", "z"], ["doctor", "y"]])
def test_an_unexpected_word_is_an_error(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "'y'" in capsys.readouterr().err.splitlines()[-1]


SETTINGS = ["optim.steps=3", "seed=1", "tasks=[0,1]"]


@pytest.mark.parametrize("order", ["before", "after", "between"])
@pytest.mark.parametrize("name", ["train", "ablate", "plan", "demo", "sweep", "config"])
def test_settings_are_accepted_anywhere_on_the_line(name: str, order: str) -> None:
    options = [["--config", "tiny"]]
    options += [] if name in ("plan", "config") else [["--out", "x"]]
    options += [] if name in ("demo", "config") else [["--data", "y"]]
    words = ["search.toml"] if name == "sweep" else []
    words += SETTINGS if order == "before" else []
    for number, option in enumerate(options):
        words += [*option, SETTINGS[number]] if order == "between" else option
    words += SETTINGS[len(options) :] if order == "between" else SETTINGS if order == "after" else []
    parser = cli._parser(name)[1]
    assert parser is not None
    args = parser.parse_in_any_order(words)
    assert args.overrides == SETTINGS
    assert args.config == ROOT / "config" / "tiny.toml"
    if name == "sweep":
        assert args.search == Path("search.toml")


def test_profiles_are_found_by_name_and_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("tiny", "tiny.toml", "config/tiny.toml", str(ROOT / "config" / "tiny.toml")):
        assert training_config(text) == ROOT / "config" / "tiny.toml"
    for text in ("fr3_moveit_servo", "config/arms/fr3_moveit_servo.yaml"):
        assert arm_config(text) == ROOT / "config" / "arms" / "fr3_moveit_servo.yaml"
    for text in ("none", "none.toml", "", "/none/tiny.toml"):
        assert training_config(text) == Path(text)
    Path("tiny").write_text("seed = 1")
    assert training_config("tiny") == Path("tiny"), "the user's own file comes first"


def test_a_run_is_accepted_for_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_bundle(tmp_path) == tmp_path, "it is an error when it is opened"
    (tmp_path / "run.json").touch()
    with pytest.raises(BundleError, match="no bundle yet"):
        find_bundle(tmp_path)
    for stage in (2, 10):
        folder = tmp_path / "bundles" / f"stage_{stage}"
        folder.mkdir(parents=True)
        (folder / "bundle.json").touch()
    (tmp_path / "bundles" / "stage_11").mkdir()
    assert find_bundle(tmp_path) == tmp_path / "bundles" / "stage_10"
    assert "stage_10" in capsys.readouterr().err
    assert find_bundle(tmp_path / "bundles" / "stage_2") == tmp_path / "bundles" / "stage_2"


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


@pytest.mark.parametrize("module", ["torch", "robosuite.utils"])
def test_a_missing_package_names_the_command_that_installs_it(
    run_train: Any, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    assert run_train(raises(ModuleNotFoundError(f"No module named '{module}'", name=module))) == 2
    error = capsys.readouterr().err
    assert f"'{module.split('.')[0]}'" in error
    assert installation.install_command("robot", "train", "sim") in error
    assert "Traceback" not in error


def test_missing_ros_names_its_setup_file(run_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(raises(ModuleNotFoundError("No module named 'rclpy'", name="rclpy"))) == 2
    assert "source /opt/ros/" in capsys.readouterr().err


def test_every_command_has_roles_and_every_role_has_its_files() -> None:
    assert set(cli.ROLES) == set(SUMMARIES)
    folder = Path(cli.__file__).parents[1] / "requirements"
    for role in {role for roles in cli.ROLES.values() for role in roles}:
        for file in installation.requirement_files(role):
            assert (folder / file).is_file()


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


#: Characters that steer a terminal, begin another line, or turn the direction of writing.
STEERING = ("\x1b[31m", "\n", "\r", "\t", "\x07", "\x9b", "\u2028", "\u202e", "\udcff")


@pytest.mark.parametrize("characters", STEERING, ids=ascii)
@pytest.mark.parametrize(
    "words",
    [
        ["serve", "no{}such"],
        ["train", "--out", "x", "--data", "no{}such"],
        ["train", "--out", "x", "--data", "x", "no{}such=1"],
        ["sign", "no{}such", "--key", "x"],
        ["serve", "x", "--no{}such"],
        ["no{}such"],
    ],
    ids=lambda words: words[0],
)
def test_what_an_error_repeats_is_one_visible_line(
    capsys: pytest.CaptureFixture[str], words: list[str], characters: str
) -> None:
    with contextlib.suppress(SystemExit):  # argparse's own
        assert cli.main([word.format(characters) for word in words]) == 2
    said = capsys.readouterr().err.rstrip("\n").split("\n")
    assert all(line.isprintable() for line in said) and "such" in said[-1]


def test_a_logged_message_is_one_visible_line(
    run_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(args: argparse.Namespace) -> int:
        logging.getLogger("m2distill_policy.x").warning("%s is odd", "a\x1b[31m\nb")
        return 0

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run_train(log) == 0
    assert capsys.readouterr().err == "WARNING m2distill_policy.x: a\\x1b[31m\\nb is odd\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 TiB"),
        RuntimeError("alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte.\nx"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=str,
)
def test_memory_that_is_not_there_is_one_sentence(
    run_train: Any, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert run_train(raises(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith("m2distill: ") and said.count("\n") == 1 and "Traceback" not in said


def test_other_runtime_errors_keep_their_traceback(run_train: Any) -> None:
    with pytest.raises(RuntimeError):
        run_train(raises(RuntimeError("a mistake of our own")))


@pytest.mark.parametrize("command", ["sweep", "ablate"])
@pytest.mark.parametrize("seeds", ["3,3", "0,1,0", "1,2,3,03"])
def test_seeds_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, seeds: str) -> None:
    words = ["--config", "config/tiny.toml", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", seeds]
    search = ["config/sweeps/distill.toml"] if command == "sweep" else []
    assert cli.main([command, *search, *words]) == 2
    assert "more than once" in capsys.readouterr().err and not (tmp_path / "out").exists()
