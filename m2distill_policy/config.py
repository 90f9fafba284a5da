"""Typed, frozen configuration from TOML or YAML, with ``key.sub=value`` overrides.

A configuration is a frozen dataclass; nested dataclasses are sections. Values are checked against the annotations: an
unknown key gives an error with the closest one, a wrong type gives an error with the value and what is allowed. Ranges
and rules between fields belong in the dataclass's ``__post_init__``, which raises :class:`ConfigError` (a
``ValueError`` is converted to one).

Supported annotations: ``bool``, ``int``, ``float``, ``str``, ``pathlib.Path``, ``Literal[...]``, a
dataclass, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]``, ``X | None`` and other unions of these.

* An ``int`` is accepted for a ``float``, but not the reverse; a ``bool`` is not a number.
* Numbers are finite. A NaN is not equal to itself, so the configurations of a run and of its resumption would differ.
* TOML has no null: leave the key out, or use the override ``key=null``.
"""

# Longer than 400 lines because reading a value, converting it and reporting what is wrong with it belong together.

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from m2distill_policy import strict_json
from m2distill_policy.config_text import SUFFIXES, read_plain, shown
from m2distill_policy.errors import ConfigError, closest

__all__ = [
    "SUFFIXES", "closest_keys", "from_dict", "from_json", "keys_of", "load_config", "name_of_type", "open_sections",
    "override", "parse_text", "read_file", "to_dict", "to_json",
]  # fmt: skip

T = TypeVar("T")

#: Key in a field's metadata under which :func:`open_sections` stores its argument.
_OPEN = "open sections"
#: Largest number of files in a chain of ``extends``.
_MOST_EXTENDS = 8
_NULL_WORDS = ("null", "none")
_BOOL_WORDS = {"true": True, "false": False}


def keys_of(cls: type[Any]) -> dict[str, Any]:
    """Return the keys and sections of a configuration class: name -> annotation."""
    return {name: field.type for name, field in _fields(cls).items()}


def name_of_type(annotation: Any) -> str:
    """Return a readable name of a type annotation, such as "a list of int", for messages."""
    return _name(annotation)


def closest_keys(key: str, keys: Sequence[str]) -> str:
    """Return a hint at the key that was probably meant, such as "; did you mean 'optim.lr'?", or ""."""
    same = [known for known in keys if known.rpartition(".")[2] == key]
    return f"; did you mean '{same[0]}'?" if same else closest(key, keys)


def open_sections(lookup: Callable[[], Mapping[str, type[Any]]]) -> Any:
    """Make a dataclass field for sections that are registered elsewhere and not listed in the class.

    In a file, each registered section is a table next to the other keys of the class. The field contains the sections
    that the file gives, as a tuple of dataclass instances sorted by name.

    Args:
        lookup: Function that returns the sections that are registered now: name -> dataclass.
    """
    return dataclasses.field(default=(), metadata={_OPEN: lookup})


