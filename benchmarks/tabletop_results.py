"""Fills the tables of five tasks in docs/benchmarks.md from what :mod:`benchmarks.tabletop` and
:mod:`benchmarks.tabletop_choices` measured: ``python -m benchmarks.tabletop_results``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import tables, tabletop, tabletop_choices
from benchmarks.output import command
from benchmarks.tables import METRICS, Column, Run, metric

_SUCCESS = metric("success after 5 tasks", "mean_final")


def _wrong(run: Run) -> float:
    return float(np.mean(run["wrong_object"][-1]))


#: wrong: share of rollouts, all tasks after the last stage, in which an object was lifted that the instruction is not
#: about. told: how often a world's own task was done when told another one.
_COLUMNS: tuple[Column, ...] = (_SUCCESS, *METRICS, ("wrong", _wrong), ("told", lambda run: run["told_success"]))


def fill(page: str, results: Path) -> str:
    """``page`` with its tables written anew."""
    strategies = [arm for arm in tabletop.ARMS if not arm.name.startswith("m2distill_no_")]
    terms = [arm for arm in tabletop.ARMS if arm.name == "m2distill_demos" or arm.name.startswith("m2distill_no_")]
    return tables.fill(
        page,
        {
            "five_tasks": tables.rows(results / "tabletop", strategies, _COLUMNS),
            "five_tasks_terms": tables.rows(results / "tabletop", terms, _COLUMNS),
            "choices": tables.rows(results / "tabletop_choices", tabletop_choices.ARMS, (_SUCCESS, *METRICS)),
        },
    )


def main() -> None:
    """Write the page."""
    tables.main(__doc__, Path("docs/benchmarks.md"), fill)


if __name__ == "__main__":
    command(main)
