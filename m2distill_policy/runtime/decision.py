"""What the policy server decides in one cycle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.runtime.mixture import Mixture
from m2distill_policy.runtime.status import Status


@dataclass(frozen=True)
class Decision:
    """What to do in this cycle, and why.

    Attributes:
        action: Command (7,) float64 in the contract's units ([-1, 1]), within the limits; zero motion when halted.
        command: Whether to send ``action`` to the arm. False while the arm is halted in shadow mode, without an
            instruction or because of another publisher, and in a cycle that only waits for the next observation.
        sample: Action (7,) sampled from the mixture, before any limit; None if there was no answer in this cycle.
        mixture: Mixture that ``sample`` was sampled from, or None.
        status: Status of this cycle.
        bundle: Identifier of the bundle that answered.
        stamp: Stamp of the observation that was answered, s; None for a cycle without one.
    """

    action: NDArray[np.float64]
    command: bool
    sample: NDArray[np.float64] | None
    mixture: Mixture | None
    status: Status
    bundle: str
    stamp: float | None