def load_config(cls: type[T], path: Path | str | None = None, overrides: Sequence[str] = ()) -> T:
    """Read a ``cls`` from a file (or from its defaults if ``path`` is None), then apply the overrides.

    Args:
        cls: A dataclass.
        path: A ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file; None uses the dataclass's defaults. A file with
            ``extends = "other.toml"`` starts from the values of the other file, whose path is relative to this file.
        overrides: ``key=value`` or ``section.key=value``; later ones override earlier ones. The text is read by the
            field's type: ``lr=1e-3``, ``name=tiny``, ``augment=false``, ``channels=32,64`` or ``channels=[32,64]``,
            ``resume=null``, ``optimizer={"lr": 1e-3}``.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is not allowed.
    """
    data = {} if path is None else _extended(Path(path))
    source = "" if path is None else f"{path}: "
    for override in overrides:
        _apply_override(cls, data, override)
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{source}{error}") from error


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file and the files that it extends. Its values override the values of those files; tables are merged."""
    here = path.resolve()
    if here in below or len(below) >= _MOST_EXTENDS:
        chain = " -> ".join(file.name for file in (*below, here))
        raise ConfigError(f"{path}: the files extend one another in a circle, or too many of them ({chain})")
    data = read_file(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: 'extends' is {_got(base)}; allowed is the path of another file, as text")
    return _merged(_extended(path.parent / base, (*below, here)), data)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in changes.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def override(config: T, overrides: Sequence[str]) -> T:
    """Return ``config`` with some settings changed, written as for :func:`load_config`."""
    data = to_dict(config)
    for change in overrides:
        _apply_override(type(config), data, change)
    return from_dict(type(config), data)


def read_file(path: Path | str, suffix: str | None = None) -> dict[str, Any]:
    """Read a TOML, YAML or JSON file into a dictionary.

    Args:
        path: The file.
        suffix: Format, such as ".yaml"; None uses the suffix of the file's name.

    Raises:
        ConfigError: The file cannot be read, or is not a table.
    """
    path = Path(path)
    data = read_plain(path, suffix)
    if data is None:  # an empty YAML file
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__} at the top; a configuration is a table of keys")
    return data


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Make a ``cls`` from plain types, checking every key and value.

    Args:
        cls: A dataclass.
        data: A dictionary.
        where: Dotted name of ``data`` in a larger configuration, for messages.

    Raises:
        ConfigError: A key is unknown or missing, or a value is not allowed.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{cls!r} is not a dataclass")
    if not isinstance(data, Mapping):
        raise ConfigError(f"'{where or cls.__name__}' is {_got(data)}; allowed is a table with {sorted(_fields(cls))}")
    fields = _fields(cls)
    for key in data:
        if key not in fields:
            raise ConfigError(_unknown(cls, str(key), where))
    values = {key: _convert(fields[key].type, value, _join(where, key)) for key, value in data.items()}
    holder, sections = _open(cls)
    if holder is not None:
        values[holder] = tuple(values.pop(name) for name in sorted(sections) if name in values)
    missing = [name for name, field in fields.items() if field.required and name not in values]
    if missing:
        raise ConfigError(f"'{_join(where, missing[0])}' is not given, and it has no default")
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"in '{where}': {error}" if where else str(error)) from error


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to JSON types, as :func:`from_dict` reads: sections to dictionaries, tuples to lists."""
    if isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise TypeError(f"{config!r} is not an instance of a dataclass")
    holder, sections = _open(type(config))
    plain = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init and f.name != holder}
    if holder is not None:
        names = {kind: name for name, kind in sections.items()}
        plain |= {names[type(section)]: to_dict(section) for section in getattr(config, holder)}
    return plain


