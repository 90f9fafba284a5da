"""``m2distill report``: runs side by side, as a table and as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help=SUMMARIES["report"],
        description="Compare finished runs: success matrices, wrong-object rates, FWT, NBT, AUC, latent drift.",
        epilog="example: m2distill report runs/sequential runs/m2distill --out report.html",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and print the table."""
    from training.lifelong.checkpoint import read_json
    from training.report.page import build_page, distinct_labels, text_table
    from training.report.rows import loss_rows

    results = distinct_labels([read_json(folder / "results.json") for folder in args.runs])
    losses = {r["label"]: loss_rows(folder) for r, folder in zip(results, args.runs, strict=True)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(build_page(results, title="Lifelong imitation learning", losses=losses), encoding="utf-8")
    print(text_table(results))
    print(f"page: {args.out}")
    return 0
