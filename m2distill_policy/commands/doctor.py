"""``m2distill doctor``: check this machine, and say how to install what is missing."""

from __future__ import annotations

import argparse

from m2distill_policy.arguments import say_next
from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help=SUMMARIES["doctor"],
        description="Check what the other commands need: installed packages and their versions, headless rendering, "
        "GPU, DDS, "
        "ROS 2, LIBERO's scenes, text encoders, disk and cores. Exit code 1 if something is missing that "
        "'m2distill demo' needs.",
        epilog="example:\n  m2distill doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Return 0 if everything that 'm2distill demo' needs is there, else 1."""
    from m2distill_policy.doctor import as_json, as_text, examine, missing_for

    findings = examine()
    print(as_json(findings) if args.json else as_text(findings))
    if not missing_for("demo", findings):
        say_next("demo")
    elif not missing_for("serve", findings):
        say_next("serve", "BUNDLE", "--shadow")
    return 1 if any(finding.state == "missing" for finding in findings) else 0
