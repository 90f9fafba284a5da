"""Which parameters a node was given, in files and on the command line, and which of them it does not know.

A section of a parameter file is for the nodes whose full name it matches, as in ROS 2: ``/left/m2distill_policy`` for
one, ``*`` in place of one part of a name, ``**`` in place of any number of parts. A later section of the file is over
an earlier one. In a section for nodes of any name (``/**``, ``/left/*``) keys of others are left alone. A key is ours,
and refused where it is not known, if its group is one of ours (``safety.sped``), or if it was given to this node by
name: in a section of its name, or by ``-p``. Imports no ROS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.config import read_file
from m2distill_policy.errors import ConfigError, closest

#: Parameters that rclpy itself declares for every node, and groups of them.
_OF_RCLPY = ("use_sim_time", "start_type_description_service")
_GROUPS_OF_RCLPY = ("qos_overrides",)
_WILD = ("*", "**")
_KEY = "ros__parameters"
_SECTION = re.compile(r"(/(\w+|\*\*?))+", re.ASCII)


def is_parameter_file(content: Mapping[str, Any]) -> bool:
    """Whether a file is meant as a ROS 2 parameter file, well formed or not."""
    return any(
        str(key).startswith("/")
        or key == _KEY
        or (isinstance(value, Mapping) and (_KEY in value or is_parameter_file(value)))
        for key, value in content.items()
    )


def sections(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sections of a ROS 2 parameter file: full name of a node, or a pattern such as ``/**``, and what is in it.

    Nested names are joined. Raises :class:`ConfigError` for what is no section.
    """
    for key, value in content.items():
        name = f"{within}/{str(key).removeprefix('/').removesuffix('/')}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{name[1:]}' is {value!r}; a parameter file has '{_KEY}' below the name of a node")
        if _KEY in value:
            found = value[_KEY]
            if not isinstance(found, Mapping):
                raise ConfigError(f"'{_KEY}' of '{name[1:]}' is {found!r}; a table of parameters is needed")
            if not _SECTION.fullmatch(name):
                raise ConfigError(
                    f"the section '{name}' is no name of a node: letters, digits and '_', parts with '/' between, '*' "
                    "or '**' in place of a part"
                )
            yield name, found
        else:
            yield from sections(value, name)


def matches(section: str, node: str) -> bool:
    """Whether a section is for a node.

    section: of a parameter file, or what comes before the colon of ``-p``; a name without its first slash has it.
    node: full name, such as ``/left/m2distill_policy``.
    """
    parts = {"*": r"/\w+", "**": r"(/\w+)*"}
    pattern = "".join(parts.get(part, f"/{re.escape(part)}") for part in section.strip("/").split("/"))
    return re.fullmatch(pattern, node, re.ASCII) is not None


def is_for_all(section: str) -> bool:
    """Whether a section is for nodes of any name, in whatever namespace."""
    return section.rpartition("/")[2] in _WILD


def is_named(section: str, name: str) -> bool:
    """Whether a section names the node ``name`` (its own name, without a namespace), in whatever namespace."""
    return section.rpartition("/")[2] == name


def sections_of(content: Mapping[str, Any], name: str, namespace: str | None) -> list[tuple[str, dict[str, Any]]]:
    """The sections of a ROS 2 parameter file that are one node's, in the order of the file.

    Args:
        content: of the file.
        name: the node's own name, without a namespace.
        namespace: "" or of the form "/a"; None where it was not given. Then it is the one that the file has sections
            for. A file with the section of one node alone, of whatever name, is taken for this node's.

    Returns:
        For each its name and its parameters by their full names (``safety.speed``).

    Raises:
        ConfigError: what is no section, no section for this node, sections for it that depend on the namespace where
            none was given, or a section or a parameter in it that is given twice.
    """
    found = list(sections(content))
    names = [section for section, _ in found]
    could_be = [section for section in names if is_named(section, name) or is_for_all(section)]
    if namespace is None and could_be:
        namespace = _only_namespace(could_be, name)
    elif namespace is None:
        if len(found) != 1:
            there = ", ".join(section.strip("/") for section in names)
            raise ConfigError(f"the file has parameters of {len(found)} nodes ({there}); one is wanted")
        return [(section, flatten(parameters, section)) for section, parameters in found]
    return _matching(found, f"{namespace}/{name}")


