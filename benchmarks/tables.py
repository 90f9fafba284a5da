"""Make the tables of the documentation from the results in ``benchmarks/results``.

A page marks a table by ``<!-- name -->`` and ``<!-- end -->``; the lines in between are replaced. A test checks that
the pages agree with the results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.output import make_parser
from benchmarks.result_files import RunResult, read_runs
from training.studies.study import Arm

#: Heading of a column, and a function that returns the value of a run in it, or None.
Column: TypeAlias = tuple[str, Callable[[RunResult], float | None]]

NOT_RUN = "not run"


def metric(heading: str, name: str) -> Column:
    """Make a column of the metric ``name`` of :class:`training.metrics.LifelongMetrics`."""
    return heading, lambda run: run.metrics[name]


METRICS = (metric("NBT", "nbt"), metric("AUC", "auc"), metric("FWT", "fwt"))


def runs_of(results: Path, arm: Arm) -> list[RunResult]:
    """Read the runs of one arm from a study's file of results, in order of seed."""
    return [run for run in read_runs(results) if run.arm == arm.name]


def rows(results: Path, arms: Sequence[Arm], columns: Sequence[Column]) -> list[str]:
    """Make a Markdown table with one row per arm.

    A cell has the mean over seeds, with the smallest and the largest value in parentheses. The last columns are the
    number of rollouts that ended in an error, the memory size of the first seed, and the seeds.
    """
    table = [
        f"| | {' | '.join(heading for heading, _ in columns)} | errors | memory size | seeds |",
        f"|---|{'---|' * (len(columns) + 3)}",
    ]
    for arm in arms:
        runs = runs_of(results, arm)
        if not runs:
            table.append(f"| {arm.label} | {NOT_RUN} |{' |' * (len(columns) + 2)}")
            continue
        cells = [_mean_and_range([value(run) for run in runs]) for _, value in columns]
        errors = sum(run.error_count for run in runs)
        memory, seeds = _size(runs[0].memory_bytes), ", ".join(str(run.seed) for run in runs)
        table.append(f"| {arm.label} | {' | '.join(cells)} | {errors} | {memory} | {seeds} |")
    return table


def fill(page: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """Replace the lines of each marked block of a page."""

    def block(match: re.Match[str]) -> str:
        return "\n".join([f"<!-- {match[1]} -->", *blocks[match[1]], "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def main(doc: str | None, page: Path, write: Callable[[str, Path], str]) -> tuple[Path, Path]:
    """Run a command that updates a page.

    Args:
        doc: Description of the command.
        page: The page, unless an option names another page.
        write: Function that returns the page's new text, given its old text and the folder of results.

    Returns:
        The folder of results, and the page.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder of results (default: %(default)s)"
    )
    parser.add_argument("--page", type=Path, default=page, help="page to update (default: %(default)s)")
    args = parser.parse_args()
    args.page.write_text(write(args.page.read_text(encoding="utf-8"), args.results), encoding="utf-8")
    print(f"written: {args.page}")
    return args.results, args.page


def _mean_and_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean, least, greatest = (f"{round(float(v), 2) + 0.0:.2f}" for v in (np.mean(known), min(known), max(known)))
    return mean if len(known) == 1 else f"{mean} ({least} to {greatest})"


def _size(count: int) -> str:
    return "0" if not count else f"{count / 2**20:.1f} MiB" if count >= 2**19 else f"{count / 2**10:.1f} KiB"
