"""Compare settings that the paper leaves open, on seeds that the tables do not report.

m2distill with five demonstrations of each old task, on the five tabletop tasks, with other weights of its four terms,
another estimate of the divergence, and other batch statistics. The first arm is what :mod:`benchmarks.tabletop`
reports; every other arm changes one thing. ``m2distill sweep`` searches the same space automatically. Run the same
command again to resume.

Example:
    python -m benchmarks.tabletop_choices --seeds 3 --arms weights_third samples_1 --out mine.jsonl
"""

from __future__ import annotations

from benchmarks import lifelong, tabletop
from benchmarks.output import command
from training.studies.study import Arm

#: No cross-instruction evaluation: settings are chosen by success alone.
SETTINGS = (*tabletop.SETTINGS, "evaluation.cross_instruction=0")

#: The seeds of :mod:`benchmarks.tabletop`'s table are 0, 1 and 2.
SEEDS = (3, 4, 5, 6)


def arm(name: str, label: str, *changes: str) -> Arm:
    """Make an arm from :mod:`benchmarks.tabletop`'s m2distill with five demonstrations, with some changes."""
    return Arm(name, label, (*tabletop.M2DISTILL, *changes))


#: Weights in the order image, text, extra, policy.
ARMS: tuple[Arm, ...] = (
    arm("weights_third", "as in the table: weights .003 .03 .03 .08, 4 samples"),
    arm("weights_whole", "weights .01 .1 .1 .25", *tabletop.weights(0.01, 0.1, 0.1, 0.25)),
    arm("weights_tenth", "weights .001 .01 .01 .025", *tabletop.weights(0.001, 0.01, 0.01, 0.025)),
    arm("latents_tenth", "weights .001 .01 .01 .25", *tabletop.weights(0.001, 0.01, 0.01, 0.25)),
    arm("samples_1", "1 sample", "distill.samples=1"),
    arm("samples_16", "16 samples", "distill.samples=16"),
    arm("reverse", "reverse divergence", "distill.direction=reverse"),
    arm("rank_48", "latents regularised in 48 of 64 directions", "distill.rank=48"),
    arm("batch_norm", "batch norm statistics updated in every stage", "network.batch_norm=train"),
)


def main() -> None:
    """Run the study, or resume it."""
    lifelong.main("tabletop_choices", __doc__, SETTINGS, ARMS, SEEDS)


if __name__ == "__main__":
    command(main)
