"""Check that all messages of a stream are in one frame, and in the right one. Only names of frames are compared."""

from __future__ import annotations

from m2distill_policy.errors import shorten

#: Characters of a frame's name that are shown in a message.
_LONGEST_SHOWN = 64


class FrameCheck:
    """Checks the ``frame_id`` of each message of one stream.

    An empty name is always accepted. A leading slash, which old versions of tf wrote, is ignored.

    Args:
        wanted: The required frame; if empty, the frame must only stay the same.
    """

    def __init__(self, wanted: str = "") -> None:
        self._wanted = _plain(wanted)
        self._first = ""

    def clear(self) -> None:
        """Forget the earlier messages."""
        self._first = ""

    @property
    def frame(self) -> str:
        """The first frame that was named and accepted, or ""."""
        return self._first

    def problem(self, frame_id: str) -> str | None:
        """Return why a message in the frame ``frame_id`` cannot be used, as part of an error text; None if it can."""
        frame = _plain(frame_id)
        if not frame:
            return None
        if self._wanted and frame != self._wanted:
            return f"its frame is {shown_frame(frame)}, but pose.base_frame is {shown_frame(self._wanted)}"
        if self._first and frame != self._first:
            return f"its frame is {shown_frame(frame)}, but was {shown_frame(self._first)} before"
        self._first = frame
        return None


def _plain(frame: str) -> str:
    return frame.removeprefix("/")


def shown_frame(frame: str) -> str:
    """Return the name of a frame for the text of an error, in quotes and shortened."""
    return shorten(repr(frame), _LONGEST_SHOWN)
