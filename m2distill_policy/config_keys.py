"""The documentation of configuration keys: written next to each key, and used in messages and in the docs.

A key is a field of a configuration's dataclass, made by :func:`setting`; a section is made by :func:`section`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from m2distill_policy.config import closest_keys, keys_of, name_of_type, to_dict
from m2distill_policy.errors import ConfigError
from m2distill_policy.ranges import require_within

_KEY = "key"


@dataclass(frozen=True)
class _Doc:
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


def setting(default: Any, meaning: str, *, unit: str = "", low: float | None = None, high: float | None = None) -> Any:
    """Make a key of a configuration: a dataclass field with its documentation.

    Args:
        default: Default value.
        meaning: What the key does, in one or more sentences.
        unit: Unit of a number, such as ``s``.
        low, high: Range of a number, inclusive; checked by :func:`require_ranges`.
    """
    return dataclasses.field(default=default, metadata={_KEY: _Doc(meaning, unit, low, high)})


def section(kind: type[Any], meaning: str, **defaults: Any) -> Any:
    """Make a section of a configuration: a dataclass field that contains another dataclass.

    Args:
        kind: The dataclass.
        meaning: What the section is about.
        defaults: Default values of keys in this section that differ from the defaults of ``kind``.
    """
    return dataclasses.field(default_factory=lambda: kind(**defaults), metadata={_KEY: _Doc(meaning)})


def require_ranges(config: Any, prefix: str = "") -> None:
    """Check that every number of a section is in its range, if it has one; for use in ``__post_init__``.

    Args:
        config: The section.
        prefix: Name of the section with a dot, such as ``optim.``, for the message.

    Raises:
        ConfigError: A number is out of its range.
    """
    for field in dataclasses.fields(config):
        doc, value = field.metadata.get(_KEY), getattr(config, field.name)
        if doc is None or doc.low is None or value is None:
            continue
        name = f"{prefix}{field.name}"
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                require_within(f"{name}[{index}]", item, doc.low, doc.high, doc.unit)
        else:
            require_within(name, value, doc.low, doc.high, doc.unit)


@dataclass(frozen=True)
class Key:
    """One key of a configuration. type, range: Text for readers. default: JSON text, or "" for a section."""

    name: str
    type: str
    default: str
    unit: str
    range: str
    meaning: str
    is_section: bool = False


def describe_keys(cls: type[Any]) -> Iterator[Key]:
    """Yield every key and section of a configuration, a section before its keys."""
    yield from _keys(cls, to_dict(cls()), "")


def _keys(cls: type[Any], defaults: dict[str, Any], prefix: str) -> Iterator[Key]:
    docs = {field.name: field.metadata.get(_KEY) for field in dataclasses.fields(cls)}
    for name, kind in keys_of(cls).items():
        doc = docs.get(name) or _Doc(_summary(kind))
        full = f"{prefix}{name}"
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield Key(full, "section", "", "", "", doc.meaning, is_section=True)
            inner = defaults.get(name)
            yield from _keys(kind, to_dict(kind()) if inner is None else inner, f"{full}.")
        else:
            limits = "" if doc.low is None else f"{doc.low:g} to {doc.high:g}"
            yield Key(full, name_of_type(kind), json.dumps(defaults[name]), doc.unit, limits, doc.meaning)


def _summary(kind: Any) -> str:
    """Return the first paragraph of a class's docstring, which documents a section that is registered elsewhere."""
    text = " ".join((getattr(kind, "__doc__", "") or "").split("\n\n")[0].split())
    return text


def explain(cls: type[Any], name: str) -> str:
    """Return the documentation of one key, or of a section with all its keys.

    Raises:
        ConfigError: There is no such key; the message names the closest one.
    """
    keys = list(describe_keys(cls))
    found = [key for key in keys if key.name == name or key.name.startswith(f"{name}.")]
    if not found:
        hint = closest_keys(name, [key.name for key in keys])
        raise ConfigError(f"there is no configuration key '{name[:80]}'{hint}; all keys: m2distill config")
    return "\n\n".join(_text(key) for key in found)


def _text(key: Key) -> str:
    if key.is_section:
        return f"[{key.name}]\n  {key.meaning}"
    rows = [("type", key.type), ("default", key.default), ("unit", key.unit), ("range", key.range)]
    facts = "\n".join(f"  {label:<8} {value}" for label, value in rows if value)
    return f"{key.name}\n  {key.meaning}\n{facts}"


def reference(cls: type[Any], title: str, introduction: str) -> str:
    """Return the reference page of a configuration as Markdown, with a table for each section."""
    lines = [f"# {title}", "", introduction, "", *_TABLE]
    for key in describe_keys(cls):
        if key.is_section:
            lines += ["", f"## `[{key.name}]`", "", key.meaning, "", *_TABLE]
        else:
            kind = key.type + (f", {key.range}" if key.range else "")
            cells = (f"`{key.name}`", kind, f"`{key.default}`", key.unit, key.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(_without_empty_tables(lines)) + "\n"


_TABLE = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]


def _without_empty_tables(lines: list[str]) -> list[str]:
    """Remove the headings of tables without rows. A section that contains only sections has such a table."""
    kept: list[str] = []
    for index, line in enumerate(lines):
        head = line in _TABLE
        rows = index + 1 + (line == _TABLE[0])
        if head and not (rows < len(lines) and lines[rows].startswith("| `")):
            continue
        kept.append(line)
    return kept
