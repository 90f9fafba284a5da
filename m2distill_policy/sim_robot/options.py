"""The options that the simulated robot's two commands share: on plain DDS and on ROS 2."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.options import LARGEST_SEED, LONGEST_WAIT, MANY, real, whole


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that do not depend on what carries the messages."""
    parser.add_argument("--suite", default="tabletop", help="(default: %(default)s)")
    parser.add_argument(
        "--task",
        type=whole("--task", 0, MANY),
        default=0,
        help="number of the task in its suite (default: %(default)s)",
    )
    parser.add_argument("--instruction", help="what the policy is told (default: the task's own instruction)")
    parser.add_argument(
        "--drive",
        choices=("osc", "velocity"),
        default="osc",
        help="follow set-points as in training, or ~/twist as a velocity-driven arm does (default: %(default)s)",
    )
    parser.add_argument(
        "--set-point",
        choices=("action", "target_pose"),
        default="action",
        help="where the drive osc takes its set-points from: ~/action or ~/target_pose (default: %(default)s)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--lockstep", action="store_true", help="wait for every answer: reproducible (default)")
    pace.add_argument("--real-time", action="store_true", help="physics goes on at its own pace, whatever happens")
    parser.add_argument("--rollouts", type=whole("--rollouts", 1, MANY), default=1, help="(default: %(default)s)")
    parser.add_argument(
        "--first", type=whole("--first", 0, MANY), default=0, help="number of the first rollout (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="initial states are those of 'm2distill evaluate --seed'",
    )
    parser.add_argument(
        "--purpose", choices=("reported", "selection"), default="reported", help="which initial states (see evaluate)"
    )
    parser.add_argument(
        "--size", type=whole("--size", 1, 4096), help="pixels of a view's side (default: the bundle's, or 128)"
    )
    parser.add_argument("--bundle", type=Path, help="see what this bundle was trained on: size, and whether it fits")
    parser.add_argument("--visuals", default="fast", help="profile of the images (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=real("--timeout", 0, LONGEST_WAIT),
        default=60.0,
        metavar="S",
        help="wait so long for the policy (default: %(default)s)",
    )
    parser.add_argument(
        "--command-timeout",
        type=real("--command-timeout", 0, LONGEST_WAIT),
        default=0.2,
        metavar="S",
        help="in real time, hold still after so long without a command (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--record-actions", action="store_true", help="put every action into --out")
