"""Quality of service, with the names of ROS 2.

CDR version 1 is requested explicitly, because ROS 2 uses it. Otherwise Cyclone DDS from 0.11 on might use version 2.
"""

from __future__ import annotations

from enum import Enum

from cyclonedds.core import Policy, Qos
from cyclonedds.util import duration

_XCDR1 = Policy.DataRepresentation(use_cdrv0_representation=True)


def _reliable(milliseconds: int) -> Policy.Reliability.Reliable:
    return Policy.Reliability.Reliable(duration(milliseconds=milliseconds))


class Profile(Enum):
    """Profiles of topics.

    SENSOR: only the newest message matters; losses are allowed. RELIABLE: every message arrives. LATCHED: late readers
    receive the last message. LOCKSTEP: every message arrives, and a writer waits long for a slow reader. HANDSHAKE: as
    LOCKSTEP, but only the last message is kept, and late readers receive it too.
    """

    SENSOR = "sensor"
    RELIABLE = "reliable"
    LATCHED = "latched"
    LOCKSTEP = "lockstep"
    HANDSHAKE = "handshake"

    def qos(self, depth: int) -> Qos:
        """Return the DDS policies of the profile. depth: number of messages kept for a slow reader."""
        history = Policy.History.KeepLast(depth)
        volatile = Policy.Durability.Volatile
        if self is Profile.SENSOR:
            return Qos(Policy.Reliability.BestEffort, volatile, history, _XCDR1)
        if self is Profile.RELIABLE:
            return Qos(_reliable(100), volatile, history, _XCDR1)
        if self is Profile.LATCHED:
            return Qos(_reliable(100), Policy.Durability.TransientLocal, Policy.History.KeepLast(1), _XCDR1)
        if self is Profile.HANDSHAKE:
            return Qos(_reliable(10_000), Policy.Durability.TransientLocal, Policy.History.KeepLast(1), _XCDR1)
        return Qos(_reliable(10_000), volatile, Policy.History.KeepAll, _XCDR1)
