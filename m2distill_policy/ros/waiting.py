"""Waiting inside a service or action without holding up the executor."""

from __future__ import annotations

from collections.abc import Generator


class NextTurn:
    """``await NextTurn()``: let the executor do something else, and go on after it has."""

    def __await__(self) -> Generator[None, None, None]:
        yield
