"""Compare the clocks and the rates of a recording's streams.

The *lead* of a message is its stamp minus the time at which it was recorded. The stamps of a whole recording may use
another clock than the recorder (simulated time). Therefore the median lead of each stream is compared with that of the
other streams, over the whole recording and in every second of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import RecordingError
from m2distill_policy.node.missing_streams import SLOWEST
from m2distill_policy.runtime.watchdog import WatchLimits

#: Length of a part of the recording in which median leads are compared, ns.
_WINDOW = 1_000_000_000
#: Smallest number of messages of a stream in a part for a median.
_FEWEST = 5


class StreamClocks:
    """The stamps of all streams of a recording, collected during the import and checked at its end.

    Args:
        contract: The contract, whose rate the streams must have.
        limits: Largest differences of the clocks. A stream may be ahead of the others by ``future_tolerance`` and
            behind them by ``stale_after``; None allows any difference.
    """

    def __init__(self, contract: Contract, limits: WatchLimits) -> None:
        self._contract = contract
        self._limits = limits
        #: Label -> stamps, leads and times of recording, in ns. An hour at 1 kHz needs 86 MB.
        self._times: dict[str, tuple[array[float], array[float], array[float]]] = {}
        self._reference: dict[str, bool] = {}
        self._slow: dict[str, bool] = {}

    def clear(self) -> None:
        """Remove all stamps, because the usable part of the recording begins only here."""
        self._times.clear()

    def note(
        self, label: str, stamp: int, received: int, *, reference: bool = False, may_be_slow: bool = False
    ) -> None:
        """Add a message of the stream ``label``.

        Args:
            label: Name of the stream, for messages.
            stamp: Stamp of the message, ns.
            received: Time of recording, ns.
            reference: Whether the stream's delay is small, so that other streams can be compared with it.
            may_be_slow: Whether the stream may be slower than the contract's rate.
        """
        found = self._times.get(label)
        if found is None:
            found = self._times[label] = (array("d"), array("d"), array("d"))
        for kept, value in zip(found, (stamp, stamp - received, received), strict=True):
            kept.append(value)
        self._reference[label], self._slow[label] = reference, may_be_slow

    def check(self, path: object) -> None:
        """Raise :class:`RecordingError` if clocks differ or a stream is too slow. path: Recording, for the message."""
        self._check_leads(path, {label: float(np.median(leads)) for label, (_, leads, _) in self._times.items()})
        begin = min((received[0] for _, _, received in self._times.values()), default=0.0)
        windows: dict[int, dict[str, float]] = {}
        for label, (_, leads, received) in self._times.items():
            for window, lead in _medians((np.asarray(received) - begin) // _WINDOW, np.asarray(leads)):
                windows.setdefault(window, {})[label] = lead
        for window in sorted(windows):
            self._check_leads(path, windows[window], f" {window} s after its begin")
        for label, rate in self.rates().items():
            if not self._slow[label] and rate * SLOWEST < self._contract.rate_hz:
                raise RecordingError(
                    f"{path}: {label} has {rate:.1f} messages a second, but the contract needs "
                    f"{self._contract.rate_hz:g}; make its driver publish faster and record again"
                )

    def rates(self) -> dict[str, float]:
        """Return the rate of each stream that has enough messages, in messages a second, computed from its stamps."""
        found = {}
        for label, (stamps, _, _) in self._times.items():
            interval = float(np.median(np.diff(np.sort(stamps)))) if len(stamps) > _FEWEST else 0.0
            if interval > 0:
                found[label] = 1e9 / interval
        return found

    def _check_leads(self, path: object, leads: dict[str, float], where: str = "") -> None:
        ahead, behind = self._limits.future_tolerance, self._limits.stale_after
        most, least = np.inf if ahead is None else ahead * 1e9, -np.inf if behind is None else -behind * 1e9
        # If a stream agrees with the recorder's clock, that clock is the reference.
        near = [lead for lead in leads.values() if least <= lead <= most]
        references = [lead for label, lead in leads.items() if self._reference[label]]
        clock = 0.0 if near else max(references or leads.values(), default=0.0)
        wrong = {label: lead - clock for label, lead in leads.items() if not least <= lead - clock <= most}
        if not wrong:
            return
        label = max(wrong, key=lambda name: abs(wrong[name]))
        others = {name: lead for name, lead in leads.items() if name != label}
        other = min(others, key=lambda name: abs(others[name] - clock), default="")
        difference = (leads[label] - (others[other] if other else clock)) / 1e9
        direction, setting, allowed = (
            ("ahead of", "watch.future_tolerance", ahead) if difference > 0 else ("behind", "watch.stale_after", behind)
        )
        raise RecordingError(
            f"{path}: the stamps of {label} are {abs(difference):.3f} s {direction} those of "
            f"{other or 'the recorder'}{where}, compared with when they were recorded; at most {allowed:g} s is "
            f"allowed ({setting}). Set the clocks right and record again; if the difference is known and constant, "
            "correct it with --shift TOPIC=SECONDS"
        )


def _medians(windows: NDArray[np.float64], leads: NDArray[np.float64]) -> Sequence[tuple[int, float]]:
    """Return (number of the part, median lead in ns) of each part of a recording that has enough messages.

    Args:
        windows: Number of the part that each message is in, not decreasing.
        leads: Lead of each message, ns.
    """
    found, starts = np.unique(windows, return_index=True)
    parts = np.split(leads, starts[1:])
    return [(int(w), float(np.median(p))) for w, p in zip(found, parts, strict=True) if len(p) >= _FEWEST]
