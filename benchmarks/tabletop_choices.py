"""What the paper leaves open, settled on seeds that no table reports: ``python -m benchmarks.tabletop_choices``.

M2Distill beside five kept demonstrations, on the five tabletop tasks in turn, with other weights of its four terms,
another estimate of the divergence, other batch statistics. The first arm is what :mod:`benchmarks.tabletop` reports;
every other says what it changes. ``m2distill sweep`` searches the same space on its own; here it is a few named points
with all seeds each. How it goes on after a stop: :mod:`benchmarks.lifelong`.
"""

from __future__ import annotations

from benchmarks import lifelong, tabletop
from benchmarks.output import command
from training.studies.arms import Arm

#: Nothing is told another task's words at the end: a choice is made by success alone.
SETTINGS = (*tabletop.SETTINGS, "evaluation.told=0")

#: The seeds of :mod:`benchmarks.tabletop`'s table are 0, 1 and 2.
SEEDS = (3, 4, 5, 6)


def arm(name: str, words: str, *changes: str) -> Arm:
    """:mod:`benchmarks.tabletop`'s m2distill beside demonstrations, with some changes."""
    return Arm(name, words, (*tabletop.M2DISTILL, *changes))


#: image, text, extra, policy.
ARMS: tuple[Arm, ...] = (
    arm("weights_third", "as in the table: weights .003 .03 .03 .08, 4 samples"),
    arm("weights_whole", "weights .01 .1 .1 .25", *tabletop.weights(0.01, 0.1, 0.1, 0.25)),
    arm("weights_tenth", "weights .001 .01 .01 .025", *tabletop.weights(0.001, 0.01, 0.01, 0.025)),
    arm("latents_tenth", "weights .001 .01 .01 .25", *tabletop.weights(0.001, 0.01, 0.01, 0.25)),
    arm("samples_1", "1 sample", "distill.samples=1"),
    arm("samples_16", "16 samples", "distill.samples=16"),
    arm("reverse", "the divergence the other way round", "distill.direction=reverse"),
    arm("rank_48", "latents held within 48 of 64 directions", "distill.rank=48"),
    arm("batch_norm", "batch statistics that go on moving", "network.batch_norm=train"),
)


def main() -> None:
    """Go on where the last call stopped."""
    lifelong.main("tabletop_choices", __doc__, SETTINGS, ARMS, SEEDS)


if __name__ == "__main__":
    command(main)
