"""Make ``report.html``, a page that loads nothing from the network, and a table of results for a terminal."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2distill_policy.tables import format_table
from training.lifelong.records import RunResults
from training.report.charts import drift_chart, heatmap, loss_chart

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse} td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left} .row{display:flex;flex-wrap:wrap;gap:1.2rem;align-items:flex-start}
.small{color:#666;font-size:13px} figure{margin:0} figcaption{font-size:13px;color:#555}
pre{background:#f6f6f6;padding:.7rem;overflow:auto}
video,img{max-width:100%;border-radius:4px}
"""

METRICS = (
    ("mean_final", "mean success at the end"),
    ("fwt", "FWT"),
    ("nbt", "NBT"),
    ("auc", "AUC"),
)


def _data_uri(path: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def embedded(path: Path, caption: str) -> str:
    """Return the HTML of a video or an image with its data inside."""
    kinds = {
        ".mp4": "video/mp4",
        ".webm": "video/webm",
        ".png": "image/png",
        ".gif": "image/gif",
        ".webp": "image/webp",
    }
    mime = kinds[path.suffix]
    uri = _data_uri(path, mime)
    inner = (
        f'<video src="{uri}" autoplay loop muted playsinline controls></video>'
        if mime.startswith("video")
        else f'<img src="{uri}" alt="">'
    )
    return f"<figure>{inner}<figcaption>{html.escape(caption)}</figcaption></figure>"


def metrics_table(results: Sequence[RunResults]) -> str:
    """Return the HTML table of the lifelong metrics, one row for each run."""
    head = "".join(f"<th>{label}</th>" for _, label in METRICS)
    rows = []
    for result in results:
        cells = "".join(f"<td>{_share(result.metrics[key])}</td>" for key, _ in METRICS)
        wrong = [value for value in result.wrong_object[-1] if value is not None]
        rows.append(
            f"<tr><td>{html.escape(result.label)}</td>{cells}<td>{sum(wrong) / max(1, len(wrong)):.2f}</td>"
            f"<td>{result.bytes_kept / 2**20:.2f} MiB</td><td>{result.errors}</td></tr>"
        )
    return (
        f"<table><tr><th>run</th>{head}<th>wrong object at the end</th><th>memory size</th><th>errors</th></tr>"
        + "".join(rows)
        + "</table>"
    )


def build_page(
    results: Sequence[RunResults],
    *,
    title: str,
    videos: Sequence[tuple[Path, str]] = (),
    images: Sequence[tuple[Path, str]] = (),
    served: Mapping[str, Any] | None = None,
    losses: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    latents: Sequence[str] = (),
) -> str:
    """Return the HTML of the page.

    Args:
        results: Results of the runs.
        title: Title of the page.
        videos: Video files of rollouts, with captions.
        images: Image files of the views, with captions.
        served: Results of the rollouts over DDS.
        losses: Label of a run -> logged rows of the run.
        latents: Charts of latents, as SVG.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    if results:
        first = results[0]
        tasks = max((_names(r) for r in results), key=len)
        parts.append(
            f"<p class=small>commit {html.escape(str(first.commit))}, {first.rollouts} rollouts a cell from "
            f"held-out initial states, sampling {html.escape(first.sampling)}</p><ol>"
            + "".join(f"<li>{html.escape(t)}</li>" for t in tasks)
            + "</ol>"
        )
        parts += ["<h2>Success: rows are stages, columns are tasks</h2><div class=row>"]
        parts += [heatmap(r.success, _names(r), r.label) for r in results]
        parts += ["</div><h2>Wrong object lifted</h2><div class=row>"]
        parts += [heatmap(r.wrong_object, _names(r), r.label, bad=True) for r in results]
        parts += ["</div><h2>Lifelong metrics</h2>", metrics_table(results)]
        parts += ["<h2>Drift of the first task's latents</h2><div class=row>"]
        parts += [drift_chart(r.drift, r.label) for r in results]
        parts += ["</div>"]
        if latents:
            parts += ["<h2>Latents of every task: rings as they were learned, crosses at the end (t-SNE)</h2>"]
            parts += ["<div class=row>", *latents, "</div>"]
        if losses:
            parts += ["<h2>Training</h2><div class=row>"]
            parts += [loss_chart(rows, label) for label, rows in losses.items()]
            parts += ["</div>"]
    if videos:
        parts += ["<h2>Rollouts</h2><div class=row>", *[embedded(p, c) for p, c in videos], "</div>"]
    if images:
        parts += ["<h2>What the cameras see</h2><div class=row>", *[embedded(p, c) for p, c in images], "</div>"]
    if served:
        parts += ["<h2>Served over DDS</h2><pre>", html.escape(json.dumps(served, indent=2)), "</pre>"]
    if results:
        about = {"versions": first.versions, "machine": first.machine, "seed": first.seed}
        parts += ["<h2>Where this comes from</h2><pre>", html.escape(json.dumps(about, indent=2)), "</pre>"]
    return "".join(parts) + "</html>"


def _share(value: float | None) -> str:
    return "--" if value is None else f"{value:.2f}"


def _names(result: RunResults) -> list[str]:
    return [task.instruction for task in result.tasks]


def distinct_labels(results: Sequence[RunResults]) -> list[RunResults]:
    """Return the results with unique labels. Equal labels get the seed, and if they are still equal the run's name."""
    named = list(results)
    for more in ("seed {r.seed}", "{r.run}"):
        seen = Counter(r.label for r in named)
        named = [
            dataclasses.replace(r, label=f"{r.label}, {more.format(r=r)}") if seen[r.label] > 1 else r for r in named
        ]
    return named


def text_table(results: Sequence[RunResults]) -> str:
    """Return a table of results for a terminal, with the success matrix of each run."""
    rows: list[tuple[str, ...]] = [("run", "mean", "FWT", "NBT", "AUC", "wrong object", "memory MiB")]
    for r in results:
        wrong = [v for v in r.wrong_object[-1] if v is not None]
        rates = [_share(r.metrics[name]) for name, _ in METRICS]
        rows.append((r.label, *rates, f"{sum(wrong) / max(1, len(wrong)):.2f}", f"{r.bytes_kept / 2**20:.2f}"))
    lines = [format_table(rows, "<>>>>>>")]
    for r in results:
        lines.append(f"\nsuccess of {r.label} (rows: after task, columns: task)")
        lines += ["  " + " ".join("  -- " if v is None else f"{v:5.2f}" for v in row) for row in r.success]
    return "\n".join(lines)
