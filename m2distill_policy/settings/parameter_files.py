"""Find the parameters that files and the command line give to a node, and which of them are unknown.

As in ROS 2, a section of a parameter file applies to the nodes whose full name it matches: ``/left/m2distill_policy``
is one node, ``*`` stands for one part of a name, ``**`` for any number of parts. Later sections override earlier ones.

Sections for nodes of any name (``/**``, ``/left/*``) may hold parameters of other nodes. There, an unknown parameter is
an error only if this node has parameters of the same group (``safety.sped``). In sections that name this node, and with
``-p``, every unknown parameter is an error. This module does not import ROS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.config import read_file
from m2distill_policy.errors import ConfigError, closest

#: Parameters, and groups of parameters, that rclpy itself declares for every node.
_OF_RCLPY = ("use_sim_time", "start_type_description_service")
_GROUPS_OF_RCLPY = ("qos_overrides",)
_WILD = ("*", "**")
_KEY = "ros__parameters"
_SECTION = re.compile(r"(/(\w+|\*\*?))+", re.ASCII)


def is_parameter_file(content: Mapping[str, Any]) -> bool:
    """Return whether a file is meant as a ROS 2 parameter file, even if it is not well formed."""
    return any(
        str(key).startswith("/")
        or key == _KEY
        or (isinstance(value, Mapping) and (_KEY in value or is_parameter_file(value)))
        for key, value in content.items()
    )


def sections(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections of a ROS 2 parameter file: a node's full name or a pattern such as ``/**``, and its content.

    Nested names are joined.

    Raises:
        ConfigError: A part of the file is not a section.
    """
    for key, value in content.items():
        name = f"{within}/{str(key).removeprefix('/').removesuffix('/')}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{name[1:]}' is {value!r}; below the name of a node, '{_KEY}' is needed")
        if _KEY in value:
            found = value[_KEY]
            if not isinstance(found, Mapping):
                raise ConfigError(f"'{_KEY}' of '{name[1:]}' is {found!r}; it must be a table of parameters")
            if not _SECTION.fullmatch(name):
                raise ConfigError(
                    f"the section '{name}' is not a node's name: use letters, digits and '_', with '/' between parts, "
                    "or '*' or '**' for a part"
                )
            yield name, found
        else:
            yield from sections(value, name)


def matches(section: str, node: str) -> bool:
    """Return whether a section applies to a node.

    Args:
        section: Name of a section of a parameter file, or the part of ``-p`` before the colon. The first slash may be
            left out.
        node: Full name, such as ``/left/m2distill_policy``.
    """
    parts = {"*": r"/\w+", "**": r"(/\w+)*"}
    pattern = "".join(parts.get(part, f"/{re.escape(part)}") for part in section.strip("/").split("/"))
    return re.fullmatch(pattern, node, re.ASCII) is not None


def is_for_all(section: str) -> bool:
    """Return whether a section applies to nodes of any name, in some namespace or in all."""
    return section.rpartition("/")[2] in _WILD


def is_named(section: str, name: str) -> bool:
    """Return whether a section names the node ``name`` (its name without a namespace), in some namespace or in all."""
    return section.rpartition("/")[2] == name


def sections_of(content: Mapping[str, Any], name: str, namespace: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the sections of a ROS 2 parameter file that apply to one node, in the order of the file.

    Args:
        content: Content of the file.
        name: The node's name without a namespace.
        namespace: Namespace of the node, "" or of the form "/a". None if it is not known: then it is taken from the
            file. If no section fits the node's name, and the file has only one section, that section is used.

    Returns:
        For each section its name, and its parameters by their full names (``safety.speed``).

    Raises:
        ConfigError: A part of the file is not a section; no section applies to the node; the namespace is not known
            and decides which sections apply; or a section or a parameter in it is given twice.
    """
    found = list(sections(content))
    names = [section for section, _ in found]
    could_be = [section for section in names if is_named(section, name) or is_for_all(section)]
    if namespace is None and could_be:
        namespace = _only_namespace(could_be, name)
    elif namespace is None:
        if len(found) != 1:
            there = ", ".join(section.strip("/") for section in names)
            raise ConfigError(
                f"the file has parameters of {len(found)} nodes ({there}), but only one node may be given"
            )
        return [(section, flatten(parameters, section)) for section, parameters in found]
    return _matching(found, f"{namespace}/{name}")


def _only_namespace(could_be: Sequence[str], name: str) -> str:
    """Return the only namespace that sections name. '/**' and '/**/name' apply to all namespaces, so they name none."""
    telling = [section for section in could_be if not matches(section, f"/{name}") or section == f"/{name}"]
    places = {section.rpartition("/")[0] for section in telling}
    if len(places) > 1 or any("*" in place for place in places):
        raise ConfigError(
            f"the file has sections for {name} in several namespaces ({', '.join(telling)}), but none was given; "
            "add --namespace, '/' for none"
        )
    return places.pop() if places else ""


def _matching(found: Sequence[tuple[str, Mapping[str, Any]]], node: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the sections for ``node``; raise :class:`ConfigError` if none applies or one is given twice."""
    ours: dict[str, dict[str, Any]] = {}
    for section, parameters in found:
        if matches(section, node):
            if section in ours:
                raise ConfigError(f"the section '{section}' is given twice, in two spellings; write it once")
            ours[section] = flatten(parameters, section)
    if not ours:
        there = ", ".join(section for section, _ in found)
        raise ConfigError(
            f"no section applies to the node {node}; the file has {there}: use the namespace of one of them, or write"
            f" '/**/{node.rpartition('/')[2]}', which applies in every namespace"
        )
    return list(ours.items())


@dataclass(frozen=True)
class Given:
    """The parameters that a command line sets for a node.

    Attributes:
        names: Parameters that are set for this node by its name.
        refused: A message for each mistake that ROS 2 accepts silently: a parameter given twice in one section, or a
            file that names this node only in other namespaces.
    """

    names: frozenset[str]
    refused: tuple[str, ...]


def given_by_name(arguments: Sequence[str], node: str) -> Given:
    """Return the parameters that a command line gives to a node by its name, in files and by ``-p``.

    Args:
        arguments: Arguments of the process. A file that ROS 2 cannot read is ignored, because ROS 2 reports it.
        node: Full name, such as ``/left/m2distill_policy``.
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
                refused.append(f"'-p {target}' is for /{of}, but this node is {node}; leave '{of}:' out")
        elif in_ros and word == "--params-file":
            found = _named_in(Path(following), node)
            names |= found.names
            refused += found.refused
    return Given(frozenset(names), tuple(refused))


def _named_in(path: Path, node: str) -> Given:
    own = node.rpartition("/")[2]
    try:
        content = read_file(path, ".yaml")  # temporary files of ROS launch have no suffix
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
    """Return those of ``names`` that are meant for this node but are not in ``known``, each with a message.

    Args:
        names: Parameters that are given.
        known: Parameters that the node has.
        by_name: Parameters that are given to this node by its name.
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
    """Return those of ``names`` that may be meant for other nodes but resemble one of ``known``, with a message."""
    found = {}
    for name in sorted(names):
        if name not in known and name not in _OF_RCLPY and (hint := closest(name, known, cutoff=0.8)):
            found[name] = f"parameter '{name}' is ignored, because it may be for another node{hint}"
    return found


def flatten(parameters: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the parameters of a section by their full names (``safety.speed``).

    Raises:
        ConfigError: A parameter is given twice, once nested and once with a dot.
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
