"""Make the overview image of a demo: ``python -m training.report.overview runs/demo docs/overview.png``."""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as imageio
import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from training.lifelong.records import RunResults, read_record
from training.report.charts import cell_matrix

#: Number of frames of a video that are shown side by side.
FRAMES = 5


def _strip(video: Path) -> np.ndarray:
    frames = imageio.imread(video, plugin="FFMPEG")
    chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    return np.concatenate([frames[i] for i in chosen], axis=1)


def _matrix(axis: Axes, result: RunResults, title: str) -> None:
    count = len(result.tasks)
    matrix = cell_matrix(result.success, count)
    axis.imshow(np.ma.masked_invalid(matrix), vmin=0, vmax=1, cmap="Greens")
    for i in range(count):
        for j in range(i + 1):
            colour = "white" if matrix[i, j] > 0.6 else "#222"
            axis.text(j, i, f"{matrix[i, j]:.1f}", ha="center", va="center", fontsize=13, color=colour)
    axis.set_xticks(range(count), [f"task {j + 1}" for j in range(count)])
    axis.set_yticks(range(count), [f"after {i + 1}" for i in range(count)])
    axis.set_title(title, fontsize=12)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def main(demo: Path, out: Path) -> None:
    """Draw video frames of the last policy on every task, and the success matrices of both strategies.

    Args:
        demo: Folder of a finished ``m2distill demo``.
        out: Image file to write.
    """
    results = {name: read_record(RunResults, demo / name / "results.json") for name in ("sequential", "m2distill")}
    tasks = results["m2distill"].tasks
    videos = [next((demo / "videos").rglob(f"{task.name}-*.mp4")) for task in tasks]
    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))  # type: ignore[misc]
    for axis, video, task in zip(np.atleast_1d(left.subplots(len(videos), 1)), videos, tasks, strict=True):
        axis.imshow(_strip(video))
        axis.set_title(f"“{task.instruction}”", fontsize=12, loc="left")
        axis.axis("off")
    axes = right.subplots(2, 1)
    _matrix(axes[0], results["sequential"], "success, fine-tuning in turn")
    _matrix(axes[1], results["m2distill"], "success, m2distill")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
