"""``m2distill export``: export a trained stage as a bundle for a robot."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import say_next
from m2distill_policy.commands import SUMMARIES, _own_strategies
from m2distill_policy.options import MANY, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help=SUMMARIES["export"],
        description="Export one stage as a bundle: ONNX graphs, contract and hashes. 'm2distill train' does this "
        "after every stage, into RUN/bundles. Nothing is written unless ONNX Runtime and torch agree to "
        "1e-4 on real images.",
        epilog="examples:\n"
        "  m2distill export runs/first --stage 2 --out bundles/first\n"
        "  m2distill export runs/first --precision int8 --out bundles/first-int8",
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument(
        "--stage",
        type=whole("--stage", 0, MANY),
        help="number of the stage; 0 is the first (default: the last trained one)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="int8: image encoders in 8 bits, two to three times faster on a CPU; evaluate such a bundle before you "
        "use it (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export the stage, and print the largest difference between ONNX Runtime and torch."""
    _own_strategies.load(args)
    from m2distill_policy.errors import ExportError
    from training.lifelong.run import LifelongRun
    from training.lifelong.stage_bundle import export_stage

    lifelong = LifelongRun.open(args.run_folder)
    trained = [stage for stage in range(lifelong.stages) if lifelong.trained(stage)]
    if not trained:
        raise ExportError(
            f"{args.run_folder} has no trained stage yet; train it: m2distill train --resume --out {args.run_folder}"
        )
    stage = trained[-1] if args.stage is None else args.stage
    if stage not in trained:
        raise ExportError(f"stage {stage} of {args.run_folder} is not trained; trained are {trained}")
    parity = export_stage(lifelong, stage, args.out, precision=args.precision, overwrite=args.overwrite)
    print(f"{args.out}: stage {stage}, largest difference between ONNX Runtime and torch {parity.largest:.1e}")
    if parity.int8 is not None:
        print(
            f"int8 and fp32 over {parity.int8.steps} steps: actions, of [-1, 1], differ by {parity.int8.mean:.3f} on "
            f"average and {parity.int8.largest:.3f} at most"
        )
    say_next("evaluate", args.out, "--out", f"results/{args.out.name}")
    return 0
