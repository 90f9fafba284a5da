"""``m2distill demo``: the whole pipeline on this machine, from demonstrations to a served policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import add_overrides, say_next, training_config
from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help=SUMMARIES["demo"],
        description=(
            "Collect demonstrations, train on three tasks in turn with and without distillation, export, evaluate, "
            "serve the policy to a simulated robot and swap its weights while the robot moves. About ten minutes on "
            "two cores. If it is stopped, the same command continues."
        ),
        epilog="example:\n  m2distill demo --out runs/demo",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all files (default: runs/demo)")
    parser.add_argument(
        "--config", type=training_config, default="tiny", help="TOML or YAML file, or a profile (default: tiny)"
    )
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from training.end_to_end import Demo

    code = Demo(args.out, args.config, tuple(args.overrides)).run()
    if code == 0:
        say_next("info", args.out / "m2distill")
    return code
