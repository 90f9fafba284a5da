"""Which parameters a node was given, in files and on the command line, and which of them it does not know.

A file's section ``/**`` is for every node, so keys of others are left alone there. A key is ours, and refused where it
is not known, if its group is one of ours (``safety.sped``), or if it was given to this node by name: in a section of
its name, or by ``-p``. Imports no ROS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2distill_policy.config import read_file
from m2distill_policy.errors import ConfigError, closest

#: Parameters that rclpy itself declares for every node, and groups of them.
_OF_RCLPY = ("use_sim_time", "start_type_description_service")
_GROUPS_OF_RCLPY = ("qos_overrides",)
_WILD = ("*", "**")
_KEY = "ros__parameters"


def is_parameter_file(content: Mapping[str, Any]) -> bool:
    """Whether a file is meant as a ROS 2 parameter file, well formed or not."""
    return any(
        str(key).startswith("/")
        or key == _KEY
        or (isinstance(value, Mapping) and (_KEY in value or is_parameter_file(value)))
        for key, value in content.items()
    )


def sections(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of a ROS 2 parameter file: full name of a node, or a pattern such as ``/**``, and its parameters.

    Nested names are joined, nested parameters too (``safety.speed``). Raises :class:`ConfigError` for what is no
    section.
    """
    for key, value in content.items():
        name = f"{within}/{str(key).strip('/')}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{name[1:]}' is {value!r}; a parameter file has '{_KEY}' below the name of a node")
        if _KEY in value:
            found = value[_KEY]
            if not isinstance(found, Mapping):
                raise ConfigError(f"'{_KEY}' of '{name[1:]}' is {found!r}; a table of parameters is needed")
            yield name, dict(_flat(found))
        else:
            yield from sections(value, name)


def is_for_all(section: str) -> bool:
    """Whether a section is for nodes of any name."""
    return section.rpartition("/")[2] in _WILD


def is_for(section: str, node: str) -> bool:
    """Whether a section names the node ``node`` (its own name, without a namespace)."""
    return section.rpartition("/")[2] == node


def given_by_name(arguments: Sequence[str], node: str) -> set[str]:
    """Names of the parameters that the command line gives to the node ``node``, in files' sections and by ``-p``.

    arguments: of the process, as ROS 2 understands them. A file that cannot be read gives none: ROS 2 says so itself.
    """
    found: set[str] = set()
    in_ros = False
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--ros-args":
            in_ros = True
        elif word == "--":
            in_ros = False
        elif in_ros and word in ("-p", "--param"):
            target = following.partition(":=")[0]
            of, separator, name = target.rpartition(":")
            if not separator or of.strip("/").rpartition("/")[2] == node:
                found.add(name)
        elif in_ros and word == "--params-file":
            found |= _named_in(Path(following), node)
    return found


def _named_in(path: Path, node: str) -> set[str]:
    try:
        content = read_file(path, ".yaml")  # launch's own files have no suffix
        named = [values for section, values in sections(content) if is_for(section, node)]
    except ConfigError:
        return set()
    return {name for values in named for name in values}


def unknown(names: Iterable[str], known: Collection[str], by_name: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that were meant for us and are not ``known``, each with a sentence.

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
    """Those of ``names`` that others may have been meant with, and that look much like one of ours, with a sentence."""
    found = {}
    for name in sorted(names):
        if name not in known and name not in _OF_RCLPY and (hint := closest(name, known, cutoff=0.8)):
            found[name] = f"parameter '{name}' is left to other nodes{hint}"
    return found


def _flat(parameters: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value
