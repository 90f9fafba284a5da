"""The executable ``viewpoint_check``: compare live images with training images, as topics and in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_files import bundle_folder
from m2distill_policy.contract import Camera
from m2distill_policy.errors import ConfigError, M2DistillError, ObservationError, printable
from m2distill_policy.images.preprocess import preprocess
from m2distill_policy.node import topics
from m2distill_policy.node.viewpoint import describe, misalignment, overlay
from m2distill_policy.ros import qos
from m2distill_policy.ros.images import Frame, message_to_rgb

#: Seconds between two checks of a view, and seconds until a view without images is reported.
_EVERY, _PATIENCE = 0.5, 5.0


class ViewpointCheck(Node):
    """Publishes ``~/<view>/overlay``, and logs how each camera must be turned whenever that changes.

    Parameters: ``bundle`` and ``image_transport`` (raw or compressed), as for the policy node.
    """

    def __init__(self, overrides: dict[str, object] | None = None) -> None:
        super().__init__(
            "viewpoint_check",
            parameter_overrides=[rclpy.Parameter(name, value=value) for name, value in (overrides or {}).items()],
        )
        path = str(self.declare_parameter("bundle", "").value)
        transport = str(self.declare_parameter("image_transport", "raw").value)
        if not path:
            raise ConfigError("parameter 'bundle' is empty; give the folder that 'm2distill export' wrote")
        if transport not in ("raw", "compressed"):
            raise ConfigError(f"parameter 'image_transport' is '{transport}'; choose one of raw, compressed")
        bundle = open_bundle(bundle_folder(Path(path).expanduser()))
        #: View -> its last message in the log.
        self.said: dict[str, str] = {}
        for camera in bundle.contract.cameras:
            topic = topics.camera_topic(camera.name) + ("/compressed" if transport == "compressed" else "")
            kind = CompressedImage if transport == "compressed" else Image
            self.create_subscription(kind, topics.relative(topic), self._subscribe(bundle, camera), qos.sensor(1))
        self._silent = self.create_timer(_PATIENCE, lambda: self._report_missing(bundle, transport))

    def _report_missing(self, bundle: Bundle, transport: str) -> None:
        self._silent.cancel()
        for camera in bundle.contract.cameras:
            if camera.name not in self.said:
                topic = topics.camera_topic(camera.name)
                topic = topics.relative(topic + ("/compressed" if transport == "compressed" else ""))
                here = self.resolve_topic_name(topic)
                self.get_logger().warning(
                    f"no image of view '{camera.name}' on {here} yet; rename it: --ros-args -r {topic}:=/your/topic"
                )

    def _subscribe(self, bundle: Bundle, camera: Camera) -> Callable[[Frame], None]:
        reference = bundle.view(camera.name)
        short = camera.name.removesuffix("_rgb")
        out = self.create_publisher(Image, f"~/{short}/overlay", qos.reliable(1))
        last = 0.0

        def callback(frame: Frame) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _EVERY:
                return
            last = now
            try:
                live = preprocess(message_to_rgb(frame), camera)
            except ObservationError as error:
                self._log_change(camera, str(error))
                return
            self._log_change(camera, describe(camera, misalignment(reference, live)))
            shown = np.ascontiguousarray(overlay(reference, live))
            image = Image(header=frame.header, encoding="rgb8")
            image.height, image.width, image.step = shown.shape[0], shown.shape[1], 3 * shown.shape[1]
            image.data.frombytes(shown.data.cast("B"))
            out.publish(image)

        return callback

    def _log_change(self, camera: Camera, text: str) -> None:
        if self.said.get(camera.name) != text:
            self.said[camera.name] = text
            self.get_logger().info(text)


def main() -> None:
    """Run until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(ViewpointCheck())
    except M2DistillError as error:
        sys.exit(f"viewpoint_check: {printable(str(error))}")
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
