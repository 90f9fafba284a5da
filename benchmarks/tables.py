"""Tables of the documentation, written from the results of runs that lie in ``benchmarks/results``.

A page holds ``<!-- name -->`` ... ``<!-- end -->``; what is between is written anew. A test holds the pages to it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from training.lifelong.checkpoint import read_json
from training.studies.arms import Arm

Run: TypeAlias = Mapping[str, Any]
#: Heading of a column, and what a run has there (None: nothing).
Column: TypeAlias = tuple[str, Callable[[Run], float | None]]

NOT_RUN = "not run"


def metric(heading: str, name: str) -> Column:
    """A column of one of :class:`training.metrics.LifelongMetrics`."""
    return heading, lambda run: run["metrics"][name]


METRICS = (metric("NBT", "nbt"), metric("AUC", "auc"), metric("FWT", "fwt"))


def runs_of(folder: Path, arm: Arm) -> list[dict[str, Any]]:
    """The kept results of one arm of the study whose results lie in ``folder``, in order of seed."""
    found = [read_json(path) for path in folder.glob(f"seed_*_{arm.name}.json")]
    return sorted(found, key=lambda run: int(run["seed"]))


def rows(folder: Path, arms: Sequence[Arm], columns: Sequence[Column]) -> list[str]:
    """A table in Markdown: a row an arm, and in a cell the mean over seeds with the least and the greatest behind it;
    last how many rollouts ended in an error, what was kept of old tasks and which seeds were run."""
    table = [
        f"| | {' | '.join(heading for heading, _ in columns)} | errors | kept of old tasks | seeds |",
        f"|---|{'---|' * (len(columns) + 3)}",
    ]
    for arm in arms:
        runs = runs_of(folder, arm)
        if not runs:
            table.append(f"| {arm.words} | {NOT_RUN} |{' |' * (len(columns) + 2)}")
            continue
        cells = [_spread([value(run) for run in runs]) for _, value in columns]
        errors = sum(run["errors"] for run in runs)
        kept, seeds = _size(runs[0]["bytes_kept"]), ", ".join(str(run["seed"]) for run in runs)
        table.append(f"| {arm.words} | {' | '.join(cells)} | {errors} | {kept} | {seeds} |")
    return table


def fill(page: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """``page`` with the lines of each block between its marks."""

    def block(match: re.Match[str]) -> str:
        return "\n".join([f"<!-- {match[1]} -->", *blocks[match[1]], "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def main(doc: str | None, page: Path, write: Callable[[str, Path], str]) -> tuple[Path, Path]:
    """The command that writes a page anew. write: the page's text with its tables, from the folder of results.

    Returns the folder of results and the page.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, default=page)
    args = parser.parse_args()
    args.page.write_text(write(args.page.read_text(encoding="utf-8"), args.results), encoding="utf-8")
    print(f"written: {args.page}")
    return args.results, args.page


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean, least, greatest = (f"{round(float(v), 2) + 0.0:.2f}" for v in (np.mean(known), min(known), max(known)))
    return mean if len(known) == 1 else f"{mean} ({least} to {greatest})"


def _size(count: int) -> str:
    return "nothing" if not count else f"{count / 2**20:.1f} MiB" if count >= 2**19 else f"{count / 2**10:.1f} KiB"
