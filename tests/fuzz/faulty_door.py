"""A door that breaks the invariant in every way, to test the harness with; it is not among those of ``make fuzz``."""

from __future__ import annotations

import ctypes
import os
import time

import numpy as np

from m2distill_policy.errors import M2DistillError
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door
from tests.fuzz.invariant import finite

#: Names the environment variable that holds the second seed.
SEED = "FAULTY_SEED"


class FaultyDoor(Door):
    """What it does is the input itself."""

    name = "faulty"
    seconds = 1.0
    mebibytes = 64

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return [b"fine", os.environ.get(SEED, "fine").encode(), b"refused"]

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        return choice.damaged(data)

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        what = data.partition(b" ")[0]
        if what == b"refused":
            raise M2DistillError("ours")
        if what == b"error":
            raise KeyError("not ours")
        if what == b"not-finite":
            finite("a twist", np.array([np.nan]), -1, 1)
        if what == b"outside":
            finite("a twist", np.array([2.0]), -1, 1)
        if what == b"long-message":
            raise M2DistillError("x" * 100_000)
        if what == b"slow":
            end = time.process_time() + 1.5 * self.seconds
            while time.process_time() < end:
                pass
        if what == b"large":
            taken = np.ones(300 << 20, dtype=np.uint8)
            time.sleep(0.05)
            del taken
        if what == b"dies":
            ctypes.string_at(0)
        while what == b"spins":
            pass
        if what == b"sleeps":
            time.sleep(1000)


def make() -> Door:
    """The door."""
    return FaultyDoor()
