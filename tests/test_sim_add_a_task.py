"""The example that adds a task runs, and names the files that such a change touches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "add_a_task.py"


def test_the_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.add_a_task"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "reward 1, success True, lifted red_box" in done.stdout


def test_it_is_short_and_touches_two_files() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    named = ("m2distill_policy/sim/tabletop/tasks.py", "m2distill_policy/sim/tabletop/expert.py")
    assert all(name in text and (ROOT / name).is_file() for name in named)
