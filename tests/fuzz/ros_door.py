"""ROS messages: bytes through rclpy's deserialiser of each input topic, and odd sequences of messages with time.

The node's own inputs and outputs are the real ones, with ROS 2's messages; subscriptions hand bytes on from here
instead of from a middleware, and clocks are moved by hand.
"""

from __future__ import annotations

import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2distill_msgs.msg import Episode
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, String

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.node import topics
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.node.output import Output
from m2distill_policy.ros.images import message_to_rgb
from m2distill_policy.ros.inputs import Inputs
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.ros.outputs import Outputs
from m2distill_policy.settings.node import NodeSettings, settings_from
from tests.bundles import write_toy
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door
from tests.fuzz.messages_door import CONTRACT, Options, Published, Script, Session, play, use_one_engine


class Types:
    """The message classes by name."""

    Image, Episode, String, Bool = Image, Episode, String, Bool


class _Handle:
    """A subscription's own queue, which is empty: everything is handed to the callback."""

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...

    def take_message(self, kind: Any, raw: bool) -> None:
        """Nothing."""


class _Subscription:
    handle = _Handle()


class _Publisher:
    def __init__(self, kind: Any, topic: str, published: Published) -> None:
        self._kind, self._topic, self._published = kind, topic, published

    def publish(self, message: Any) -> None:
        """Look at what a subscriber would read; every so often through the bytes."""
        if self._published.count % 16 == 0:
            message = deserialize_message(serialize_message(message), self._kind)
        self._published.see(self._topic, message)

    def get_subscription_count(self) -> int:
        """Somebody looks at everything, in RViz too."""
        return 1


class _Node:
    """The part of a node that inputs and outputs use, without a middleware."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self.callbacks: dict[str, list[Callable[[Any], None]]] = {}
        self.kinds: dict[str, Any] = {}

    def create_subscription(self, kind: Any, topic: str, callback: Any, *args: Any, **kwargs: Any) -> _Subscription:
        """Bytes of ``topic`` go to ``callback``."""
        self.callbacks.setdefault(_plain(topic), []).append(callback)
        self.kinds[_plain(topic)] = kind
        return _Subscription()

    def create_publisher(self, kind: Any, topic: str, *args: Any, **kwargs: Any) -> _Publisher:
        """What is published is looked at."""
        return _Publisher(kind, _plain(topic), self._published)

    create_lifecycle_publisher = create_publisher

    def resolve_topic_name(self, topic: str) -> str:
        """Not remapped."""
        return topics.resolve(_plain(topic))

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        """One node each."""
        return [
            types.SimpleNamespace(node_namespace="/", node_name=f"panel_{index}", topic_type="")
            for index in range(self.count_publishers(topic))
        ]

    def count_publishers(self, topic: str) -> int:
        """Our own alone, but for switches that several share."""
        return self._published.publishers_of(_plain(topic))


def _plain(topic: str) -> str:
    """A topic as :mod:`m2distill_policy.node.topics` names it, however a node does."""
    full = topic if topic.startswith("~/") else f"/{topic.lstrip('/')}"
    return full.replace(f"/{topics.POLICY_NODE}/", "~/", 1)


class RosDoor(Door):
    """See the module's text."""

    name = "ros"
    seconds = 10.0
    mebibytes = 512
    refuses = False

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._bundle = open_bundle(write_toy(Path(folder) / "toy", contract=CONTRACT))
        use_one_engine(self._bundle)
        self._settings = {way: settings_from({"bundle": "toy", "lockstep": way}) for way in (False, True)}
        self._script = Script(Types, lambda message: bytes(serialize_message(message)), MESSAGES)

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return self._script.seeds()

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        return self._script.change(choice, data)

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        play(data, lambda options: _Session(self._bundle, options, self._settings[options.lockstep]))


class _Session(Session):
    """The policy node on ROS 2, without its lifecycle."""

    def __init__(self, bundle: Bundle, options: Options, settings: NodeSettings) -> None:
        super().__init__(bundle, options, message_to_rgb, Types, MESSAGES)
        node: Any = _Node(self.published)
        self._callbacks: dict[str, list[Callable[[Any], None]]] = node.callbacks
        self._kinds: dict[str, Any] = node.kinds
        self._outputs = Outputs(
            node, CONTRACT, settings, report_gripper=lambda why: None, gripper_lost=self.cycle.reset_gripper,
            publishers_changed=self.cycle.operator.set_other_publishers, command_received=lambda topic: None,
        )  # fmt: skip
        self._inputs = Inputs(
            node, CONTRACT, settings, loop=lambda: self.cycle, active=lambda: True, turn=lambda begin: self.turn(),
            begin_episode=self._begin_episode,
        )  # fmt: skip

    def _begin_episode(self, episode: Any) -> None:
        self.publish(
            self.cycle.begin_episode(
                episode.number,
                episode.instruction,
                seed=episode.seed,
                random_stream=episode.random_stream,
                stamp=nanoseconds_of(episode),
            )
        )

    def deliver(self, topic: str, data: Any) -> None:
        """See :class:`Session`."""
        raw = data if isinstance(data, bytes) else bytes(serialize_message(data))
        for callback in self._callbacks.get(topic, ()):
            callback(raw)

    def decoded(self, topic: str, data: bytes) -> Any:
        """See :class:`Session`."""
        return deserialize_message(data, self._kinds[topic])

    def turn(self) -> None:
        """What the node does when something came or its timer fired."""
        begin = time.perf_counter()
        self._inputs.drain_joints()
        if self.options.lockstep:
            self.cycle.expects_pose = self._inputs.pose_is_published
        output = self.cycle.run(begin)
        if output is not None:
            self.publish(output)

    def publish(self, output: Output) -> None:
        """See :class:`Session`."""
        self._outputs.command(output)
        self._outputs.report(output)
        self.cycle.note_published(output)
        self._outputs.publish_markers(output)
        self._outputs.publish_health(output, self.clock.wall())
        self._outputs.watch_others()


def make() -> Door:
    """The door."""
    return RosDoor()