def _only_namespace(could_be: Sequence[str], name: str) -> str:
    """The one namespace that sections are for; '/**' and '/**/name' are for every one and so say nothing of it."""
    telling = [section for section in could_be if not matches(section, f"/{name}") or section == f"/{name}"]
    places = {section.rpartition("/")[0] for section in telling}
    if len(places) > 1 or any("*" in place for place in places):
        raise ConfigError(
            f"whose parameters these are depends on the namespace of {name}, and none was given: the file has "
            f"{', '.join(telling)}; add --namespace, '/' for none"
        )
    return places.pop() if places else ""


def _matching(found: Sequence[tuple[str, Mapping[str, Any]]], node: str) -> list[tuple[str, dict[str, Any]]]:
    """Those of ``found`` that are for ``node``; raises :class:`ConfigError` where there is none, or one twice."""
    ours: dict[str, dict[str, Any]] = {}
    for section, parameters in found:
        if matches(section, node):
            if section in ours:
                raise ConfigError(f"the section '{section}' is given twice, in two spellings; write it once")
            ours[section] = flatten(parameters, section)
    if not ours:
        there = ", ".join(section for section, _ in found)
        raise ConfigError(
            f"no section is for the node {node}; there are {there}: give the namespace of one of them, or write "
            f"'/**/{node.rpartition('/')[2]}' for any"
        )
    return list(ours.items())


@dataclass(frozen=True)
class Given:
    """What a command line gives to a node. names: of parameters that it gives to this node by its name.

    refused: a message for each thing that ROS 2 takes without a word and that is a mistake: a parameter given twice in
    one section, a file with sections of this node's name in other namespaces alone.
    """

    names: frozenset[str]
    refused: tuple[str, ...]


def given_by_name(arguments: Sequence[str], node: str) -> Given:
    """What the command line gives to a node, in files' sections and by ``-p``.

    Args:
        arguments: of the process, as ROS 2 understands them. A file that ROS 2 cannot read gives nothing: it says so
            itself.
        node: its full name, such as ``/left/m2distill_policy``.
    """
    names: set[str] = set()
    refused: list[str] = []
    in_ros = False
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--ros-args":
            in_ros = True
        elif word == "--":
            in_ros = False
        elif in_ros and word in ("-p", "--param"):
            target = following.partition(":=")[0]
            of, separator, name = target.rpartition(":")
            if not separator or matches(of, node):
                names.add(name)
            elif is_named(f"/{of}", node.rpartition("/")[2]):
                refused.append(f"'-p {target}' is for /{of}, and this node is {node}; leave '{of}:' out")
        elif in_ros and word == "--params-file":
            found = _named_in(Path(following), node)
            names |= found.names
            refused += found.refused
    return Given(frozenset(names), tuple(refused))


def _named_in(path: Path, node: str) -> Given:
    own = node.rpartition("/")[2]
    try:
        content = read_file(path, ".yaml")  # launch's own files have no suffix
        found = list(sections(content))
    except ConfigError:
        return Given(frozenset(), ())
    if not any(is_named(section, own) or matches(section, node) for section, _ in found):
        return Given(frozenset(), ())
    try:
        ours = _matching(found, node)
    except ConfigError as error:
        return Given(frozenset(), (f"{path}: {error}",))
    return Given(frozenset(name for section, values in ours if is_named(section, own) for name in values), ())


def unknown(names: Iterable[str], known: Collection[str], by_name: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that were meant for us and are not ``known``, each with a message.

    by_name: those given to this node by its name.
    """
    groups = {name.partition(".")[0] for name in known if "." in name}
    refused = {}
    for name in sorted(names):
        group = name.partition(".")[0]
        if name in known or name in _OF_RCLPY or group in _GROUPS_OF_RCLPY:
            continue
        if name in by_name or group in groups:
            refused[name] = f"parameter '{name}' is not known{closest(name, known)}"
    return refused


def likely_misspelt(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that others may have been meant with, and that look much like one of ours, with a message."""
    found = {}
    for name in sorted(names):
        if name not in known and name not in _OF_RCLPY and (hint := closest(name, known, cutoff=0.8)):
            found[name] = f"parameter '{name}' is left to other nodes{hint}"
    return found


def flatten(parameters: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The parameters of a section by their full names (``safety.speed``).

    Raises:
        ConfigError: one is given twice, nested and with a dot.
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(parameters):
        if name in found:
            raise ConfigError(
                f"parameter '{name}' is given twice in the section '{section}', nested and with a dot; keep one"
            )
        found[name] = value
    return found


def _leaves(parameters: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value
