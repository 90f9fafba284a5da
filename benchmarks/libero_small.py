"""Compare strategies of lifelong learning on LIBERO's suites, at a size that two CPU cores can train.

Every suite has ten tasks. Under ``--protocol in_turn`` they are learned one after another, as in LIBERO. Under
``--protocol six_four`` six are learned jointly and the other four one after another from ten demonstrations each, as
in the published results of LOTUS and M2Distill. The network and the budget are smaller than LIBERO's
(``config/libero_small.toml``). ``benchmarks.libero_results`` writes the results into docs/results.md. A run of ten
tasks takes hours; run the same command again to resume.

Example:
    python -m benchmarks.libero_small --suites libero_object --seeds 0 --arms er m2distill --out mine
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import lifelong
from benchmarks.lifelong import Benchmark
from benchmarks.output import command, make_parser
from training.studies.study import Arm, Study, strategy_arm, without_each_term

SUITES = ("libero_object", "libero_goal", "libero_spatial")

#: Protocol -> suffix of the names of its studies, and its changes to the configuration file.
PROTOCOLS = {"in_turn": ("", ()), "six_four": ("_six_four", ("jointly=6", "later_episodes=10"))}

#: One worker for each run, because the cores are already used by parallel runs.
SETTINGS = ("evaluation.workers=1",)

STRATEGIES: tuple[Arm, ...] = (
    strategy_arm("sequential"),
    strategy_arm("er", detail="5 demonstrations of each old task"),
    strategy_arm("ewc"),
    # PackNet prunes within a stage, so a checkpoint from before the stage's end is not a usable policy.
    strategy_arm("packnet", "evaluation.candidates=1"),
    strategy_arm("m2distill", detail="the same 5 demonstrations"),
)
ABLATION = without_each_term(("strategy=m2distill",))
ARMS = (*STRATEGIES, *ABLATION)


def short_name(suite: str) -> str:
    """Return ``object`` for ``libero_object``."""
    return suite.removeprefix("libero_")


def study_name(suite: str, protocol: str = "in_turn") -> str:
    """Return the name of the study of one suite under one of :data:`PROTOCOLS`."""
    return f"libero_small_{short_name(suite)}{PROTOCOLS[protocol][0]}"


def main() -> None:
    """Run the studies of the suites one after another, or resume them."""
    parser = make_parser(__doc__)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES, help="default: all three")
    parser.add_argument("--protocol", default="in_turn", choices=PROTOCOLS, help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=Path("config/libero_small.toml"), help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/libero_small"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of results (default: %(default)s)"
    )
    lifelong.add_options(parser, ARMS)
    args = parser.parse_args()
    suffix, settings = PROTOCOLS[args.protocol]
    for suite in args.suites:
        name = study_name(suite, args.protocol)
        overrides = (f"suite={suite}", *settings, *SETTINGS, *args.overrides)
        data = args.folder / suite / "demonstrations"
        study = Study(args.config, data, args.folder / f"{suite}{suffix}", overrides, ARMS)
        lifelong.execute(Benchmark(name, study, args.out / f"{name}.jsonl", args.reuse_results), args)


if __name__ == "__main__":
    command(main)
