"""Update the tables of the five tabletop tasks in docs/benchmarks.md.

The figures come from :mod:`benchmarks.tabletop` and :mod:`benchmarks.tabletop_choices`.

Example:
    python -m benchmarks.tabletop_results
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import lifelong, tables, tabletop, tabletop_choices
from benchmarks.output import command
from benchmarks.tables import METRICS, metric

_SUCCESS = metric("success after 5 tasks", "mean_final")


def fill(page: str, results: Path) -> str:
    """Replace the page's tables."""
    strategies = [arm for arm in tabletop.ARMS if not arm.name.startswith("m2distill_no_")]
    terms = [arm for arm in tabletop.ARMS if arm.name == "m2distill_demos" or arm.name.startswith("m2distill_no_")]
    columns = (_SUCCESS, *lifelong.COLUMNS[1:])
    return tables.fill(
        page,
        {
            "five_tasks": tables.rows(results / "tabletop.jsonl", strategies, columns),
            "five_tasks_terms": tables.rows(results / "tabletop.jsonl", terms, columns),
            "choices": tables.rows(results / "tabletop_choices.jsonl", tabletop_choices.ARMS, (_SUCCESS, *METRICS)),
        },
    )


def main() -> None:
    """Update the page."""
    tables.main(__doc__, Path("docs/benchmarks.md"), fill)


if __name__ == "__main__":
    command(main)
