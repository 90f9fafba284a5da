"""``m2distill tasks``: suites, numbers and instructions, and the command that collects demonstrations of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m2distill_policy import cli
from m2distill_policy.installation import install_command
from m2distill_policy.sim.collection import parse_tasks
from m2distill_policy.sim.suites import SUITES, SUITES_WITH_EXPERTS, suite_tasks


def test_the_tasks_of_a_suite_with_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--suite", "tabletop"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].startswith("tabletop ")
    listed = [line.split(maxsplit=1) for line in shown.out.splitlines()[1:]]
    assert listed == [[str(task.index), task.instruction] for task in suite_tasks("tabletop")]


@pytest.mark.parametrize("suite", ["tabletop", "all"])
def test_the_next_command_collects_tasks_that_exist(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", *([] if suite == "all" else ["--suite", suite])]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)[2:]
    parser = cli._parser(words[0])[1]
    assert words[0] == "demos" and parser is not None
    args = parser.parse_in_any_order(words[1:])
    assert args.suite == "tabletop" and parse_tasks(args.tasks, args.suite) == (0, 1, 2)


@pytest.mark.role("sim")
def test_all_suites_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(row["suite"] for row in rows)) == list(SUITES)
    for suite in SUITES:
        mine = [row for row in rows if row["suite"] == suite]
        assert [row["task"] for row in mine] == list(range(len(mine))) and len(mine) in (5, 10)
        assert {row["expert"] for row in mine} == {suite in SUITES_WITH_EXPERTS}
        assert all(row["instruction"] for row in mine)


@pytest.mark.role("sim")
def test_a_suite_without_an_expert_is_not_offered_for_collection(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--suite", "libero_10"]) == 0
    shown = capsys.readouterr()
    assert "no scripted expert" in shown.out and "libero_10" not in shown.err


def test_an_unknown_suite_is_one_line_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--suite", "tabeltop"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean 'tabletop'?" in line


def test_the_simulator_is_not_needed(tmp_path: Path) -> None:
    """A machine of the role robot lists the tasks of its own suite, and says how to install the others."""
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "absent = ('mujoco', 'robosuite', 'libero', 'numba', 'scipy', 'threadpoolctl', 'torch', 'h5py', 'gymnasium')\n"
        "importlib.util.find_spec = lambda name, package=None: None if name in absent else real(name, package)\n"
        "for name in absent: sys.modules[name] = None\n"
        "from m2distill_policy.cli import main\n"
        "sys.exit(main(['tasks']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(suite_tasks("tabletop"))
    line, following = done.stderr.splitlines()
    assert line.startswith(", ".join(SUITES[1:])) and install_command("sim") in line
    assert following.startswith("next: ")
