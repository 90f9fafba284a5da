"""Command line options of the simulated robot, the same on plain DDS and on ROS 2."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.options import LARGEST_SEED, LONGEST_WAIT, MANY, real, whole


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that do not depend on the transport."""
    parser.add_argument("--suite", default="tabletop", help="suite of the task (default: %(default)s)")
    parser.add_argument(
        "--task",
        type=whole("--task", 0, MANY),
        default=0,
        help="number of the task in its suite (default: %(default)s)",
    )
    parser.add_argument("--instruction", help="instruction for the policy (default: the task's own)")
    parser.add_argument(
        "--drive",
        choices=("osc", "velocity"),
        default="osc",
        help="how the arm is driven: osc follows set-points (operational space control, as in training), "
        "velocity follows ~/twist (default: %(default)s)",
    )
    parser.add_argument(
        "--set-point",
        choices=("action", "target_pose"),
        default="action",
        help="topic of the set-points for --drive osc: ~/action, relative, or ~/target_pose, absolute "
        "(default: %(default)s)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--lockstep", action="store_true", help="wait for every answer; reproducible (default)")
    pace.add_argument("--real-time", action="store_true", help="simulate in real time, whether answers come or not")
    parser.add_argument(
        "--rollouts", type=whole("--rollouts", 1, MANY), default=1, help="number of rollouts (default: %(default)s)"
    )
    parser.add_argument(
        "--first", type=whole("--first", 0, MANY), default=0, help="number of the first rollout (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="seed of the initial states, as in 'm2distill evaluate --seed' (default: %(default)s)",
    )
    parser.add_argument(
        "--purpose",
        choices=("reported", "selection"),
        default="reported",
        help="set of initial states: reported, as in 'm2distill evaluate', or selection, on which training "
        "chooses checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=whole("--size", 1, 4096),
        help="height and width of a view in pixels (default: those of the bundle, or of the pretrained policy for the "
        "suite tabletop; otherwise 128)",
    )
    parser.add_argument(
        "--bundle", type=Path, help="bundle whose image size is used; refused if it does not fit the suite"
    )
    parser.add_argument("--visuals", default="fast", help="visual profile of the images (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=real("--timeout", 0, LONGEST_WAIT),
        default=60.0,
        metavar="S",
        help="longest wait for the policy (default: %(default)s)",
    )
    parser.add_argument(
        "--command-timeout",
        type=real("--command-timeout", 0, LONGEST_WAIT),
        default=0.2,
        metavar="S",
        help="in real time, stop the arm after so long without a command (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--record-actions", action="store_true", help="include every action in --out")
