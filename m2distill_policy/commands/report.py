"""``m2distill report``: compare runs in a table and an HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy.arguments import say_next
from m2distill_policy.commands import SUMMARIES, _own_strategies


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help=SUMMARIES["report"],
        description="Compare finished runs: success of each task after each stage, rate of wrong objects, forward "
        "transfer (FWT), negative backward transfer (NBT), area under the curve (AUC), and drift of the "
        "latents.",
        epilog="example:\n  m2distill report runs/sequential runs/m2distill --latents --out report.html",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="HTML file to write (default: report.html)"
    )
    parser.add_argument("--latents", action="store_true", help="also plot how the latents of each task moved (t-SNE)")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the HTML page and print the table."""
    _own_strategies.load(args)
    from m2distill_policy.storage import write_atomic
    from training.lifelong.records import RunResults, read_record
    from training.report.page import build_page, distinct_labels, text_table
    from training.report.rows import loss_rows

    results = distinct_labels([read_record(RunResults, folder / "results.json") for folder in args.runs])
    losses = {r.label: loss_rows(folder) for r, folder in zip(results, args.runs, strict=True)}
    charts: list[str] = []
    if args.latents:
        from training.lifelong.run import LifelongRun
        from training.report.latents import latent_charts

        for result, folder in zip(results, args.runs, strict=True):
            print(f"latents of {folder}", file=sys.stderr, flush=True)
            charts += latent_charts(LifelongRun.open(folder), result.label)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = build_page(results, title="Lifelong imitation learning", losses=losses, latents=charts)
    write_atomic(args.out, page.encode())
    print(text_table(results))
    print(f"page, for a web browser: {args.out}")
    say_next("serve", args.runs[-1])
    return 0
