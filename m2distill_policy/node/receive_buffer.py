"""Whether pictures fit through this process's receive buffers.

Pictures travel as datagrams, and one that finds the buffer full is lost, and the picture with it, unless somebody asks
for it again. Measured on Cyclone DDS with two views of 640 x 480 that arrive at once: with its own 1 MiB about a third
of the pairs was lost, with 4 MiB none of 12,000.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path


def largest_receive_buffer() -> int | None:
    """Bytes of the largest receive buffer among this process's UDP sockets; None where it has none, or not on Linux."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or no socket
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.type == socket.SOCK_DGRAM and one.family in (socket.AF_INET, socket.AF_INET6):
                    # Linux answers with twice what it was asked for: the other half is its own.
                    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2)
    return max(found, default=None)


class ReceiveBuffer:
    """Looks at the buffers whenever a larger picture comes than before.

    views: how many pictures arrive at once. tell: takes the sentence, or None where the buffers are large enough.
    """

    def __init__(self, views: int, tell: Callable[[str | None], None]) -> None:
        self._views = views
        self._tell = tell
        self._largest = 0

    def expect(self, picture_bytes: int) -> None:
        """Pictures of this size come."""
        if picture_bytes <= self._largest:
            return
        self._largest = picture_bytes
        buffer, needed = largest_receive_buffer(), self._views * picture_bytes
        if buffer is None or buffer >= needed:
            self._tell(None)
            return
        self._tell(
            f"the receive buffer holds {buffer} bytes and {self._views} pictures of {picture_bytes} bytes come at "
            f"once, so some will be lost; allow more (sudo sysctl -w net.core.rmem_max={max(2 * needed, 8 << 20)}) "
            "and have Cyclone DDS ask for it (CYCLONEDDS_URI=file:///path/to/config/cyclonedds.xml), or ask for lost "
            "pictures again (reliable_input)"
        )
