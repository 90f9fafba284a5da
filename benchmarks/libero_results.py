"""Fills the tables of docs/results.md and draws docs/results.svg from what :mod:`benchmarks.libero_small` measured:
``python -m benchmarks.libero_results``.

Every figure is read from ``benchmarks/results``, but for the published ones; a cell that was not run says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks import tables
from benchmarks.libero_small import ABLATION, PROTOCOLS, STRATEGIES, SUITES, short, study_of
from benchmarks.output import command
from benchmarks.tables import METRICS, metric
from training.studies.arms import Arm

_Published: TypeAlias = Mapping[str, Mapping[str, tuple[float | None, ...]]]

#: Published: FWT, NBT, AUC. LIBERO's stream of ten tasks, ResNet-T (Liu et al. 2023, https://arxiv.org/abs/2306.03310,
#: table of the ResNet-T policy); None where a paper gives none.
_STREAM: _Published = {
    "sequential": {"object": (0.78, 0.76, 0.26), "goal": (0.77, 0.82, 0.22), "spatial": (0.72, 0.81, 0.20)},
    "er": {"object": (0.67, 0.43, 0.44), "goal": (0.64, 0.34, 0.49), "spatial": (0.65, 0.27, 0.56)},
    "ewc": {"object": (0.56, 0.69, 0.16), "goal": (0.32, 0.48, 0.06), "spatial": (0.23, 0.33, 0.06)},
    "packnet": {"object": (0.60, 0.17, 0.60), "goal": (0.63, 0.06, 0.75), "spatial": (0.55, 0.07, 0.63)},
}
#: Six tasks learned jointly, then four in turn: LOTUS (https://arxiv.org/abs/2311.02058) and M2Distill
#: (https://arxiv.org/abs/2410.00064).
_SIX_AND_FOUR: _Published = {
    "LOTUS": {"object": (0.74, 0.11, 0.65), "goal": (0.61, 0.30, 0.56)},
    "M2Distill": {"object": (None, 0.08, 0.69), "goal": (None, 0.20, 0.57)},
}
#: Strategies of the page's table of that protocol.
_SIX_FOUR = tuple(arm for arm in STRATEGIES if arm.name in ("sequential", "er", "m2distill"))
_COLUMNS = (metric("success after 10 tasks", "mean_final"), *METRICS)
_COLOURS = {
    "sequential": "#b0392e", "er": "#c98a1b", "ewc": "#7d5ba6", "packnet": "#5a6b7b", "m2distill": "#1f77a4",
}  # fmt: skip


def _runs(suite: str, arm: Arm, results: Path, protocol: str = "in_turn") -> list[dict[str, Any]]:
    return tables.runs_of(results / study_of(suite, protocol).name, arm)


def _rows(suite: str, arms: Sequence[Arm], results: Path, protocol: str = "in_turn") -> list[str]:
    return tables.rows(results / study_of(suite, protocol).name, arms, _COLUMNS)


def _published(title: str, table: _Published) -> list[str]:
    rows = [f"| {title} | {' | '.join(short(s).upper() for s in SUITES)} |", "|---|---|---|---|"]
    for name, suites in table.items():
        cells = []
        for suite in SUITES:
            figures = suites.get(short(suite))
            cells.append(" / ".join("-" if f is None else f"{f:.2f}" for f in figures) if figures else "-")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def seen_success(run: Mapping[str, Any]) -> list[float]:
    """Mean success over the tasks learned so far, after every stage."""
    return [float(np.mean(row)) for row in run["success"]]


def first_task_drift(run: Mapping[str, Any], view: str = "agentview_rgb") -> list[float]:
    """How far the first task's image latents have moved, as a share of their length, after every stage."""
    return [float(row[0][view]["relative"]) for row in run["drift"]] if run["drift"] else []


def commits(results: Path) -> list[str]:
    """The commits that the runs were trained at."""
    arms = (*STRATEGIES, *ABLATION)
    found = {
        stage["commit"] for protocol in PROTOCOLS for suite in SUITES for arm in arms
        for run in _runs(suite, arm, results, protocol) for stage in run["trained"]
    }  # fmt: skip
    return sorted(found)


def blocks(results: Path) -> dict[str, list[str]]:
    """The page's tables by name: lines of Markdown."""
    terms: list[str] = []
    asked = [suite for suite in SUITES if any(_runs(suite, arm, results) for arm in ABLATION)]
    for suite in asked or SUITES[:1]:
        title = f"LIBERO-{short(suite).upper()}:"
        terms += [title, "", *_rows(suite, (STRATEGIES[-1], *ABLATION), results), ""]
    joint: list[str] = []
    for suite in SUITES:
        table = _rows(suite, _SIX_FOUR, results, "six_four")
        joint += [f"LIBERO-{short(suite).upper()}:", "", *table, ""]
    made = commits(results)
    return {
        **{short(suite): _rows(suite, STRATEGIES, results) for suite in SUITES},
        "terms": terms[:-1],
        "six_four": joint[:-1],
        "published": [
            *_published("ten tasks in turn, ResNet-T (LIBERO)", _STREAM), "",
            *_published("six jointly, then four in turn", _SIX_AND_FOUR),
        ],
        "commits": [f"Trained at {', '.join(f'`{commit}`' for commit in made)}." if made else "Nothing was run yet."],
    }  # fmt: skip


def fill(page: str, results: Path) -> str:
    """``page`` with everything between ``<!-- name -->`` and ``<!-- end -->`` written anew."""
    return tables.fill(page, blocks(results))


def draw(results: Path, out: Path) -> None:
    """docs/results.svg: a column a suite, success above and drift below; the mean over seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "m2distill"  # the same picture for the same figures
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(2, len(SUITES), sharex=True, sharey="row", squeeze=False)
    for column, suite in enumerate(SUITES):
        above, below = axes[0][column], axes[1][column]
        for arm in STRATEGIES:
            runs = _runs(suite, arm, results)
            for axis, curve in ((above, seen_success), (below, first_task_drift)):
                lines = [curve(run) for run in runs]
                if lines and lines[0]:
                    mean = np.mean(np.array(lines), axis=0)
                    axis.plot(
                        np.arange(1, len(mean) + 1), mean, color=_COLOURS[arm.name], label=arm.name, linewidth=1.8
                    )
        if not above.lines:
            above.text(0.5, 0.5, tables.NOT_RUN, transform=above.transAxes, ha="center", color="#888888")
        above.set_title(f"LIBERO-{short(suite).upper()}", fontsize=10)
        above.set_ylim(0, 1.02)
        below.set_xlabel("tasks learned")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("success, tasks so far")
    axes[1][0].set_ylabel("drift of the first\ntask's image latents")
    handles = {line.get_label(): line for row in axes for axis in row for line in axis.lines}
    if handles:
        figure.legend(
            list(handles.values()), list(map(str, handles)), loc="outside lower center", ncols=5, frameon=False
        )
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Write the page and draw its picture."""
    results, page = tables.main(__doc__, Path("docs/results.md"), fill)
    draw(results, page.with_suffix(".svg"))


if __name__ == "__main__":
    command(main)
