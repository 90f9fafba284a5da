"""``m2distill demo``: the whole road on this machine, from nothing to a robot that moves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2distill_policy.commands import SUMMARIES

#: In a checkout, and where an installation has put it.
_PLACES = (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "m2distill_policy")
_CONFIG = next((p for place in _PLACES if (p := place / "config" / "tiny.toml").exists()), Path("config/tiny.toml"))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help=SUMMARIES["demo"],
        description=(
            "Collect demonstrations, learn tasks in turn with and without distillation, export, evaluate, serve the "
            "policy to a simulated robot and swap its weights while it moves. Stopped, it goes on where it was."
        ),
        epilog="example: m2distill demo --out runs/demo",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: runs/demo)"
    )
    parser.add_argument("--config", type=Path, default=_CONFIG, help="configuration of the runs (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Walk the road."""
    from training.end_to_end import Demo

    return Demo(args.out, args.config, tuple(args.overrides)).walk()
