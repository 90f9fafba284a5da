"""``m2distill viewpoint``: a camera's image beside the one the policy was trained with."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "viewpoint",
        help=SUMMARIES["viewpoint"],
        description="Say how a camera must be turned so that it sees what it saw in training, and write the two "
        "images over each other, training's edges in green. On ROS 2, 'ros2 run m2distill_policy viewpoint_check' "
        "does this with the live images.",
        epilog="example: m2distill viewpoint bundles/first --camera agentview_rgb photo.png --out overlay.png",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the bundle's folder")
    parser.add_argument("image", metavar="PICTURE", type=Path, help="what the camera sees now: PNG or JPEG, upright")
    parser.add_argument("--camera", help="name of the view (default: the contract's first)")
    parser.add_argument("--out", type=Path, required=True, help="the image to write, PNG or JPEG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, say, write."""
    import cv2
    import numpy as np

    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.errors import ObservationError
    from m2distill_policy.images.encodings import compressed_to_rgb
    from m2distill_policy.images.preprocess import preprocess
    from m2distill_policy.node.viewpoint import describe, misalignment, overlay
    from m2distill_policy.storage import write_atomic

    bundle = open_bundle(args.bundle)
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
    return 0