def to_json(config: Any) -> str:
    """Convert a configuration to indented JSON with sorted keys, so that equal configurations give equal text."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True, allow_nan=False)


def from_json(cls: type[T], text: str) -> T:
    """Read what :func:`to_json` wrote; raise :class:`ConfigError` if it is not valid."""
    try:
        data = strict_json.parse(text)
    except strict_json.JsonError as error:
        raise ConfigError(f"configuration cannot be read: {error}") from error
    return from_dict(cls, data)


# --- annotations ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Field:
    type: Any
    required: bool


def _open(cls: type) -> tuple[str | None, Mapping[str, type[Any]]]:
    """Return the field of ``cls`` that :func:`open_sections` made (None without one), and the registered sections."""
    for field in dataclasses.fields(cls):
        if _OPEN in field.metadata:
            return field.name, field.metadata[_OPEN]()
    return None, {}


def _fields(cls: type) -> dict[str, _Field]:
    """Return the keys of ``cls``: its fields, and the sections that are registered for it."""
    holder, sections = _open(cls)
    if holder is None:
        return _own_fields(cls)
    own = {name: field for name, field in _own_fields(cls).items() if name != holder}
    both = own.keys() & sections.keys()
    if both:
        raise TypeError(f"a section is registered as '{min(both)}', which is a key of {cls.__name__}; rename it")
    return {**own, **{name: _Field(kind, required=False) for name, kind in sections.items()}}


@functools.cache
def _own_fields(cls: type) -> dict[str, _Field]:
    # get_type_hints evaluates the strings that `from __future__ import annotations` makes of annotations.
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        field.name: _Field(hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
        if field.init
    }


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself if it is not a union."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _name(annotation: Any) -> str:
    """Implement :func:`name_of_type`."""
    arms = _arms(annotation)
    if len(arms) > 1:
        return " or ".join(_name(arm) for arm in arms)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"a list of {_name(args[0])}"
    if origin is tuple:
        return f"a list [{', '.join(_name(arg) for arg in args)}]"
    if origin is dict:
        return f"a table of {_name(args[1])}"
    if _is_section(annotation):
        return f"a table with {sorted(_fields(annotation))}"
    return str(getattr(annotation, "__name__", annotation))


def _got(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _leaves(cls: type, where: str = "") -> Iterator[str]:
    """Yield the dotted names of every field below ``cls``, for suggestions."""
    for name, field in _fields(cls).items():
        yield _join(where, name)
        for arm in _arms(field.type):
            if _is_section(arm) and arm is not cls:
                yield from _leaves(arm, _join(where, name))


def _unknown(cls: type, key: str, where: str) -> str:
    known = _fields(cls)
    # A key of the same name in a section below is a better suggestion than a key of a similar name at this level.
    below = [leaf for leaf in _leaves(cls) if leaf.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, [*known], n=1, cutoff=0.5)
    meant = below or near
    hint = f"; did you mean '{_join(where, meant[0])}'?" if meant else ""
    if len(key) > 80:
        key = f"{key[:40]}... ({len(key)} characters)"
    return f"unknown key '{_join(where, key)}'{hint} (known here: {', '.join(known)})"


# --- values -----------------------------------------------------------------------------------------------------


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """Convert ``value`` to the type ``annotation``; raise :class:`ConfigError` if it does not fit."""
    arms = _arms(annotation)
    if len(arms) > 1:
        return _convert_union(annotation, arms, value, where)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    wrong = ConfigError(f"'{where}' is {_got(value)}; allowed is {_name(annotation)}")
    if annotation is Any:
        return value
    if annotation is type(None):
        if value is None:
            return None
        raise wrong
    if origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:
                return choice
        hint = closest(value, [arg for arg in args if isinstance(arg, str)]) if isinstance(value, str) else ""
        raise ConfigError(f"{wrong}{hint}")
    if origin is tuple:
        return _convert_tuple(args, value, where, wrong)
    if origin is dict and args[0] is str:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise wrong
        return {key: _convert(args[1], item, _join(where, key)) for key, item in value.items()}
    if _is_section(annotation):
        return value if isinstance(value, annotation) else from_dict(annotation, value, where)
    return _convert_scalar(annotation, value, where, wrong)


def _convert_scalar(annotation: Any, value: Any, where: str, wrong: ConfigError) -> Any:
    if annotation is bool or annotation is str:
        if not isinstance(value, annotation):
            raise wrong
        if isinstance(value, str) and not value.isprintable():
            _require_unicode(value, where)
        return value
    if annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            if not -(2**63) <= value < 2**63:
                raise ConfigError(f"'{where}' is {shown(value)}; allowed is a number of 64 bits")
            return value
        raise wrong
    if annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise ConfigError(f"'{where}' is {shown(value)}; allowed is a finite number")
            return number
        raise wrong
    if annotation is Path:
        if isinstance(value, (str, Path)) and str(value) and "\0" not in str(value):
            return Path(value)
        raise wrong
    raise TypeError(f"'{where}' is annotated {annotation!r}, which a configuration does not support")


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"'{where}' is {shown(text)}, which is not Unicode text") from error


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str, wrong: ConfigError) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise wrong
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(args) != len(value):
        raise ConfigError(f"'{where}' has {len(value)} entries; allowed are exactly {len(args)}")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _convert_union(annotation: Any, arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    if len(arms) == 1 and (typing.get_origin(arms[0]) is not None or isinstance(value, Mapping)):
        return _convert(arms[0], value, where)  # the error of one type is more precise than that of the union
    for arm in sorted(arms, key=lambda arm: arm is not type(value)):  # the exact type first: 1 is an int, not a float
        try:
            return _convert(arm, value, where)
        except ConfigError:
            continue  # try the next member; if none fits, one error names all
    raise ConfigError(f"'{where}' is {_got(value)}; allowed is {_name(annotation)}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# --- overrides --------------------------------------------------------------------------------------------------


def _apply_override(cls: type, data: dict[str, Any], override: str) -> None:
    """Write one ``key.sub=value`` into ``data``, reading the text by the type of its field."""
    key, sign, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not sign or not key:
        raise ConfigError(f"override {shown(override)} must have the form key=value or section.key=value")
    *sections, last = key.split(".")
    where = ""
    table: dict[str, Any] = data
    for name in sections:
        fields = _fields(cls)
        if name not in fields:
            raise ConfigError(_unknown(cls, name, where))
        where = _join(where, name)
        inner = [arm for arm in _arms(fields[name].type) if _is_section(arm)]
        entries = [arm for arm in _arms(fields[name].type) if typing.get_origin(arm) is dict]
        if not inner and not (entries and name == sections[-1]):
            kind = _name(fields[name].type)
            raise ConfigError(f"override {shown(override)}: '{where}' is {kind}, which has no keys")
        child = table.get(name)
        table[name] = child = dict(child) if isinstance(child, Mapping) else {}
        table = child
        if not inner:
            table[last] = parse_text(typing.get_args(entries[0])[1], text)
            return
        cls = inner[0]
    fields = _fields(cls)
    if last not in fields:
        raise ConfigError(_unknown(cls, last, where))
    table[last] = parse_text(fields[last].type, text)


def parse_text(annotation: Any, text: str) -> Any:
    """Convert the text of an override to the value that a file would contain.

    Text that does not fit the type is returned unchanged. The later check of the type refuses it.
    """
    arms = _arms(annotation)
    if type(None) in arms and text.lower() in _NULL_WORDS:
        return None
    for arm in sorted((arm for arm in arms if arm is not type(None)), key=lambda arm: arm is str):  # str last
        value = _parse_arm(arm, text)
        if not isinstance(value, str) or arm in (str, Path) or typing.get_origin(arm) is Literal:
            return value
    return text


def _parse_arm(arm: Any, text: str) -> Any:
    if arm is str or arm is Path:
        return text
    if arm is bool:
        return _BOOL_WORDS.get(text.lower(), text)
    if arm is int or arm is float:
        try:
            return arm(text)
        except ValueError:
            return text
    if typing.get_origin(arm) is Literal:
        return next((choice for choice in typing.get_args(arm) if str(choice).lower() == text.lower()), text)
    if typing.get_origin(arm) is not tuple or text.startswith("["):
        try:
            return strict_json.parse(text)
        except strict_json.JsonError as error:
            if text.startswith("{"):
                raise ConfigError(f"{shown(text)} cannot be read: {error}") from error
            if typing.get_origin(arm) is not tuple:
                return text
    args = typing.get_args(arm)
    bare = re.fullmatch(r"[\[(]?([^\[\]()]*)[\])]?", text)  # words without quotes, which are not JSON
    if bare is None:
        return text
    items = [item.strip() for item in bare[1].split(",") if item.strip()]
    kinds = [args[0]] * len(items) if args[-1:] == (Ellipsis,) else [*args, *[str] * len(items)]
    return [parse_text(kind, item) for kind, item in zip(kinds, items, strict=False)]
