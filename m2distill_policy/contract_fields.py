"""Check one field of a contract: its type and its range.

Texts and bools are never converted to numbers, and every error names the field, its value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from m2distill_policy.errors import ContractError, closest

#: Letters, digits and underscores, because views are used in ROS 2 topic names.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: Frame names that tf2 accepts.
FRAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*\Z")
HEXADECIMAL = re.compile(r"[0-9a-f]+\Z")


def shown(value: object) -> str:
    """Return ``value`` as text for a message, shortened to at most one line."""
    try:
        found = ascii(value)
    except (ValueError, RecursionError):  # an integer with thousands of digits
        return f"a {type(value).__name__} too long to show"
    return found if len(found) <= 60 else f"{found[:40]}... ({len(found)} characters)"


def check_number(field: str, value: object, low: float, high: float, unit: str = "") -> None:
    """Require a finite number from ``low`` to ``high``, else raise :class:`ContractError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        kind = "a positive number is needed, from" if low > 0 else "a number is needed, from"
        raise ContractError(f"{field} is {shown(value)}; {kind} {low:g} to {high:g}{unit and ' '}{unit}")


def check_whole(field: str, value: object, low: int, high: int) -> None:
    """Require a whole number from ``low`` to ``high``, else raise :class:`ContractError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ContractError(f"{field} is {shown(value)}; a whole number from {low} to {high} is needed")


def check_text(field: str, value: object, longest: int, form: re.Pattern[str] | None = None) -> None:
    """Require 1 to ``longest`` printable characters that match ``form``, else raise :class:`ContractError`."""
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise ContractError(f"{field} is {shown(value)}; a text of 1 to {longest} printable characters is needed")
    if value != value.strip() or (form is not None and not form.match(value)):
        allowed = {NAME: "letters, digits and '_', a letter first", FRAME: "letters, digits, '_', '.', '/' and '-'",
                   HEXADECIMAL: "hexadecimal digits"}  # fmt: skip
        raise ContractError(
            f"{field} is {shown(value)}; {allowed[form] if form is not None else 'no space at either end'} is allowed"
        )


def check_entries(field: str, value: object, fewest: int, most: int, kind: type) -> None:
    """Require a tuple of ``fewest`` to ``most`` instances of ``kind``, else raise :class:`ContractError`."""
    if not isinstance(value, tuple) or not all(isinstance(entry, kind) for entry in value):
        raise ContractError(f"{field} is {shown(value)}; a tuple of {kind.__name__} is needed")
    if not fewest <= len(value) <= most:
        raise ContractError(f"{field} has {len(value)} entries; {fewest} to {most} are allowed")


def check_numbers(field: str, value: object, fewest: int, most: int, low: float, high: float) -> None:
    """Require ``fewest`` to ``most`` numbers from ``low`` to ``high`` in a tuple, else raise :class:`ContractError`."""
    if not isinstance(value, tuple):
        raise ContractError(f"{field} is {shown(value)}; a tuple of numbers is needed")
    if not fewest <= len(value) <= most:
        raise ContractError(f"{field} has {len(value)} entries; {fewest} to {most} are allowed")
    for i, entry in enumerate(value):
        check_number(f"{field}[{i}]", entry, low, high)


def fields_of(data: object, kind: type, where: str) -> dict[str, Any]:
    """Return the JSON object ``data`` after checking that its keys are exactly the fields of dataclass ``kind``.

    Raises:
        ContractError: A key is unknown or missing. The message names it, and the closest known key.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    found = checked_object(data, where)
    for key in found:
        if key not in known:
            raise ContractError(f"{where} has the key {shown(key)}, which is not known{closest(key, known)}")
    for key in known:
        if key not in found:
            raise ContractError(f"{where} has no '{key}'; it must have {', '.join(known)}")
    return found


def checked_object(data: object, where: str) -> dict[str, Any]:
    """Return a copy of the JSON object ``data``; raise :class:`ContractError` if it is something else."""
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ContractError(f"{where} is {shown(data)}; a JSON object is needed")
    return dict(data)


def checked_list(data: object, where: str) -> tuple[Any, ...]:
    """Return the entries of the JSON list ``data``; raise :class:`ContractError` if it is something else."""
    if not isinstance(data, (list, tuple)):
        raise ContractError(f"{where} is {shown(data)}; a JSON list is needed")
    return tuple(data)
