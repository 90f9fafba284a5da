"""Compare settings that the paper leaves open, on seeds that the tables do not report.

All arms train m2distill with five demonstrations of each old task on the five tabletop tasks. The first arm has the
settings that :mod:`benchmarks.tabletop` reports. Every other arm changes one thing: the weights of the four terms, the
estimate of the divergence, the directions of the latents, or the statistics of batch norms. ``m2distill sweep``
searches the same space automatically. Run the same command again to resume.

Example:
    python -m benchmarks.tabletop_choices --seeds 3 --arms weights_third samples_1 --out mine.jsonl
"""

from __future__ import annotations

from benchmarks import lifelong, tabletop
from benchmarks.output import command
from training.studies.study import Arm

#: There is no cross-instruction evaluation, because settings are chosen by success alone.
SETTINGS = (*tabletop.SETTINGS, "evaluation.cross_instruction=0")

#: Default seeds. They differ from the seeds of :mod:`benchmarks.tabletop`'s table, which are 0, 1 and 2.
SEEDS = (3, 4, 5, 6)


def arm(name: str, label: str, *changes: str) -> Arm:
    """Make an arm from :data:`benchmarks.tabletop.M2DISTILL` with some changes."""
    return Arm(name, label, (*tabletop.M2DISTILL, *changes))


#: The labels give weights in the order image, text, extra, policy.
ARMS: tuple[Arm, ...] = (
    arm("weights_third", "as in the table: weights .003 .03 .03 .08, 4 samples"),
    arm("weights_whole", "weights .01 .1 .1 .25", *tabletop.weights(0.01, 0.1, 0.1, 0.25)),
    arm("weights_tenth", "weights .001 .01 .01 .025", *tabletop.weights(0.001, 0.01, 0.01, 0.025)),
    arm("latents_tenth", "weights .001 .01 .01 .25", *tabletop.weights(0.001, 0.01, 0.01, 0.25)),
    arm("samples_1", "1 sample", "distill.samples=1"),
    arm("samples_16", "16 samples", "distill.samples=16"),
    arm("reverse", "reverse divergence", "distill.direction=reverse"),
    arm("rank_48", "latents distilled in 48 of 64 directions", "distill.rank=48"),
    arm("batch_norm", "batch norm statistics updated in every stage", "network.batch_norm=train"),
)


def main() -> None:
    """Run the study, or resume it."""
    lifelong.main("tabletop_choices", __doc__, SETTINGS, ARMS, SEEDS)


if __name__ == "__main__":
    command(main)
