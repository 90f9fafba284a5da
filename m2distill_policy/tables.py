"""Plain-text tables for a terminal: a column is as wide as its longest entry."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Format rows of text as columns.

    Args:
        rows: The entries, the same number in each row; the first row is the heading.
        align: One character for each column: ``<`` left, ``>`` right.

    Returns:
        One line for each row, with two spaces between the columns and none at the end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{entry:{side}{width}}" for entry, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    )
