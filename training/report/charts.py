"""Charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.lifelong.records import Drift


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # No metadata: it contains web addresses, and a date would make every page different.
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def cell_matrix(rows: Sequence[Sequence[float | None]], count: int) -> np.ndarray:
    """Return a square array (stage, task) of rates; NaN where nothing was measured."""
    matrix = np.full((count, count), np.nan)
    for i, row in enumerate(rows):
        for j, value in enumerate(row[:count]):
            if value is not None:
                matrix[i, j] = value
    return matrix


def heatmap(rows: Sequence[Sequence[float | None]], names: Sequence[str], title: str, *, bad: bool = False) -> str:
    """Draw rates as a heatmap.

    Args:
        rows: Rates in [0, 1]: a row for each stage, a column for each task.
        names: Names of the tasks.
        title: Title of the chart.
        bad: Whether high rates are bad, and coloured red instead of green.

    Returns:
        The SVG.
    """
    count = len(names)
    matrix = cell_matrix(rows, count)
    figure, axis = plt.subplots(figsize=(1.0 + 0.72 * count, 1.0 + 0.62 * count))
    axis.imshow(np.ma.masked_invalid(matrix), vmin=0, vmax=1, cmap="Reds" if bad else "Greens", aspect="auto")
    for i in range(count):
        for j in range(count):
            if np.isfinite(matrix[i, j]):
                axis.text(
                    j,
                    i,
                    f"{matrix[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if matrix[i, j] > 0.6 else "#222",
                )
    axis.set_xticks(range(count), [f"{j + 1}" for j in range(count)])
    axis.set_yticks(range(count), [f"after {i + 1}" for i in range(count)])
    axis.set_xlabel("task")
    axis.set_title(title, fontsize=10)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0)
    return _svg(figure)


def drift_chart(drift: Sequence[Sequence[Mapping[str, Drift]]], title: str) -> str:
    """Draw the relative L2 drift of the first task's latents after every stage, one line for each modality."""
    figure, axis = plt.subplots(figsize=(4.2, 2.8))
    if drift:
        for name in drift[0][0]:
            axis.plot(range(1, len(drift) + 1), [row[0][name].relative for row in drift], marker="o", label=name)
    axis.set_xticks(range(1, len(drift) + 1))
    axis.set_xlabel("stages learned")
    axis.set_ylabel("distance / norm")
    axis.set_title(title, fontsize=10)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return _svg(figure)


def loss_chart(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw the behaviour cloning loss over all stages, from logged rows (see :mod:`training.report.rows`)."""
    figure, axis = plt.subplots(figsize=(4.2, 2.4))
    offset = 0
    for stage in sorted({row["stage"] for row in rows}):
        mine = [row for row in rows if row["stage"] == stage]
        axis.plot([offset + row["step"] for row in mine], [row["bc"] for row in mine], lw=1)
        offset += max(row["step"] for row in mine)
    axis.set_xlabel("step")
    axis.set_ylabel("negative log-likelihood")
    axis.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return _svg(figure)


def curves_chart(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Draw success against the level of a disturbance: a panel for each kind, a line for each bundle.

    Args:
        found: Bundle -> kind of disturbance -> level -> success rate.
    """
    kinds = list(dict.fromkeys(kind for curves in found.values() for kind in curves))
    columns = min(3, max(1, len(kinds)))
    rows = -(-len(kinds) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.1 * rows), sharex=True, sharey=True, squeeze=False
    )
    for panel, kind in zip(panels.flat, kinds, strict=False):
        for name, curves in found.items():
            levels = sorted(curves.get(kind, {}), key=float)
            panel.plot([float(v) for v in levels], [curves[kind][v] for v in levels], marker="o", ms=3, label=name)
        panel.set_title(kind, fontsize=9)
        panel.set_ylim(-0.03, 1.03)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    panels[0, 0].legend(fontsize=7, frameon=False)
    figure.supxlabel("level", fontsize=9)
    figure.supylabel("success", fontsize=9)
    figure.tight_layout()
    return _svg(figure)


def scatter_chart(
    moved: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], names: Sequence[str], title: str
) -> str:
    """Draw the latents of all tasks in two dimensions, in one colour for each task.

    Args:
        moved: For each task, the positions (N, 2) of its latents when it was learned (drawn as rings) and at the end
            of the run (crosses).
        names: Names of the tasks.
        title: Title of the chart.
    """
    figure, axis = plt.subplots(figsize=(3.4, 3.4))
    for (early, late), name in zip(moved, names, strict=True):
        ring = axis.scatter(early[:, 0], early[:, 1], s=12, marker="o", facecolors="none", linewidths=0.7, label=name)
        ring.set_edgecolor(colour := f"C{len(axis.collections) // 2}")
        axis.scatter(late[:, 0], late[:, 1], s=9, marker="x", linewidths=0.7, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.02))
    return _svg(figure)
