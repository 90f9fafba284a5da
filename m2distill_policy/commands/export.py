"""``m2distill export``: one stage of a run becomes a bundle that a robot loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help=SUMMARIES["export"],
        description="Export one stage. Nothing is written unless ONNX Runtime and torch agree to 1e-4 on real frames.",
        epilog="examples:\n"
        "  m2distill export runs/first --stage 2 --out bundles/first\n"
        "  m2distill export runs/first --precision int8 --out bundles/first-int8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument(
        "--stage", type=whole("--stage", 0, MANY), help="stage, 0 is the first task (default: the last one trained)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="int8: the image encoders in 8 bits, two to three times faster on a CPU; evaluate it before you rely on "
        "it (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and say how far the two runtimes differ."""
    _own_strategies.load(args)
    from m2distill_policy.errors import ExportError
    from training.lifelong.run import LifelongRun
    from training.lifelong.stage_bundle import export_stage

    lifelong = LifelongRun.open(args.run_folder)
    trained = [stage for stage in range(lifelong.stages) if lifelong.trained(stage)]
    if not trained:
        raise ExportError(f"{args.run_folder} has no trained stage yet; train it with 'm2distill train --resume'")
    stage = trained[-1] if args.stage is None else args.stage
    if stage not in trained:
        raise ExportError(f"stage {stage} of {args.run_folder} is not trained; trained are {trained}")
    parity = export_stage(lifelong, stage, args.out, precision=args.precision, overwrite=args.overwrite)
    print(f"{args.out}: stage {stage}, largest difference between ONNX Runtime and torch {parity.largest:.1e}")
    if parity.int8 is not None:
        print(
            f"int8 beside fp32 over {parity.int8.steps} steps: the action differs by {parity.int8.mean:.3f} on average "
            f"and {parity.int8.largest:.3f} at most, of [-1, 1]"
        )
    return 0
