"""Problems that do not stop the policy. Each is reported in the status until it is solved, and logged once."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

#: Number of different problems that are logged. The status reports all of them.
_MOST_LOGGED = 100


class Problems:
    """The current problems, one message for each source."""

    def __init__(self) -> None:
        self._current: dict[str, str] = {}
        self._logged: set[str] = set()

    def set(self, source: str, message: str | None, *, log_key: str | None = None) -> None:
        """Set the problem of ``source``, or clear it.

        Args:
            source: A topic, or another name of what has the problem.
            message: The problem; None clears it.
            log_key: For messages with a measured number: only the first message with this key is logged.
        """
        if message is None:
            self._current.pop(source, None)
            return
        self._current[source] = message
        key = log_key or message
        if key not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add(key)
            logger.warning("%s", message)

    @property
    def messages(self) -> tuple[str, ...]:
        """The current problems."""
        return tuple(self._current.values())
