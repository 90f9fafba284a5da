"""``m2distill sign``: sign a bundle, verify a signature, or make a pair of keys."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sign",
        help=SUMMARIES["sign"],
        description="Sign a bundle with an Ed25519 key. A node with the public key (serve --public-key, or the ROS "
        "parameter public_key) takes bundles with such a signature and no others. Keep the private key off the robot.",
        epilog="examples:\n"
        "  m2distill sign --new-key key.pem                      # writes key.pem and key.pub.pem\n"
        "  m2distill sign bundles/first --key key.pem\n"
        "  m2distill sign bundles/first --verify key.pub.pem\n"
        "  m2distill serve bundles/first --public-key key.pub.pem",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="the bundle's folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="FILE", type=Path, help="sign BUNDLE with this private key (PEM)")
    what.add_argument("--verify", metavar="FILE", type=Path, help="verify BUNDLE's signature by this public key (PEM)")
    what.add_argument("--new-key", metavar="FILE", type=Path, help="make a pair of keys; FILE holds the private one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sign, verify, or make keys."""
    from m2distill_policy.bundle import open_bundle, sign_bundle
    from m2distill_policy.bundle_signature import PublicKey, write_new_key
    from m2distill_policy.errors import ConfigError

    if (args.bundle is None) == (args.new_key is None):
        raise ConfigError(
            "a bundle is not named together with --new-key; sign it afterwards with --key"
            if args.bundle is not None
            else "name the bundle's folder: m2distill sign BUNDLE --key FILE"
        )
    if args.new_key is not None:
        public = write_new_key(args.new_key)
        print(f"wrote the private key '{args.new_key}', which signs, and the public key '{public}', which verifies")
        return 0
    if args.key is not None:
        bundle = sign_bundle(args.bundle, args.key)
        print(f"signed bundle {bundle.identifier}")
        return 0
    bundle = open_bundle(args.bundle, public_key=PublicKey.load(args.verify))
    print(f"bundle {bundle.identifier} is signed with the key '{args.verify}'")
    return 0
