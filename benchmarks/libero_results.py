"""Update the tables of docs/results.md and draw docs/results.svg.

The figures come from :mod:`benchmarks.libero_small`, except the published ones. A row without finished runs says so.

Example:
    python -m benchmarks.libero_results
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks import tables
from benchmarks.libero_small import ABLATION, ARMS, PROTOCOLS, STRATEGIES, SUITES, short_name, study_name
from benchmarks.output import command
from benchmarks.result_files import RunResult, read_runs
from benchmarks.svg import svg_settings, write_svg
from benchmarks.tables import METRICS, metric
from training.studies.study import Arm

_Published: TypeAlias = Mapping[str, Mapping[str, tuple[float | None, ...]]]

#: Published FWT, NBT and AUC for LIBERO's ten tasks one after another, with ResNet-T (Liu et al. 2023,
#: https://arxiv.org/abs/2306.03310, table of the ResNet-T policy); None if the paper gives no value.
_STREAM: _Published = {
    "sequential": {"object": (0.78, 0.76, 0.26), "goal": (0.77, 0.82, 0.22), "spatial": (0.72, 0.81, 0.20)},
    "er": {"object": (0.67, 0.43, 0.44), "goal": (0.64, 0.34, 0.49), "spatial": (0.65, 0.27, 0.56)},
    "ewc": {"object": (0.56, 0.69, 0.16), "goal": (0.32, 0.48, 0.06), "spatial": (0.23, 0.33, 0.06)},
    "packnet": {"object": (0.60, 0.17, 0.60), "goal": (0.63, 0.06, 0.75), "spatial": (0.55, 0.07, 0.63)},
}
#: Published FWT, NBT and AUC for six tasks learned jointly, then four one after another: LOTUS
#: (https://arxiv.org/abs/2311.02058) and M2Distill (https://arxiv.org/abs/2410.00064).
_SIX_AND_FOUR: _Published = {
    "LOTUS": {"object": (0.74, 0.11, 0.65), "goal": (0.61, 0.30, 0.56)},
    "M2Distill": {"object": (None, 0.08, 0.69), "goal": (None, 0.20, 0.57)},
}
#: Strategies in the page's table of the protocol ``six_four``.
_SIX_FOUR = tuple(arm for arm in STRATEGIES if arm.name in ("sequential", "er", "m2distill"))
_COLUMNS = (metric("success after 10 tasks", "mean_final"), *METRICS)
_COLOURS = {
    "sequential": "#b0392e", "er": "#c98a1b", "ewc": "#7d5ba6", "packnet": "#5a6b7b", "m2distill": "#1f77a4",
}  # fmt: skip


def _file(suite: str, results: Path, protocol: str = "in_turn") -> Path:
    return results / f"{study_name(suite, protocol)}.jsonl"


def _rows(suite: str, arms: Sequence[Arm], results: Path, protocol: str = "in_turn") -> list[str]:
    return tables.rows(_file(suite, results, protocol), arms, _COLUMNS)


def _published(title: str, table: _Published) -> list[str]:
    rows = [f"| {title} | {' | '.join(short_name(s).upper() for s in SUITES)} |", "|---|---|---|---|"]
    for name, suites in table.items():
        cells = []
        for suite in SUITES:
            figures = suites.get(short_name(suite))
            cells.append(" / ".join("-" if f is None else f"{f:.2f}" for f in figures) if figures else "-")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def success_so_far(run: RunResult) -> list[float]:
    """Return the mean success rate over the tasks learned so far, after every stage."""
    return [float(np.mean(row)) for row in run.success]


def first_task_drift(run: RunResult, view: str = "agentview_rgb") -> list[float]:
    """Return the relative drift of the first task's image latents, after every stage."""
    return [row[0] for row in run.drift.get(view, [])]


def commits(results: Path) -> list[str]:
    """Return the commits at which the runs were trained."""
    files = [_file(suite, results, protocol) for suite in SUITES for protocol in PROTOCOLS]
    names = [arm.name for arm in ARMS]
    runs = [run for file in files for run in read_runs(file) if run.arm in names]
    return sorted({origin.commit for run in runs for origin in run.trained})


def blocks(results: Path) -> dict[str, list[str]]:
    """Return the page's tables by name, as lines of Markdown."""
    terms: list[str] = []
    measured = [suite for suite in SUITES if any(tables.runs_of(_file(suite, results), arm) for arm in ABLATION)]
    for suite in measured or SUITES[:1]:
        title = f"LIBERO-{short_name(suite).upper()}:"
        terms += [title, "", *_rows(suite, (STRATEGIES[-1], *ABLATION), results), ""]
    joint: list[str] = []
    for suite in SUITES:
        table = _rows(suite, _SIX_FOUR, results, "six_four")
        joint += [f"LIBERO-{short_name(suite).upper()}:", "", *table, ""]
    made = commits(results)
    return {
        **{short_name(suite): _rows(suite, STRATEGIES, results) for suite in SUITES},
        "terms": terms[:-1],
        "six_four": joint[:-1],
        "published": [
            *_published("ten tasks in turn, ResNet-T (LIBERO)", _STREAM), "",
            *_published("six jointly, then four in turn", _SIX_AND_FOUR),
        ],
        "commits": [f"Trained at {', '.join(f'`{commit}`' for commit in made)}." if made else "No run is finished."],
    }  # fmt: skip


def fill(page: str, results: Path) -> str:
    """Replace the page's tables."""
    return tables.fill(page, blocks(results))


def draw(results: Path, out: Path) -> None:
    """Draw success (top) and drift (bottom) over the learned tasks, in one column per suite.

    Lines are means over seeds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(2, len(SUITES), sharex=True, sharey="row", squeeze=False)
    for column, suite in enumerate(SUITES):
        above, below = axes[0][column], axes[1][column]
        for arm in STRATEGIES:
            runs = tables.runs_of(_file(suite, results), arm)
            for axis, curve in ((above, success_so_far), (below, first_task_drift)):
                lines = [curve(run) for run in runs]
                if lines and lines[0]:
                    mean = np.mean(np.array(lines), axis=0)
                    axis.plot(
                        np.arange(1, len(mean) + 1), mean, color=_COLOURS[arm.name], label=arm.name, linewidth=1.8
                    )
        if not above.lines:
            above.text(0.5, 0.5, tables.NOT_RUN, transform=above.transAxes, ha="center", color="#888888")
        above.set_title(f"LIBERO-{short_name(suite).upper()}", fontsize=10)
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
    drawn = io.StringIO()
    with svg_settings():
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_svg(out, drawn.getvalue())


def main() -> None:
    """Update the page and its chart."""
    results, page = tables.main(__doc__, Path("docs/results.md"), fill)
    draw(results, page.with_suffix(".svg"))


if __name__ == "__main__":
    command(main)
