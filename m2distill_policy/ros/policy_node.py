"""The policy as a lifecycle node: messages in, a policy loop of :mod:`m2distill_policy.node`, messages out.

``configure`` loads and verifies the bundle. ``activate`` starts to publish. ``deactivate`` ramps to a halt and then
stops publishing. ``cleanup`` frees the bundle. All of it runs in one thread; the runtime prepares hot swaps in its own.
"""

from __future__ import annotations

import functools
import gc
import time
import traceback
from collections.abc import Callable
from typing import TypeAlias

import cv2
from m2distill_msgs.msg import Episode
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter

from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.errors import M2DistillError, TransportError, printable
from m2distill_policy.node import topics
from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_gate import PoseGate
from m2distill_policy.node.pose_source import POSE_PERIODS
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.ros.images import Frame, message_to_rgb
from m2distill_policy.ros.inputs import Inputs
from m2distill_policy.ros.node_parameters import NodeParameters
from m2distill_policy.ros.outputs import Outputs
from m2distill_policy.ros.policy_state import Loop, PolicyState
from m2distill_policy.ros.run_task import RunTaskServer
from m2distill_policy.ros.services import Services
from m2distill_policy.ros.transforms import TransformedPoses
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.probe import open_and_prove
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.settings.node import settings_from

#: Seconds between two ~/status of a node that is configured but not active.
_IDLE_STATUS = 1.0


_Transition: TypeAlias = Callable[["PolicyNode", LifecycleState], TransitionCallbackReturn]


