"""Lifelong learning on LIBERO's suites as far as a CPU gets: ``python -m benchmarks.libero_small``.

The ten tasks of a suite under ``config/libero_small.toml``, strategies side by side, and m2distill without each of its
four terms: one task after another as LIBERO has it, or (``--protocol six_four``) six learned jointly and the other four
one after another from ten demonstrations each, as LOTUS and M2Distill's published rows have it. This
is not LIBERO's own protocol in full; ``benchmarks.libero_results`` writes what was run into
docs/results.md. How it goes on after a stop: :mod:`benchmarks.lifelong`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import lifelong
from benchmarks.lifelong import Place, Study
from benchmarks.output import command
from training.lifelong.strategies.m2distill import TERMS
from training.studies.arms import Arm

SUITES = ("libero_object", "libero_goal", "libero_spatial")

#: What differs from the configuration file by protocol, and what its studies' names end in.
PROTOCOLS = {"in_turn": ("", ()), "six_four": ("_six_four", ("jointly=6", "later_episodes=10"))}

#: Runs share the cores, not the rollouts of one run.
SETTINGS = ("evaluation.workers=1",)

STRATEGIES: tuple[Arm, ...] = (
    Arm("sequential", "sequential fine-tuning", ("strategy=sequential",)),
    Arm("er", "experience replay, 5 demonstrations an old task", ("strategy=er",)),
    Arm("ewc", "ewc, LIBERO's weight and fading", ("strategy=ewc",)),
    # It prunes within a stage: what is there before the stage's end is no policy yet.
    Arm("packnet", "packnet, told which task it is", ("strategy=packnet", "evaluation.points=1")),
    Arm("m2distill", "m2distill, the same 5 demonstrations", ("strategy=m2distill",)),
)
ABLATION: tuple[Arm, ...] = tuple(
    Arm(f"m2distill_no_{term}", f"m2distill without {term}", ("strategy=m2distill", f"distill.{term}.on=false"))
    for term in TERMS
)
ARMS = (*STRATEGIES, *ABLATION)


def short(suite: str) -> str:
    """``object`` for ``libero_object``."""
    return suite.removeprefix("libero_")


def study_of(suite: str, protocol: str = "in_turn", config: Path = Path("config/libero_small.toml")) -> Study:
    """The runs of one suite under one of :data:`PROTOCOLS`."""
    suffix, settings = PROTOCOLS[protocol]
    return Study(f"libero_small_{short(suite)}{suffix}", config, (f"suite={suite}", *settings, *SETTINGS), ARMS)


def main() -> None:
    """Go on where the last call stopped, a suite after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--protocol", default="in_turn", choices=PROTOCOLS)
    parser.add_argument("--config", type=Path, default=Path("config/libero_small.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/libero_small"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the tables")
    lifelong.add_options(parser, ARMS)
    args = parser.parse_args()
    for suite in args.suites:
        study = study_of(suite, args.protocol, args.config)
        folder = args.folder / f"{suite}{PROTOCOLS[args.protocol][0]}"
        out = args.out / f"{study.name}.json"
        data = args.folder / suite / "demonstrations"
        place = Place(folder, out, tuple(args.overrides), args.go_on, data)
        lifelong.go(study, place, args)


if __name__ == "__main__":
    command(main)
