"""Wait inside a service or action without blocking the executor."""

from __future__ import annotations

from collections.abc import Generator


class NextTurn:
    """``await NextTurn()`` lets the executor handle something else first."""

    def __await__(self) -> Generator[None, None, None]:
        yield
