"""How every measurement begins, ends and is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy import provenance
from m2distill_policy.errors import M2DistillError
from m2distill_policy.streams import give_up_what_cannot_be_written


def command(main: Callable[[], object]) -> None:
    """Run ``main`` as the command of its module: an error of ours is one sentence, a reader that has gone is none."""
    try:
        main()
        sys.stdout.flush()
    except M2DistillError as error:
        sys.exit(f"benchmarks.{Path(sys.argv[0]).stem}: {error}")
    except BrokenPipeError:  # head, less
        give_up_what_cannot_be_written()
        sys.exit(141)


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that every measurement has."""
    parser.add_argument("--out", type=Path, help="write the JSON here as well as to the terminal")


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Median, 95th and 99th percentile and the longest, in milliseconds."""
    values = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99, 100])
    return {name: round(float(v), 3) for name, v in zip(("median", "p95", "p99", "longest"), values, strict=True)}


def write(name: str, config: dict[str, Any], figures: dict[str, Any], out: Path | None) -> None:
    """Print the measurement as JSON and, where asked, write it to a file."""
    text = json.dumps({"benchmark": name, "config": config, "figures": figures, **provenance.describe()}, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
