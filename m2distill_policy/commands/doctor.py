"""``m2distill doctor``: what this machine can do, and how to get what is missing."""

from __future__ import annotations

import argparse

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help=SUMMARIES["doctor"],
        description="Try what the other commands need: headless rendering, GPU providers, DDS, ROS 2, LIBERO's scenes, "
        "text encoders, disk and cores. Exit code 1 where something is missing that 'make demo' needs.",
        epilog="example: m2distill doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 when nothing is missing that the demo needs, else 1."""
    from m2distill_policy.doctor import as_json, as_text, examine

    findings = examine()
    print(as_json(findings) if args.json else as_text(findings))
    return 1 if any(finding.state == "missing" for finding in findings) else 0
