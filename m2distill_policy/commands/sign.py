"""``m2distill sign``: sign a bundle, verify a signature, or make a key pair."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import find_bundle, say_next
from m2distill_policy.commands import SUMMARIES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sign",
        help=SUMMARIES["sign"],
        description="Sign a bundle with an Ed25519 key. A node that has the public key (serve --public-key, or the ROS "
        "parameter public_key) loads only bundles signed with it. Keep the private key away from the robot.",
        epilog="examples:\n"
        "  m2distill sign --new-key key.pem                      # writes key.pem and key.pub.pem\n"
        "  m2distill sign bundles/first --key key.pem\n"
        "  m2distill sign bundles/first --verify key.pub.pem\n"
        "  m2distill serve bundles/first --public-key key.pub.pem",
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder of a bundle, or of a run (its last bundle)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="FILE", type=Path, help="private key (PEM) to sign BUNDLE with")
    what.add_argument("--verify", metavar="FILE", type=Path, help="public key (PEM) to verify BUNDLE's signature with")
    what.add_argument(
        "--new-key",
        metavar="FILE",
        type=Path,
        help="make a key pair: FILE (private), and the same name with .pub (public)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sign a bundle, verify a signature, or make a key pair, as the options say."""
    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.bundle_signature import PublicKey, write_new_key
    from m2distill_policy.bundle_writer import sign_bundle
    from m2distill_policy.errors import ConfigError

    if (args.bundle is None) == (args.new_key is None):
        raise ConfigError(
            "--new-key takes no bundle; make the keys first, then sign the bundle with --key"
            if args.bundle is not None
            else "BUNDLE is missing; give its folder: m2distill sign BUNDLE --key FILE"
        )
    if args.new_key is not None:
        public = write_new_key(args.new_key)
        print(f"private key, which signs: {args.new_key}\npublic key, which verifies: {public}")
        say_next("sign", "BUNDLE", "--key", args.new_key)
        return 0
    if args.key is not None:
        bundle = sign_bundle(find_bundle(args.bundle), args.key)
        print(f"signed bundle {bundle.identifier}")
        say_next("serve", bundle.path, "--public-key", "PUBLIC_KEY")
        return 0
    bundle = open_bundle(find_bundle(args.bundle), public_key=PublicKey.load(args.verify))
    print(f"bundle {bundle.identifier} is signed with the key '{args.verify}'")
    say_next("serve", bundle.path, "--public-key", args.verify)
    return 0
