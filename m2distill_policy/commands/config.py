"""``m2distill config``: explain the settings of training, or print a configuration."""

from __future__ import annotations

import argparse

from m2distill_policy.arguments import add_overrides, say_next, training_config
from m2distill_policy.commands import SUMMARIES, _own_strategies


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "config",
        help=SUMMARIES["config"],
        description=(
            "Explain the keys of a training configuration, or print a configuration with everything that it extends "
            "and every default. Without arguments, list all keys."
        ),
        epilog=(
            "examples:\n"
            "  m2distill config --explain optim.lr\n"
            "  m2distill config --explain memory\n"
            "  m2distill config --config libero_small optim.batch=8"
        ),
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--explain", metavar="KEY", help="explain a key, or every key of a section")
    what.add_argument("--markdown", action="store_true", help="print the reference of all keys as Markdown")
    what.add_argument(
        "--config",
        type=training_config,
        help="print this TOML or YAML file, or the profile of this name, as one whole configuration (JSON)",
    )
    add_overrides(parser)
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanation, the reference, the configuration or the list of keys, as the options say."""
    _own_strategies.load(args)
    from m2distill_policy.config import load_config, to_json
    from m2distill_policy.config_keys import describe_keys, explain
    from m2distill_policy.errors import ConfigError
    from training.run_config import RunConfig, reference

    if args.overrides and (args.explain or args.markdown):
        raise ConfigError("key=value goes with --config or alone; leave it out with --explain and --markdown")
    if args.explain:
        print(explain(RunConfig, args.explain))
        say_next("train", "--config", "tiny", "--data", "DATA", "--out", "runs/first", "KEY=VALUE")
    elif args.markdown:
        print(reference(), end="")
    elif args.config or args.overrides:
        print(to_json(load_config(RunConfig, args.config, args.overrides)))
        profile = () if args.config is None else ("--config", args.config)
        say_next("train", *profile, "--data", "DATA", "--out", "runs/first", *args.overrides)
    else:
        for key in describe_keys(RunConfig):
            if not key.is_section:
                print(f"{key.name} = {key.default}")
        say_next("config", "--explain", "KEY")
    return 0