def _log_errors(what: str) -> Callable[[_Transition], _Transition]:
    """Log the error of a transition and let it fail, because rclpy would end it without a message.

    Args:
        what: Name of the transition, as in "cannot configure". If configuring or activating fails, the node keeps its
            state. If another transition fails, the node frees everything.
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


class PolicyNode(LifecycleNode):
    """The policy node.

    Args:
        overrides: Parameters by name, in addition to those of the command line; for tests and compositions.
    """

    def __init__(self, overrides: dict[str, object] | None = None) -> None:
        super().__init__(
            topics.POLICY_NODE,
            parameter_overrides=[RosParameter(name, value=value) for name, value in (overrides or {}).items()],
        )
        self.policy = PolicyState()
        #: When the newest message arrived in lockstep: s, monotonic.
        self._newest_message = 0.0
        self._shutdown_reason = "the node was shut down"
        self._watcher: FolderWatcher | None = None
        self._inputs: Inputs | None = None
        self._outputs: Outputs | None = None
        self._poses: TransformedPoses | None = None
        # rclpy keeps parameters that were given but not declared only in _parameter_overrides.
        self._settings = NodeParameters(self, self.policy, overrides or {}, self._parameter_overrides)
        self._policy_services = Services(self, self.policy)
        self._task_server = RunTaskServer(self, self.policy)
        self._wake = self.create_timer(_IDLE_STATUS, self._on_wake, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    @_log_errors("configure")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and verify the bundle. A failure leaves the node unconfigured and is logged."""
        try:
            self._configure()
        except BaseException:
            self._free()
            raise
        return super().on_configure(state)

    def _configure(self) -> None:
        settings = settings_from(self._settings.values())
        # Other cores are left to cameras and control; one thread is enough for an image.
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
        state = self.policy
        state.settings, state.server = settings, server
        if settings.watch_folder is not None:
            self._watcher = FolderWatcher(settings.watch_folder, server.load)
        if settings.instruction:
            server.set_instruction(settings.instruction)
        if settings.frames is not None:
            self._poses = TransformedPoses(
                self,
                settings.frames.base,
                settings.frames.end_effector,
                slop=round(settings.loop.slop * 1e9),
                longest_silence=POSE_PERIODS * server.contract.period,
                gate=PoseGate(server.speeds, jumps=not settings.lockstep),
            )
        state.loop = self._new_loop()
        self._outputs = Outputs(
            self,
            server.contract,
            settings,
            report_gripper=lambda message: state.require_loop().problems.set("gripper", message),
            gripper_lost=lambda: state.require_loop().reset_gripper(),
            publishers_changed=lambda topic, names: state.require_loop().operator.set_other_publishers(topic, names),
            command_received=lambda topic: state.require_loop().operator.other_command(topic),
        )
        self._inputs = Inputs(
            self,
            server.contract,
            settings,
            loop=state.require_loop,
            active=lambda: state.is_active,
            turn=self._run_if_due,
            begin_episode=self._begin_episode,
        )
        if self._watcher is not None and not settings.lockstep:
            self._watcher.start()  # runs until cleanup, because a stopped watcher cannot start again
        # These objects stay, so the garbage collector need not scan them between two cycles.
        gc.collect()
        gc.freeze()
        self.get_logger().info(
            f"bundle {server.bundle.identifier} ({', '.join(server.bundle.task_names)}) at "
            f"{server.contract.rate_hz:g} Hz, {server.engine.active_provider}"
        )

    @_log_errors("activate")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer observations, and send commands if ``enable`` is true."""
        state = self.policy
        assert state.server is not None and state.settings is not None
        result = super().on_activate(state)
        if result != TransitionCallbackReturn.SUCCESS:
            return result
        try:
            state.server.reset("activated")
            state.server.release_halt()  # requested by the last deactivation
            if state.settings.enable:
                state.server.enable()
            state.loop = self._new_loop()
            self._newest_message = time.monotonic()
            state.is_active = True
            self._schedule()
        except BaseException:
            state.is_active = False
            state.server.disable()
            super().on_deactivate(state)
            raise
        return result

    @_log_errors("deactivate")
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ramp to a halt, then stop publishing commands."""
        self._ramp_out("the node was deactivated")
        return super().on_deactivate(state)

    @_log_errors("clean up")
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the bundle and everything that belongs to it."""
        self._free()
        return super().on_cleanup(state)

    @_log_errors("shut down")
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ramp to a halt if the node is active, then free everything."""
        self._ramp_out(self._shutdown_reason)
        self._free()
        return super().on_shutdown(state)

    @_log_errors("leave a failed transition")
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Handle an unexpected error: ramp to a halt, and return to unconfigured."""
        self._ramp_out("the node failed")
        self._free()
        return super().on_error(state)

    def bring_up(self) -> bool:
        """Configure and activate. Return whether both succeeded."""
        done = TransitionCallbackReturn.SUCCESS
        return bool(self.trigger_configure() == done and self.trigger_activate() == done)

    def shut_down(self, reason: str) -> None:
        """Run the final transition of the lifecycle, from any state. ``reason`` is reported in ~/status."""
        self._shutdown_reason = reason
        self.trigger_shutdown()

    def _ramp_out(self, reason: str) -> None:
        """Ramp to a halt without observations, at the contract's rate; commands are still sent."""
        state = self.policy
        if not state.is_active or state.loop is None or state.server is None or self._outputs is None:
            return
        state.is_active = False
        state.loop.shut_down(reason)
        is_logged = False
        while not state.loop.may_exit:
            output = state.loop.ramp()
            self._outputs.command(output)
            try:
                self._report(output)
            except Exception as error:  # the arm must be halted even if the status cannot be published
                if not is_logged:
                    self.get_logger().error(
                        f"the ramp to a halt continues, but its status cannot be published: {error}"
                    )
                is_logged = True
            time.sleep(state.server.contract.period)
        state.server.disable()
        state.loop = self._new_loop()

    def _free(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        if self._outputs is not None:
            self._outputs.close()
        if self._poses is not None:
            self._poses.close()
        if self._watcher is not None:
            self._watcher.stop()
        if self.policy.server is not None:
            self.policy.server.close()
        self.policy.settings = self.policy.server = self.policy.loop = self.policy.last_output = None
        self._inputs = self._outputs = self._watcher = self._poses = None
        gc.unfreeze()  # free the frozen objects now; otherwise some libraries print an error at exit

    def _new_loop(self) -> Loop:
        state = self.policy
        assert state.server is not None and state.settings is not None
        kind = LockstepLoop if state.settings.lockstep else RealTimeLoop
        return kind(
            state.server,
            message_to_rgb,
            state.settings.loop,
            watcher=self._watcher,
            full_name=lambda topic: str(self.resolve_topic_name(topics.relative(topic, own=True))),
            name=self.get_fully_qualified_name(),
            wall_clock=lambda: int(self.get_clock().now().nanoseconds),
            poses=self._poses,
        )

    # --- cycles ------------------------------------------------------------------------------------------------------

    def _run_if_due(self, begin: float) -> None:
        """Run the cycle if it is due, because a message has arrived or time has passed."""
        loop = self.policy.loop
        if not self.policy.is_active or loop is None or self._inputs is None:
            return
        self._inputs.drain_joints()
        if isinstance(loop, LockstepLoop):
            self._newest_message = time.monotonic()
            loop.expects_pose = self._inputs.pose_is_published
        output = loop.run(begin)
        if output is not None:
            self._publish(output)
        self._schedule()

    def _publish(self, output: Output) -> None:
        assert self._outputs is not None
        self._outputs.command(output)
        self._report(output)

    def _report(self, output: Output) -> None:
        assert self._outputs is not None
        self._outputs.report(output)
        self.policy.require_loop().note_published(output)
        self._outputs.publish_markers(output)
        self._outputs.publish_health(output, int(self.get_clock().now().nanoseconds))
        self._outputs.watch_others()
        if output.report.health is not None and self._inputs is not None:
            self._inputs.forget_silent_cameras()
        self.policy.last_output = output

    def _schedule(self) -> None:
        """Set the timer to when the loop has something to do even if no message arrives."""
        loop = self.policy.require_loop()
        wait = _IDLE_STATUS if isinstance(loop, LockstepLoop) else max(0.0005, loop.wake - time.monotonic())
        self._wake.timer_period_ns = round(wait * 1e9)
        self._wake.reset()

    def _on_wake(self) -> None:
        loop, is_active = self.policy.loop, self.policy.is_active
        if is_active and isinstance(loop, LockstepLoop):
            self._check_timeout(loop)
        elif is_active:
            self._run_if_due(time.perf_counter())
        elif loop is not None and self._outputs is not None:
            self._outputs.publish_status_alone(loop.ramp())
            self._wake.timer_period_ns = round(_IDLE_STATUS * 1e9)

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def _begin_episode(self, episode: Episode) -> None:
        loop = self.policy.loop
        if not self.policy.is_active or not isinstance(loop, LockstepLoop):
            return
        self._newest_message = time.monotonic()
        self._publish(
            loop.begin_episode(
                episode.number,
                episode.instruction,
                seed=episode.seed,
                random_stream=episode.random_stream,
                stamp=nanoseconds_of(episode),
            )
        )

    def _check_timeout(self, loop: LockstepLoop[Frame]) -> None:
        timeout = loop.options.timeout
        if time.monotonic() - self._newest_message > timeout:
            raise TransportError(
                f"no message on {', '.join(loop.missing_topics)} for {timeout:g} s; is the simulated robot running?"
            )
