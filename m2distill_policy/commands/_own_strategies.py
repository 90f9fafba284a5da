"""The option ``--import`` of commands that read a run's configuration: it loads user-defined strategies."""

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
    """Import the files and modules that ``--import`` names, if the option is given."""
    if args.import_sources:
        from training.lifelong.strategies import import_strategies

        import_strategies(args.import_sources)
