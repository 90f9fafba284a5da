"""The policy as a lifecycle node: messages in, :class:`~m2distill_policy.node.cycle.PolicyCycle`, messages out.

``configure`` loads and verifies the bundle, ``activate`` publishes, ``deactivate`` ramps to a halt and only then stops
publishing, ``cleanup`` frees. One thread does all of it; a bundle is prepared for a swap in the runtime's own thread.
"""

from __future__ import annotations

import functools
import gc
import sys
import time
import traceback
from collections.abc import Callable, Sized
from typing import TypeAlias

import cv2
from m2distill_msgs.msg import Episode
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter

from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.errors import ConfigError, M2DistillError, TransportError, UnknownInstructionError, printable
from m2distill_policy.node import topics
from m2distill_policy.node.cycle import Output, PolicyCycle
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.node.pose_gate import PoseGate
from m2distill_policy.node.pose_source import POSE_PERIODS
from m2distill_policy.ros.inputs import Inputs
from m2distill_policy.ros.outputs import Outputs
from m2distill_policy.ros.overrides import given_by_name, likely_misspelt, unknown
from m2distill_policy.ros.parameters import BY_NAME, KINDS, PARAMETERS, NodeSettings, check, settings_from
from m2distill_policy.ros.pictures import Frame, picture_of
from m2distill_policy.ros.run_task import RunTaskServer
from m2distill_policy.ros.services import Services
from m2distill_policy.ros.transforms import TransformedPoses
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.probe import open_and_prove
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.runtime.watcher import FolderWatcher

#: s between two ~/status of a node that is configured and not active.
_IDLE_STATUS = 1.0


_Transition: TypeAlias = Callable[["PolicyNode", LifecycleState], TransitionCallbackReturn]

#: An empty list has no type in rclpy; ours have.
_LISTS = {"floats": RosParameter.Type.DOUBLE_ARRAY, "strings": RosParameter.Type.STRING_ARRAY}


