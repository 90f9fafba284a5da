"""The services ``~/enable``, ``~/reset``, ``~/load_policy`` and ``~/rollback``."""

from __future__ import annotations

import time
from typing import Any

from m2distill_msgs.srv import LoadPolicy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import SetBool, Trigger

from m2distill_policy.ros.policy_state import PolicyState
from m2distill_policy.ros.waiting import NextTurn
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import SwapReport, SwapState

#: Seconds that a bundle may take until it is ready.
_PATIENCE = 120.0


class Services:
    """The node's services. While the node is not configured, they fail with a message."""

    def __init__(self, node: LifecycleNode, state: PolicyState) -> None:
        self._state = state
        group = ReentrantCallbackGroup()  # loading a bundle must not block ~/enable
        node.create_service(SetBool, "~/enable", self._enable, callback_group=group)
        node.create_service(Trigger, "~/reset", self._reset, callback_group=group)
        node.create_service(Trigger, "~/rollback", self._rollback, callback_group=group)
        node.create_service(LoadPolicy, "~/load_policy", self._load, callback_group=group)

    def _server(self, response: Any, *, active: bool = False) -> PolicyServer | None:
        """Return the policy server; None, with the reason in ``response``, if the node cannot be used yet."""
        message = ""
        if self._state.server is None:
            message = "the node is not configured; configure it first"
        elif active and not self._state.is_active:
            message = "the node is not active; activate it first"
        if not message:
            return self._state.server
        response.success = False
        response.message = message
        return None

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        server = self._server(response, active=bool(request.data))
        if server is None:
            return response
        response.success, response.message = self._state.require_loop().operator.enable(bool(request.data))
        return response

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        server = self._server(response)
        if server is not None:
            server.reset("~/reset")
            response.success = True
            response.message = "the window was cleared"
        return response

    async def _load(self, request: LoadPolicy.Request, response: LoadPolicy.Response) -> LoadPolicy.Response:
        server = self._server(response)
        if server is None:
            return response
        server.load(request.path)
        report = await self._wait_for_swap(server)
        response.success = report.state in (SwapState.READY, SwapState.SWITCHED)
        response.message, response.bundle = report.message, report.bundle
        return response

    async def _rollback(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        server = self._server(response)
        if server is None:
            return response
        try:
            server.rollback()
        except SwapError as error:
            response.success = False
            response.message = str(error)
            return response
        report = await self._wait_for_swap(server)
        response.success = report.state in (SwapState.READY, SwapState.SWITCHED)
        response.message = report.message
        return response

    async def _wait_for_swap(self, server: PolicyServer) -> SwapReport:
        """Wait until the bundle that is being loaded is ready or refused."""
        until = time.monotonic() + _PATIENCE
        while server.swap.state is SwapState.LOADING and time.monotonic() < until:
            await NextTurn()
        return server.swap
