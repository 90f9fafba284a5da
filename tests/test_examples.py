"""The scripts and notebooks in ``examples/`` and the Python in README.md run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_records import CELL, RESULTS, TASK
from tests.test_training_files import OWN, _demonstrate
from training.lifelong.records import write_record
from training.metrics import lifelong_metrics

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
#: Example -> the file of its test.
TESTED = {
    "add_a_strategy.py": "test_strategies.py",
    "add_a_task.py": "test_sim_add_a_task.py",
    "first_policy.ipynb": "test_examples.py",
    "read_results.py": "test_examples.py",
    "results.ipynb": "test_examples.py",
    "run_policy.py": "test_examples.py",
    "train_on_your_own_files.py": "test_examples.py",
}


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run Python in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={"MUJOCO_GL": "osmesa", **os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_notebook(name: str, folder: Path) -> str:
    """Run the code cells of a notebook in their order, in ``folder/examples``, and return what they printed."""
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    script = folder / "examples" / "cells.py"
    script.parent.mkdir()
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    return run(script, cwd=script.parent)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run folder with the results of two tasks; the first is half forgotten."""
    rows = ((1.0,), (0.5, 1.0))
    tasks = (TASK, dataclasses.replace(TASK, index=1, name="lift_that", instruction="lift that"))
    cells = tuple(
        tuple(
            dataclasses.replace(
                CELL,
                task_index=task,
                task=tasks[task].name,
                instruction=tasks[task].instruction,
                errors=0,
                successes=round(2 * rate),
                rate=rate,
            )
            for task, rate in enumerate(row)
        )
        for row in rows
    )
    metrics = dataclasses.asdict(lifelong_metrics(rows, [[1.0], [1.0]]))
    results = dataclasses.replace(
        RESULTS, tasks=tasks, success=rows, wrong_object=rows, cells=cells, errors=0, metrics=metrics
    )
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    write_record(folder / "results.json", results)
    return folder


def needs_simulator() -> None:
    pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")


def test_every_example_is_short_and_run_by_a_test() -> None:
    files = {path.name: path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(files) == set(TESTED)
    for name, path in files.items():
        tests = (ROOT / "tests" / TESTED[name]).read_text(encoding="utf-8")
        assert path.stem in tests
        assert path.suffix == ".ipynb" or len(path.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["id"] and (cell["cell_type"] == "markdown" or not cell["outputs"])
        assert cell.get("execution_count") is None


def test_the_python_of_the_readme_runs() -> None:
    needs_simulator()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert run("-c", code).splitlines()[-1] == "success: True"


def test_run_policy() -> None:
    needs_simulator()
    lines = run("-m", "examples.run_policy").splitlines()
    assert len(lines) == 4 and all(": success after" in line for line in lines[1:])


def test_the_notebook_first_policy(tmp_path: Path) -> None:
    needs_simulator()
    shown = run_notebook("first_policy.ipynb", tmp_path)
    assert "success: True" in shown and "99th percentile" in shown


def test_train_on_your_own_files(tmp_path: Path) -> None:
    for name, instruction in (("a", "lift the red box"), ("b", "lift the green box")):
        _demonstrate(tmp_path / "data", name, instruction)
    small = [setting for setting in OWN if setting.startswith(("network.", "optim.", "memory."))]
    shown = run("-m", "examples.train_on_your_own_files", tmp_path / "data", tmp_path / "run", *small)
    assert f"bundle: {tmp_path / 'run' / 'bundles' / 'stage_1'}" in shown
    assert "lift the red box: actions differ by" in shown and "lift the green box: actions differ by" in shown


def test_read_results(finished: Path) -> None:
    shown = run("-m", "examples.read_results", finished)
    assert "after stage 1: 0.50  1.00" in shown and "task 1: lift that" in shown
    assert re.search(r"nbt = 0\.25", shown)


def test_the_notebook_results(finished: Path, tmp_path: Path) -> None:
    shown = run_notebook("results.ipynb", tmp_path)
    assert "nbt: 0.25" in shown and "NBT: 0.25" in shown and "1 of 2" in shown
