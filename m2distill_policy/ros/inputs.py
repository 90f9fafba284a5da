"""Subscriptions of the policy node. Every message goes into the loop, which then runs a cycle if one is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from m2distill_msgs.msg import Episode
from rclpy import get_rmw_implementation_identifier
from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, String

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ObservationError
from m2distill_policy.node import topics
from m2distill_policy.node.joint_states import JOINTS_KEPT
from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.messages import nanoseconds_of, pose_of
from m2distill_policy.node.receive_buffer import ReceiveBuffer
from m2distill_policy.ros import qos
from m2distill_policy.ros.images import Frame
from m2distill_policy.ros.policy_state import Loop
from m2distill_policy.settings.node import NodeSettings


class GatedCallbackGroup(CallbackGroup):
    """A callback group that wakes the executor only while ``wanted()`` is true.

    Joint states may arrive a thousand times a second. A cycle takes all of them when it runs, so most of them need not
    wake the executor.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        super().__init__()
        self._wanted = wanted

    def can_execute(self, entity: Any) -> bool:
        return self._wanted()

    def beginning_execution(self, entity: Any) -> bool:
        return True

    def ending_execution(self, entity: Any) -> None:
        pass


class Inputs:
    """Subscriptions of a configured node.

    Subscriptions deliver bytes, which are deserialised here, so that an unreadable message is reported in the status.
    Otherwise rmw_cyclonedds (2.2) delivers such a message partly filled, and rclpy reads invalid memory.

    Args:
        loop: Returns the loop that gets the messages; each activation makes a new one.
        active: Returns whether the node is active. Otherwise only the instruction, the emergency stop and the dead-man
            switch are used.
        turn: Called after each message with the time at which its callback began (``time.perf_counter``).
        begin_episode: Called when a simulated robot in lockstep has reset its environment.
    """

    def __init__(
        self,
        node: LifecycleNode,
        contract: Contract,
        settings: NodeSettings,
        *,
        loop: Callable[[], Loop],
        active: Callable[[], bool],
        turn: Callable[[float], None],
        begin_episode: Callable[[Episode], None],
    ) -> None:
        self._node = node
        self._loop = loop
        self._active = active
        self._turn = turn
        #: When the callback of the current message began.
        self._entered = 0.0
        self._subscriptions: list[Subscription] = []
        # The buffer is not checked otherwise: other middlewares send images through shared memory, and with reliable
        # input lost images are sent again.
        watched = "cyclone" in get_rmw_implementation_identifier() and not settings.reliable_input
        self._buffer = (
            ReceiveBuffer(len(contract.cameras), lambda why: loop().problems.set("receive buffer", why))
            if watched and not settings.lockstep and settings.image_transport == "raw"
            else None
        )
        if settings.lockstep:
            profile = qos.lockstep()
        else:
            profile = qos.reliable(8) if settings.reliable_input else qos.sensor(8)
        often = QoSProfile(depth=JOINTS_KEPT, history=profile.history, reliability=profile.reliability)
        compressed = settings.image_transport == "compressed"
        for name in contract.camera_names:
            topic = topics.camera_topic(name) + ("/compressed" if compressed else "")
            self._subscribe(CompressedImage if compressed else Image, topic, self._view(name, topic), profile)
            self._subscribe(CameraInfo, topics.camera_info_topic(name), self._info(name), qos.sensor(1))
        wanted = GatedCallbackGroup(self._joints_wanted)
        self._joints = {
            topic: self._subscribe(JointState, topic, self._take_joints(topic), often, wanted)
            for topic in topics.joint_topics(settings.loop.joint_topics)
        }
        self._poses = self._subscribe(PoseStamped, topics.END_EFFECTOR_POSE, self._pose, often)
        self._subscribe(String, topics.INSTRUCTION, self._instruction, qos.latched())
        self._subscribe(Bool, topics.EMERGENCY_STOP, self._emergency_stop, qos.reliable(10))
        # Latched, so that a button that was pressed before this node started is received. Publishers that are not
        # latched are incompatible with this subscription; rclpy's warning about them is switched off.
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        self._subscribe(Bool, topics.EMERGENCY_STOP, self._emergency_stop, qos.latched(), events=quiet)
        self._subscribe(Bool, topics.DEAD_MAN, self._dead_man, qos.reliable(10))
        self._subscribe(Bool, topics.ENABLE, self._enable, qos.reliable(10))
        self._lockstep = settings.lockstep
        if settings.lockstep:
            self._subscribe(Episode, topics.EPISODE, begin_episode, qos.latched())

    def close(self) -> None:
        """End the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    @property
    def pose_is_published(self) -> bool:
        """Whether another node publishes the end effector's pose."""
        here = self._node.resolve_topic_name(topics.relative(topics.END_EFFECTOR_POSE))
        return bool(self._node.count_publishers(here))

    def _publishers(self, topic: str) -> int:
        """Return how many nodes publish ``topic``. One node may have several publishers."""
        full = self._node.resolve_topic_name(topics.relative(topic, own=True))
        found = self._node.get_publishers_info_by_topic(full)
        return len({(endpoint.node_namespace, endpoint.node_name) for endpoint in found})

    def forget_silent_cameras(self) -> None:
        """Expect no more images from cameras that have stopped. Call it once a second."""
        if self._buffer is not None:
            self._buffer.forget_silent()

    def drain_joints(self) -> None:
        """Pass all joint states that have arrived to the loop."""
        for topic, subscription in self._joints.items():
            taken: list[bytes] = []
            with subscription.handle:
                while (found := subscription.handle.take_message(JointState, True)) is not None:
                    taken.append(found[0])
            read = (self._read(JointState, topic, data) for data in taken)
            states = [state for state in read if state is not None]
            if states:
                self._add_joints(topic, states)

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def _subscribe(
        self,
        kind: Any,
        topic: str,
        callback: Callable[[Any], None],
        profile: QoSProfile,
        group: CallbackGroup | None = None,
        events: SubscriptionEventCallbacks | None = None,
    ) -> Subscription:
        def on_bytes(data: bytes) -> None:
            self._entered = time.perf_counter()
            message = self._read(kind, topic, data)
            if message is not None:
                callback(message)

        subscription = self._node.create_subscription(
            kind,
            topics.relative(topic, own=True),
            on_bytes,
            profile,
            callback_group=group,
            # Two subscriptions to one topic cannot both declare the parameters of a QoS override.
            qos_overriding_options=QoSOverridingOptions.with_default_policies() if events is None else None,
            event_callbacks=events,
            raw=True,
        )
        self._subscriptions.append(subscription)
        return subscription

    def _read(self, kind: Any, topic: str, data: bytes) -> Any:
        """Return the message in ``data``; None, and a message in the status, if it is unreadable."""
        try:
            return deserialize_message(data, kind)
        except RuntimeError as error:
            why = str(error).partition(", at ")[0]
            broken = f"a message on '{topic}' cannot be read ({why}); check who publishes it"
            self._loop().count_messages(topic, 0, [broken])
            return None

    def _view(self, name: str, topic: str) -> Callable[[Frame], None]:
        def callback(frame: Frame) -> None:
            if self._active():
                loop = self._loop()
                loop.count_messages(topic, 1)
                if self._buffer is not None:
                    self._buffer.expect(len(frame.data), name)
                loop.add_image(name, nanoseconds_of(frame), frame)
                self._turn(self._entered)

        return callback

    def _info(self, name: str) -> Callable[[CameraInfo], None]:
        topic = topics.camera_info_topic(name)

        def callback(info: CameraInfo) -> None:
            if self._active():
                loop = self._loop()
                loop.count_messages(topic, 1)
                loop.add_camera_info(name, float(info.k[4]), info.height, info.width)
                # The size is also taken from the camera info, because images that are too large may never arrive.
                if self._buffer is not None:
                    self._buffer.announce(info.height * info.width * 3, name)

        return callback

    def _joints_wanted(self) -> bool:
        if not self._active():
            return False
        loop = self._loop()
        return isinstance(loop, LockstepLoop) or loop.lacks_joints

    def _take_joints(self, topic: str) -> Callable[[JointState], None]:
        def callback(state: JointState) -> None:
            if self._active():
                self._add_joints(topic, [state])
                self._turn(self._entered)

        return callback

    def _add_joints(self, topic: str, states: list[JointState]) -> None:
        loop = self._loop()
        loop.count_messages(topic, len(states))
        for state in states:
            loop.add_joints(nanoseconds_of(state), state.name, state.position, topic)

    def _pose(self, message: PoseStamped) -> None:
        if not self._active():
            return
        loop = self._loop()
        try:
            loop.add_pose(nanoseconds_of(message), pose_of(message), message.header.frame_id)
        except ObservationError as error:
            loop.count_messages(topics.END_EFFECTOR_POSE, 0, [str(error)])
            loop.refuse_pose(str(error))
            return
        loop.count_messages(topics.END_EFFECTOR_POSE, 1)
        if self._lockstep:
            self._turn(self._entered)

    def _instruction(self, message: String) -> None:
        loop = self._loop()
        loop.count_messages(topics.INSTRUCTION, 1)
        loop.operator.set_instruction(message.data)

    def _emergency_stop(self, message: Bool) -> None:
        loop = self._loop()
        loop.count_messages(topics.EMERGENCY_STOP, 1)
        loop.operator.set_emergency_stop(message.data, publishers=self._publishers(topics.EMERGENCY_STOP))

    def _enable(self, message: Bool) -> None:
        if self._active():
            loop = self._loop()
            loop.count_messages(topics.ENABLE, 1)
            loop.operator.enable_by_message(message.data)

    def _dead_man(self, message: Bool) -> None:
        loop = self._loop()
        loop.count_messages(topics.DEAD_MAN, 1)
        loop.operator.set_dead_man(message.data, publishers=self._publishers(topics.DEAD_MAN))
