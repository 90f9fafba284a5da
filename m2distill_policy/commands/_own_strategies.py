"""The option ``--import``: strategies of one's own, for every command that reads a run's configuration."""

from __future__ import annotations

import argparse


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--import`` to a command."""
    parser.add_argument(
        "--import",
        dest="import_sources",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python file or module that defines a strategy of your own; its code is run. May be given several times",
    )


def load(args: argparse.Namespace) -> None:
    """Import what ``--import`` names; without the option, nothing is imported."""
    if args.import_sources:
        from training.lifelong.strategies import import_strategies

        import_strategies(args.import_sources)
