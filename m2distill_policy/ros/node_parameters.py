"""Declare the policy node's parameters, check each change, and find parameters that the node does not have."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sized
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter as RosParameter

from m2distill_policy.errors import ConfigError, UnknownInstructionError
from m2distill_policy.ros.policy_state import PolicyState
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.settings.definitions import BY_NAME, PARAMETERS, check
from m2distill_policy.settings.parameter import KINDS
from m2distill_policy.settings.parameter_files import given_by_name, likely_misspelt, unknown

#: rclpy cannot know the type of an empty list, so it is set for these parameters.
_LISTS = {"floats": RosParameter.Type.DOUBLE_ARRAY, "strings": RosParameter.Type.STRING_ARRAY}


class NodeParameters:
    """The parameters of a policy node.

    Args:
        node: The node that declares them.
        state: State of the policy. Most parameters cannot change while the node is configured.
        overrides: Values by name, in addition to those of the command line.
        given: All parameters that rclpy was given for this node, declared or not.
    """

    def __init__(
        self,
        node: LifecycleNode,
        state: PolicyState,
        overrides: Mapping[str, object],
        given: Mapping[str, RosParameter],
    ) -> None:
        self._node = node
        self._state = state
        for parameter in PARAMETERS:
            node.declare_parameter(
                parameter.name,
                parameter.default,
                ParameterDescriptor(
                    description=f"{parameter.text}{f' ({parameter.unit})' if parameter.unit else ''}",
                    additional_constraints=f"{KINDS[parameter.kind]} {parameter.allowed}".strip(),
                    read_only=parameter.is_fixed,
                    # The table checks types itself: it accepts 1 for 1.0, and an empty list has no type in ROS 2.
                    dynamic_typing=True,
                ),
            )
        #: Messages about parameters that were given but that this node does not have, or that were given twice.
        self._invalid = self._check_given(set(overrides), given)
        self._type_empty_lists()
        node.add_pre_set_parameters_callback(lambda changes: [_with_type(change) for change in changes])
        node.add_on_set_parameters_callback(self._check_changes)
        node.add_post_set_parameters_callback(self._apply_changes)

    def values(self) -> dict[str, object]:
        """Return all values by name.

        Raises:
            ConfigError: A parameter was given that this node does not have, or one was given twice.
        """
        if self._invalid:
            raise ConfigError(f"{'; '.join(self._invalid)}; correct it and start the node again")
        return {parameter.name: self._node.get_parameter(parameter.name).value for parameter in PARAMETERS}

    def _check_given(self, in_code: set[str], given: Mapping[str, RosParameter]) -> list[str]:
        """Log every invalid parameter. Return the messages about those that the node does not have.

        Args:
            in_code: Names of the parameters that were given to the constructor.
            given: All parameters that rclpy was given.
        """
        values = {name: _as_given(parameter).value for name, parameter in given.items()}
        by_name = given_by_name(sys.argv, self._node.get_fully_qualified_name())
        refused = unknown(values, BY_NAME, in_code | by_name.names)
        never_valid = [*by_name.refused, *refused.values()]
        wrong = list(never_valid)
        for name in BY_NAME.keys() & values.keys():
            try:
                check(name, values[name])
            except ConfigError as error:
                wrong.append(str(error))
        for message in wrong:
            self._node.get_logger().error(message)
        for message in likely_misspelt(values.keys() - refused.keys(), BY_NAME).values():
            self._node.get_logger().warning(message)
        return never_valid

    def _type_empty_lists(self) -> None:
        """Set every empty list again with its type, because rclpy reads it as a list of bytes."""
        found = [_with_type(_as_given(self._node.get_parameter(parameter.name))) for parameter in PARAMETERS]
        self._node.set_parameters([parameter for parameter in found if parameter.value == []])

    def _check_changes(self, changes: list[RosParameter]) -> SetParametersResult:
        server = self._state.server
        ours: dict[str, Any] = {change.name: change.value for change in changes if change.name in BY_NAME}
        try:
            for name, value in ours.items():
                check(name, value)
                if server is not None and not BY_NAME[name].is_live:
                    raise ConfigError(
                        f"parameter '{name}' is read when the node is configured; deactivate and clean up the node, "
                        "set the parameter, then configure it again"
                    )
            if "instruction" in ours and server is not None:
                server.require_known(str(ours["instruction"]))
        except (ConfigError, UnknownInstructionError, EngineError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_changes(self, changes: list[RosParameter]) -> None:
        """Apply ``changes``, which have been accepted."""
        for change in changes:
            if change.name == "instruction" and self._state.server is not None:
                try:
                    self._state.server.set_instruction(str(change.value), keep_on_refusal=True)
                except (UnknownInstructionError, EngineError) as error:
                    self._node.get_logger().error(f"the instruction could not be set: {error}")


def _as_given(parameter: RosParameter) -> RosParameter:
    """Return ``parameter``; a list that is None becomes [], because an empty list in a file arrives as None."""
    is_list = parameter.name in BY_NAME and BY_NAME[parameter.name].kind in _LISTS
    return RosParameter(parameter.name, value=[]) if is_list and parameter.value is None else parameter


def _with_type(parameter: RosParameter) -> RosParameter:
    """Return ``parameter``; an empty list gets the type from the table."""
    kind = _LISTS.get(BY_NAME[parameter.name].kind) if parameter.name in BY_NAME else None
    is_empty = isinstance(parameter.value, Sized) and not isinstance(parameter.value, str) and not len(parameter.value)
    return RosParameter(parameter.name, kind, []) if kind is not None and is_empty else parameter