def _loud(what: str) -> Callable[[_Transition], _Transition]:
    """Log whatever a transition raises, and let it fail: rclpy would end it without a word.

    what: the transition, as in "cannot configure". One that leads up fails and the node stays where it was; one that
    leads down is an error, which frees everything.
    """

    def decorate(transition: _Transition) -> _Transition:
        @functools.wraps(transition)
        def transit(node: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
            try:
                return transition(node, state)
            except M2DistillError as error:
                node.get_logger().error(printable(f"cannot {what}: {error}"))
            except Exception as error:
                node.get_logger().error(f"cannot {what}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
            down = what in ("deactivate", "clean up", "shut down")
            return TransitionCallbackReturn.ERROR if down else TransitionCallbackReturn.FAILURE

        return transit

    return decorate


def _given(parameter: RosParameter) -> RosParameter:
    """``parameter`` as it was given: of an empty list in a file nothing is left (a key without a value rcl refuses)."""
    is_list = parameter.name in BY_NAME and BY_NAME[parameter.name].kind in _LISTS
    return RosParameter(parameter.name, value=[]) if is_list and parameter.value is None else parameter


def _with_a_type(parameter: RosParameter) -> RosParameter:
    """``parameter``, with the type of its table's row where it is an empty list."""
    kind = _LISTS.get(BY_NAME[parameter.name].kind) if parameter.name in BY_NAME else None
    empty = isinstance(parameter.value, Sized) and not isinstance(parameter.value, str) and not len(parameter.value)
    return RosParameter(parameter.name, kind, []) if kind is not None and empty else parameter


class PolicyNode(LifecycleNode):
    """The node. ``overrides``: parameters by name, beside those of the command line; for tests and compositions."""

    def __init__(self, overrides: dict[str, object] | None = None) -> None:
        super().__init__(
            topics.POLICY_NODE,
            parameter_overrides=[RosParameter(name, value=value) for name, value in (overrides or {}).items()],
        )
        self.settings: NodeSettings | None = None
        self.server: PolicyServer | None = None
        #: The newest cycle's output, for those who watch what happens.
        self.last: Output | None = None
        self._cycle: PolicyCycle[Frame] | None = None
        self._active = False
        self._heard = 0.0
        self._shutdown_reason = "the node was shut down"
        self._watcher: FolderWatcher | None = None
        self._inputs: Inputs | None = None
        self._outputs: Outputs | None = None
        self._poses: TransformedPoses | None = None
        for parameter in PARAMETERS:
            self.declare_parameter(
                parameter.name,
                parameter.default,
                ParameterDescriptor(
                    description=f"{parameter.text}{f' ({parameter.unit})' if parameter.unit else ''}",
                    additional_constraints=f"{KINDS[parameter.kind]} {parameter.allowed}".strip(),
                    read_only=parameter.fixed,
                    # The table checks types itself: it takes 1 for 1.0, and an empty list has no type in ROS 2.
                    dynamic_typing=True,
                ),
            )
        #: Sentences about parameters that this node was given and does not know, or that were given to it twice.
        self._unknown_parameters = self._look_at_overrides(set(overrides or {}))
        self._give_empty_lists_a_type()
        self.add_pre_set_parameters_callback(lambda changes: [_with_a_type(change) for change in changes])
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._policy_services = Services(self)
        self._task_server = RunTaskServer(self)
        self._wake = self.create_timer(_IDLE_STATUS, self._on_wake, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def active(self) -> bool:
        """Whether observations are answered."""
        return self._active

    @property
    def steadily(self) -> float:
        """s of a monotonic clock."""
        return time.monotonic()

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    @_loud("configure")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and verify the bundle; a failure leaves the node unconfigured and says why in the log."""
        try:
            self._configure()
        except BaseException:
            self._free()
            raise
        return super().on_configure(state)

    def _configure(self) -> None:
        if self._unknown_parameters:
            raise ConfigError(f"{'; '.join(self._unknown_parameters)}; correct it and start the node again")
        settings = settings_from(self._values())
        # The cores belong to cameras and control; a picture is small work.
        cv2.setNumThreads(1)
        public_key = PublicKey.load(settings.public_key) if settings.public_key is not None else None
        server = PolicyServer(
            open_and_prove(settings.bundle, threads=settings.threads, public_key=public_key),
            provider=settings.provider,
            threads=settings.threads,
            sampling=settings.sampling,  # type: ignore[arg-type]
            temperature=settings.temperature,
            seed=settings.seed,
            limits=settings.arm.safety,
            watch=WatchLimits.lockstep() if settings.lockstep else settings.arm.watch,
            enabled=False,
            resume=settings.resume,  # type: ignore[arg-type]
            swap_when=settings.swap_when,  # type: ignore[arg-type]
            public_key=public_key,
        )
        self.settings, self.server = settings, server
        if settings.watch_folder is not None:
            self._watcher = FolderWatcher(settings.watch_folder, server.load)
        if settings.instruction:
            server.set_instruction(settings.instruction)
        if settings.frames is not None:
            self._poses = TransformedPoses(
                self,
                settings.frames.base,
                settings.frames.end_effector,
                slop=round(settings.cycle.slop * 1e9),
                longest_silence=POSE_PERIODS * server.contract.period,
                gate=PoseGate(server.speeds, jumps=not settings.lockstep),
            )
        self._cycle = self._new_cycle()
        self._outputs = Outputs(
            self,
            server.contract,
            settings,
            gripper_trouble=lambda sentence: self._present_cycle().trouble("gripper", sentence),
            gripper_lost=lambda: self._present_cycle().gripper_missed(),
            others_there=lambda topic, names: self._present_cycle().other_publishers(topic, names),
            others_heard=lambda topic: self._present_cycle().other_command(topic),
        )
        self._inputs = Inputs(
            self,
            server.contract,
            settings,
            cycle=self._present_cycle,
            active=lambda: self._active,
            turn=self._turn,
            begin_episode=self._begin_episode,
        )
        if self._watcher is not None and not settings.lockstep:
            self._watcher.start()  # until cleanup: a watcher that was stopped does not start again
        # What is here stays; the collector need not walk it again between two cycles.
        gc.collect()
        gc.freeze()
        self.get_logger().info(
            f"bundle {server.bundle.identifier} ({', '.join(server.bundle.task_names)}) at "
            f"{server.contract.rate_hz:g} Hz, {server.engine.active_provider}"
        )

    @_loud("activate")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer observations; let commands out if ``enable`` says so."""
        assert self.server is not None and self.settings is not None
        result = super().on_activate(state)
        if result != TransitionCallbackReturn.SUCCESS:
            return result
        try:
            self.server.reset("activated")
            self.server.release_halt()  # the deactivation's
            if self.settings.enable:
                self.server.enable()
            self._cycle = self._new_cycle()
            self._heard = self.steadily
            self._active = True
            self._schedule()
        except BaseException:
            self._active = False
            self.server.disable()
            super().on_deactivate(state)
            raise
        return result

    @_loud("deactivate")
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ramp to a halt, then stop publishing commands."""
        self._ramp_out("the node was deactivated")
        return super().on_deactivate(state)

    @_loud("clean up")
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the bundle and all that belongs to it."""
        self._free()
        return super().on_cleanup(state)

    @_loud("shut down")
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ramp to a halt where the node is active, then free everything."""
        self._ramp_out(self._shutdown_reason)
        self._free()
        return super().on_shutdown(state)

    @_loud("leave a failed transition")
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """An error that nothing expected: ramp to a halt, and back to unconfigured."""
        self._ramp_out("the node failed")
        self._free()
        return super().on_error(state)

    def bring_up(self) -> bool:
        """Configure and activate; whether that went well."""
        done = TransitionCallbackReturn.SUCCESS
        return bool(self.trigger_configure() == done and self.trigger_activate() == done)

    def shut_down(self, reason: str) -> None:
        """The lifecycle's last transition, from whatever state; ``reason`` is what ~/status says of the halt."""
        self._shutdown_reason = reason
        self.trigger_shutdown()

    def _ramp_out(self, reason: str) -> None:
        """Halt without observations, at the contract's rate; commands still go out."""
        if not self._active or self._cycle is None or self.server is None or self._outputs is None:
            return
        self._active = False
        self._cycle.leave(reason)
        mute = False
        while not self._cycle.left:
            output = self._cycle.ramp()
            self._outputs.command(output)
            try:
                self._say(output)
            except Exception as error:  # the arm must be halted whatever becomes of the status
                if not mute:
                    self.get_logger().error(f"the ramp to a halt goes on, but its status cannot be published: {error}")
                mute = True
            time.sleep(self.server.contract.period)
        self.server.disable()
        self._cycle = self._new_cycle()

    def _free(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        if self._outputs is not None:
            self._outputs.close()
        if self._poses is not None:
            self._poses.close()
        if self._watcher is not None:
            self._watcher.stop()
        if self.server is not None:
            self.server.close()
        self.settings = self.server = self._cycle = self._watcher = None
        self._inputs = self._outputs = None
        self.last = self._poses = None
        gc.unfreeze()  # what was kept from the collector is to go, and some libraries complain at the end if it stays

    def _new_cycle(self) -> PolicyCycle[Frame]:
        assert self.server is not None and self.settings is not None
        return PolicyCycle(
            self.server,
            picture_of,
            self.settings.cycle,
            lockstep=self.settings.lockstep,
            watcher=self._watcher,
            full_name=lambda topic: str(self.resolve_topic_name(topics.relative(topic, own=True))),
            name=self.get_fully_qualified_name(),
            wall=lambda: int(self.get_clock().now().nanoseconds),
            poses=self._poses,
        )

    def enable(self, wanted: bool) -> tuple[bool, str]:
        """Let commands out, or ramp to a halt; see :meth:`PolicyCycle.enable`."""
        return self._present_cycle().enable(wanted)

    # --- cycles ------------------------------------------------------------------------------------------------------

    def _present_cycle(self) -> PolicyCycle[Frame]:
        assert self._cycle is not None
        return self._cycle

    def _turn(self, begin: float) -> None:
        """Something came, or time has passed: run the cycle if it is due."""
        cycle = self._cycle
        if not self._active or cycle is None or self._inputs is None or self.settings is None:
            return
        self._inputs.drain_joints()
        if self.settings.lockstep:
            self._heard = self.steadily
            cycle.pose_expected = self._inputs.pose_is_published
            output = cycle.run_lockstep(begin)
        else:
            output = cycle.run(begin)
        if output is not None:
            self._publish(output)
        self._schedule()

    def _publish(self, output: Output) -> None:
        assert self._outputs is not None
        self._outputs.command(output)
        self._say(output)

    def _say(self, output: Output) -> None:
        assert self._outputs is not None and self._cycle is not None
        self._outputs.say(output)
        self._cycle.published(output)
        self._outputs.publish_markers(output)
        self._outputs.publish_health(output, int(self.get_clock().now().nanoseconds))
        self._outputs.watch_others()
        if output.health is not None and self._inputs is not None:
            self._inputs.forget_silent_cameras()
        self.last = output

    def _schedule(self) -> None:
        """Wake when the cycle has something to do even if nothing comes."""
        assert self._cycle is not None and self.settings is not None
        wait = _IDLE_STATUS if self.settings.lockstep else max(0.0005, self._cycle.wake - self.steadily)
        self._wake.timer_period_ns = round(wait * 1e9)
        self._wake.reset()

    def _on_wake(self) -> None:
        if self._active and self.settings is not None and self.settings.lockstep:
            self._watch_silence()
        elif self._active:
            self._turn(time.perf_counter())
        elif self._cycle is not None and self._outputs is not None:
            self._outputs.publish_status_alone(self._cycle.ramp())
            self._wake.timer_period_ns = round(_IDLE_STATUS * 1e9)

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def _begin_episode(self, episode: Episode) -> None:
        if not self._active or self._cycle is None:
            return
        self._heard = self.steadily
        self._publish(
            self._cycle.begin_episode(
                episode.number,
                episode.instruction,
                seed=episode.seed,
                draw=episode.draw,
                stamp=nanoseconds_of(episode),
            )
        )

    def _watch_silence(self) -> None:
        assert self._cycle is not None
        timeout = self._cycle.options.timeout
        if self.steadily - self._heard > timeout:
            raise TransportError(
                f"nothing came on {', '.join(self._cycle.silent)} for {timeout:g} s; does the simulated robot run?"
            )

    # --- parameters --------------------------------------------------------------------------------------------------

    def _look_at_overrides(self, in_code: set[str]) -> list[str]:
        """Say in the log which parameters do not fit; the sentences about those that can never be right.

        in_code: names of those that the constructor was given.
        """
        # rclpy keeps what was given and not declared here, and nowhere else.
        given = {name: _given(parameter).value for name, parameter in self._parameter_overrides.items()}
        by_name = given_by_name(sys.argv, self.get_fully_qualified_name())
        refused = unknown(given, BY_NAME, in_code | by_name.names)
        never = [*by_name.refused, *refused.values()]
        wrong = list(never)
        for name in BY_NAME.keys() & given.keys():
            try:
                check(name, given[name])
            except ConfigError as error:
                wrong.append(str(error))
        for sentence in wrong:
            self.get_logger().error(sentence)
        for sentence in likely_misspelt(given.keys() - refused.keys(), BY_NAME).values():
            self.get_logger().warning(sentence)
        return never

    def _give_empty_lists_a_type(self) -> None:
        """An empty list has no type in rclpy, which then takes it for bytes."""
        found = [_with_a_type(_given(self.get_parameter(parameter.name))) for parameter in PARAMETERS]
        self.set_parameters([parameter for parameter in found if parameter.value == []])

    def _values(self) -> dict[str, object]:
        return {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}

    def _on_set_parameters(self, changes: list[RosParameter]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes if change.name in BY_NAME}
        try:
            for name, value in ours.items():
                check(name, value)
                if self.server is not None and not BY_NAME[name].live:
                    raise ConfigError(
                        f"parameter '{name}' is read when the node is configured; deactivate it, clean it up, set the "
                        "parameter, then configure it again"
                    )
            if "instruction" in ours and self.server is not None:
                self.server.require_known(str(ours["instruction"]))
        except (ConfigError, UnknownInstructionError, EngineError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_parameters_set(self, changes: list[RosParameter]) -> None:
        """All of ``changes`` were accepted."""
        for change in changes:
            if change.name == "instruction" and self.server is not None:
                try:
                    self.server.set_instruction(str(change.value), keep_on_refusal=True)
                except (UnknownInstructionError, EngineError) as error:
                    self.get_logger().error(f"the instruction could not be taken after all: {error}")
