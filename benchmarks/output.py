"""What benchmark commands share: handling of errors, the parser, the option ``--out`` and percentiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import M2DistillError
from m2distill_policy.streams import flush_or_discard


def command(main: Callable[[], object]) -> None:
    """Run ``main`` as the command of its module.

    An error of this package ends the command with a one-line message. A closed output pipe ends it silently.
    """
    try:
        main()
        sys.stdout.flush()
    except M2DistillError as error:
        sys.exit(f"benchmarks.{Path(sys.argv[0]).stem}: {error}")
    except BrokenPipeError:  # head, less
        flush_or_discard()
        sys.exit(141)


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a command from its module's docstring, which ends with an example."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that every measurement has."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON to this file")


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Return the median, the 95th and 99th percentile and the longest of some durations (s), in milliseconds."""
    values = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99, 100])
    return {name: round(float(v), 3) for name, v in zip(("median", "p95", "p99", "longest"), values, strict=True)}
