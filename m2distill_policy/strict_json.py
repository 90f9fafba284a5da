"""Read JSON from unknown sources: only unique keys and finite numbers, with limits on size and depth."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from m2distill_policy.errors import M2DistillError

#: Default limit for the size of a document, bytes.
LONGEST = 4 * 1024 * 1024
#: Default limit for the depth of nested lists and objects.
DEEPEST = 32
#: Largest number of characters of one number; a float64 in decimal needs at most 24.
LONGEST_NUMBER = 64

# A string without its closing quote matches to the end of the text. Otherwise the search would start again at every
# quote in it.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{}\]]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


class JsonError(M2DistillError):
    """A text is not JSON, or is JSON that :func:`parse` refuses."""


def parse(data: bytes | str, *, longest: int = LONGEST, deepest: int = DEEPEST) -> Any:
    """Read one JSON document.

    Refuses values that Python's json module accepts: an object that has a key twice, NaN and Infinity, numbers beyond
    float64 or 64-bit integers, half of a surrogate pair. Refuses documents that are too large or too deeply nested,
    because they would take long or crash the parser.

    Args:
        data: UTF-8 bytes, or text.
        longest: Largest size in bytes (of a text, in characters).
        deepest: Largest depth of nested lists and objects.

    Returns:
        Dictionaries, lists, texts, finite numbers, booleans and None.

    Raises:
        JsonError: The document is refused. The message does not name the document; the caller adds its name.
    """
    if len(data) > longest:
        raise JsonError(f"it is {len(data)} bytes long; at most {longest} are allowed")
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise JsonError(f"it is not UTF-8 text (byte {error.start})") from error
    else:
        text = data
    _check_depth(text, deepest)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole, parse_float=_float
        )
    except (ValueError, RecursionError) as error:
        raise JsonError(f"it is not JSON: {error}") from error
    if _SURROGATE.search(text):
        _check_texts(value)
    return value


def _check_depth(text: str, deepest: int) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > deepest:
                raise JsonError(f"lists and objects lie more than {deepest} deep in one another")
        elif bracket in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise JsonError(f"an object has the key {_short(twice)} twice; one value for each key is needed")
    return found


def _constant(name: str) -> Any:
    raise JsonError(f"it holds {name}; JSON has finite numbers only")


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER or not -(2**63) <= (value := int(text)) < 2**63:
        raise JsonError(f"it holds the number {_short(text)}, which does not fit into 64 bits")
    return value


def _float(text: str) -> float:
    if len(text) > LONGEST_NUMBER or not -float("inf") < (value := float(text)) < float("inf"):
        raise JsonError(f"it holds the number {_short(text)}, which no float64 holds")
    return value


def _check_texts(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise JsonError(f"the text {_short(item)} holds half of a surrogate pair") from error


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:40]}... ({len(text)} characters)"
