"""Read a configuration file from any source as plain data, with limits on size, depth and time.

Features of the three formats that a configuration does not need are refused: YAML's aliases, tags and merged keys,
repeated keys, text that is not Unicode, numbers beyond float64 or 64-bit integers.
"""

from __future__ import annotations

import math
import re
import stat
import sys
from pathlib import Path
from typing import Any

import yaml

from m2distill_policy import strict_json
from m2distill_policy.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Allowed suffixes of a file name.
SUFFIXES = (".toml", ".yaml", ".yml", ".json")
#: Largest size of a file in bytes; the largest configuration file of this project has 6 KiB.
LARGEST = 64 * 1024
#: Largest nesting of lists and tables.
DEEPEST = strict_json.DEEPEST
#: Largest number of values, keys, lists and tables in a YAML file; PyYAML reads a few thousand of them a second.
MOST_NODES = 10_000
#: Largest number of characters of a value that a message repeats.
_SHOWN = 80

_DEEP_KEY = re.compile(r"(?<![\w\"'-])[\w\"'-]+(?:[ \t]*\.[ \t]*[\w\"'-]+){" + f"{DEEPEST},}}")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_FLOAT = "tag:yaml.org,2002:float"


def shown(value: object) -> str:
    """Return ``value`` for a message: one line, shortened if it is long."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print very large integers
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}... ({len(text)} characters)"


def read_plain(path: Path, suffix: str | None = None) -> Any:
    """Read a TOML, YAML or JSON file.

    Args:
        path: A regular file whose name ends in one of ``SUFFIXES``, of at most ``LARGEST`` bytes.
        suffix: Format, one of ``SUFFIXES``; None uses the suffix of the file's name.

    Returns:
        Dictionaries with texts as keys, lists, texts, booleans, 64-bit integers, finite floats, and None; TOML may
        also give dates and times.

    Raises:
        ConfigError: The file is not valid. The message names the file and what is wrong with it.
    """
    suffix = path.suffix if suffix is None else suffix
    kind = suffix[1:].upper()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a configuration file ends in {', '.join(SUFFIXES)}; got '{path.suffix}'")
    text = _text(path)
    try:
        data = _parse(text, suffix)
        _check(data)
    except RecursionError as error:
        raise ConfigError(f"{path}: lists and tables are nested more than {DEEPEST} deep") from error
    # ValueError and ArithmeticError too, because int(), float() and datetime() raise them for damaged numbers.
    except (ValueError, ArithmeticError, yaml.YAMLError, strict_json.JsonError, ConfigError) as error:
        raise ConfigError(f"{path}: is not valid {kind}: {_one_line(error)}") from error
    return data


def _text(path: Path) -> str:
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: cannot be read: it is not a regular file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST} bytes, the limit for a configuration file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8 text (byte {error.start})") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _parse(text: str, suffix: str) -> Any:
    if suffix == ".json":
        return strict_json.parse(text)
    return _toml(text) if suffix == ".toml" else _yaml(text)


def _toml(text: str) -> Any:
    if _DEEP_KEY.search(text):  # the parser's time grows with the square of the number of parts
        raise ConfigError(f"a key has more than {DEEPEST} parts")
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > MOST_NODES:
            raise ConfigError(f"it has more than {MOST_NODES} values, the limit for a configuration file")
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line} has the alias *{event.anchor}; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"line {line} has the tag {shown(tag)}; write the plain value")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise ConfigError(f"lists and tables are nested more than {DEEPEST} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.load(text, Loader=_Loader)  # a SafeLoader, which makes only plain types


def _check(data: Any) -> None:
    """Raise :class:`ConfigError` if there is a value that a configuration cannot contain; the message names its key."""
    waiting: list[tuple[str, Any, int]] = [("", data, 1)]
    while waiting:
        where, value, depth = waiting.pop()
        at = f"'{where}' is" if where else "the file is"
        if depth > DEEPEST + 1:
            raise ConfigError(f"lists and tables are nested more than {DEEPEST} deep")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ConfigError(f"{at} a table with the key {shown(key)}; keys must be texts")
                _check_text(key, f"a key below '{where}' is")
            waiting += [(f"{where}.{key}" if where else key, item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{where}[{i}]", item, depth + 1) for i, item in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, at)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{at} {value}; allowed is a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{at} {shown(value)}; allowed is a number of 64 bits")


def _check_text(text: str, at: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{at} {shown(text)}, which is not Unicode text") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader with three changes: ``1e-3`` is a number, a date stays text, a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "keys are merged by '<<'; write them out", key.start_mark
                )
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str | int | float | None):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
