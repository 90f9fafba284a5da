"""``m2distill viewpoint``: compare a camera's view with the view in training."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import find_bundle, say_next
from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "viewpoint",
        help=SUMMARIES["viewpoint"],
        description="Compare an image of a camera with an image from training. Print how to turn the camera, and "
        "write an "
        "overlay of both, with the edges of the training image in green. On ROS 2, 'ros2 run m2distill_policy "
        "viewpoint_check' does this with live images.",
        epilog="example:\n  m2distill viewpoint bundles/first --camera agentview_rgb photo.png --out overlay.png",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle, or of a run (its last bundle)")
    parser.add_argument("image", metavar="IMAGE", type=Path, help="what the camera sees now: PNG or JPEG, upright")
    parser.add_argument("--camera", help="name of the view in the contract (default: the first)")
    parser.add_argument("--out", type=Path, required=True, help="overlay to write: PNG or JPEG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare the two images, print the difference and write the overlay."""
    import cv2
    import numpy as np

    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.errors import ObservationError
    from m2distill_policy.images.encodings import compressed_to_rgb
    from m2distill_policy.images.preprocess import preprocess
    from m2distill_policy.node.viewpoint import describe, misalignment, overlay
    from m2distill_policy.storage import write_atomic

    bundle = open_bundle(find_bundle(args.bundle))
    camera = bundle.contract.camera(args.camera or bundle.contract.camera_names[0])
    reference = bundle.view(camera.name)
    try:
        data = np.frombuffer(args.image.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise ObservationError(f"'{args.image}' cannot be read: {error}") from error
    live = preprocess(compressed_to_rgb(args.image.suffix.removeprefix("."), data), camera)
    print(describe(camera, misalignment(reference, live)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        written, data = cv2.imencode(args.out.suffix, cv2.cvtColor(overlay(reference, live), cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise ObservationError(f"'{args.out}' cannot be written; name a .png or .jpg file") from error
    if not written:
        raise ObservationError(f"'{args.out}' cannot be written as an image; name a .png or .jpg file")
    write_atomic(args.out, data.tobytes())
    print(f"overlay: {args.out}")
    say_next("serve", bundle.path, "--shadow")
    return 0
