"""``m2distill serve``: a bundle drives a robot over DDS."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SEED, LARGEST_SLOP, LONGEST_WAIT, MOST_PROCESSES, real, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help=SUMMARIES["serve"],
        description="Serve a bundle on plain DDS with ROS 2's wire types. Images and joint states come in; action, "
        "twist, set-point, gripper command and status go out. The topic ~/enable (std_msgs/Bool) lets commands out or "
        "stops them. SIGTERM ramps to a halt first.",
        epilog="examples:\n"
        "  m2distill serve bundles/three-tasks --instruction 'lift the red box'\n"
        "  m2distill serve bundles/first --watch bundles --swap-when now\n"
        "  m2distill serve bundles/first --set safety.speed=[0.1,0.1,0.1,0.5,0.5,0.5] --set safety.halt_time=0.2\n"
        "  m2distill serve bundles/three-tasks --lockstep   # answers 'm2distill sim --lockstep' one by one\n\n"
        "Programs on this machine are met. For others, set CYCLONEDDS_URI to a configuration of Cyclone DDS.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder that 'm2distill export' wrote")
    parser.add_argument("--instruction", help="what to do; ~/instruction changes it at any time")
    parser.add_argument("--watch", metavar="DIR", type=Path, help="take over bundles that appear in DIR by rename")
    parser.add_argument(
        "--public-key",
        metavar="FILE",
        type=Path,
        help="take bundles alone that are signed with this key (PEM), at the start and later; see 'm2distill sign'",
    )
    parser.add_argument(
        "--swap-when",
        choices=("idle", "now"),
        default="idle",
        help="take over a new bundle while the arm is not driven, or between any two cycles (default: %(default)s)",
    )
    parser.add_argument("--lockstep", action="store_true", help="answer observations one by one, without a clock")
    parser.add_argument(
        "--sampling",
        choices=("sample", "low_noise", "mode"),
        default="low_noise",
        help="how an action is drawn from the mixture (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=real("--temperature", 0.001, 1000),
        default=1.0,
        help="of --sampling sample (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="of the random numbers; a lockstep's episodes bring theirs",
    )
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt", "auto"),
        default="cpu",
        help="what runs the network; a fall-back is announced (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=whole("--threads", 1, MOST_PROCESSES),
        default=1,
        help="of the network on the CPU (default: %(default)s)",
    )
    parser.add_argument("--shadow", action="store_true", help="answer, but send no command until ~/enable")
    parser.add_argument(
        "--resume",
        choices=("auto", "enable"),
        help="drive on when a fault has passed, or stay halted until ~/enable (default: what the profile given with "
        "--config says, else auto)",
    )
    parser.add_argument("--config", type=Path, help="the arm's settings: TOML, YAML, or a profile of config/arms")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="one of them: safety.speed, safety.acceleration, safety.jerk (six entries, m and rad), "
        "safety.workspace_low, safety.workspace_high (m), safety.halt_time (s), watch.stale_after (s), "
        "watch.dead_man (s), gripper.open_position, gripper.closed_position (m), gripper.max_effort (N), ...",
    )
    parser.add_argument(
        "--slop",
        type=real("--slop", 0, LARGEST_SLOP),
        default=0.02,
        metavar="S",
        help="how far images and joints of one set may be apart",
    )
    parser.add_argument(
        "--timeout",
        type=real("--timeout", 0, LONGEST_WAIT),
        default=60.0,
        metavar="S",
        help="how long a lockstep waits (default: %(default)s)",
    )
    parser.add_argument(
        "--reliable-input", action="store_true", help="ask cameras and joints to send again what was lost"
    )
    parser.add_argument(
        "--allow-other-publishers",
        action="store_true",
        help="drive although somebody else sends commands on the same topics, as in front of a multiplexer",
    )
    parser.add_argument("--domain", type=whole("--domain", 0, 232), help="DDS domain (default: ROS_DOMAIN_ID, else 0)")
    parser.add_argument(
        "--namespace",
        help="before all topics but /diagnostics, such as /left where there are two arms; it says which sections of a "
        "parameter file given with --config count",
    )
    parser.add_argument(
        "--remap",
        metavar="FROM:=TO",
        action="append",
        default=[],
        help="use another topic, such as /joint_states:=/arm/joint_states",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 after the ramp to a halt."""
    import gc

    import cv2

    from m2distill_policy.bundle_signature import PublicKey
    from m2distill_policy.dds.domain import domain_id
    from m2distill_policy.dds.participant import Participant
    from m2distill_policy.dds.policy_node import PolicyNode
    from m2distill_policy.node.loop import UNINTERRUPTED
    from m2distill_policy.node.loop_options import LoopOptions
    from m2distill_policy.node.topics import parse_namespace, parse_remappings
    from m2distill_policy.runtime.probe import open_and_prove
    from m2distill_policy.runtime.server import PolicyServer
    from m2distill_policy.runtime.watchdog import WatchLimits
    from m2distill_policy.runtime.watcher import FolderWatcher
    from m2distill_policy.settings.arm import load_arm
    from m2distill_policy.signals import stop_on_signals
    from m2distill_policy.streams import give_up_what_cannot_be_written

    namespace = None if args.namespace is None else parse_namespace(args.namespace)
    config, beside = load_arm(args.config, args.overrides, namespace)
    resume, frame = beside.pop("resume", "auto"), beside.pop("pose.base_frame", None)
    if beside:
        print(f"for the node on ROS 2 alone, left aside: {', '.join(beside)}", file=sys.stderr)
    options = LoopOptions(
        slop=args.slop,
        timeout=args.timeout,
        gripper=config.gripper,
        joints=config.joints,
        allow_other_publishers=args.allow_other_publishers,
        joint_topics=config.joint_topics,
    )
    domain, namespace = domain_id(args.domain), namespace or ""
    remap = parse_remappings(args.remap, namespace)
    # The cores belong to cameras and control; an image is small work.
    cv2.setNumThreads(1)
    public_key = PublicKey.load(args.public_key) if args.public_key is not None else None
    server = PolicyServer(
        open_and_prove(args.bundle, threads=args.threads, public_key=public_key),
        provider=args.provider,
        threads=args.threads,
        sampling=args.sampling,
        temperature=args.temperature,
        seed=args.seed,
        limits=config.safety,
        watch=WatchLimits.lockstep() if args.lockstep else config.watch,
        enabled=not args.shadow,
        resume=args.resume or resume,
        swap_when=args.swap_when,
        public_key=public_key,
    )
    if args.instruction is not None:
        server.set_instruction(args.instruction)
    watcher = FolderWatcher(args.watch, server.load) if args.watch is not None else None
    try:
        with Participant(domain, remap, namespace=namespace, name="m2distill serve") as participant:
            node = PolicyNode(
                participant,
                server,
                lockstep=args.lockstep,
                options=options,
                watcher=watcher,
                reliable_input=args.reliable_input,
                frame=frame,
            )
            participant.require_remapped()
            stop_on_signals(node.stop, UNINTERRUPTED)
            # What is here stays; the collector need not walk it again between two cycles.
            gc.collect()
            gc.freeze()
            pace = "in lockstep" if args.lockstep else f"at {server.contract.rate_hz:g} Hz"
            _say(
                f"serving bundle {server.bundle.identifier} ({', '.join(server.bundle.task_names)}) {pace} "
                f"in DDS domain {domain}"
            )
            if watcher is not None and not args.lockstep:
                watcher.start()
            node.spin()
            _say(f"halted after {node.cycle_count} cycles")
    finally:
        if watcher is not None:
            watcher.stop()
        server.close()
        gc.unfreeze()  # some libraries complain at the end about what the collector never got
        give_up_what_cannot_be_written()
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk behind standard output is no reason to let go of an arm
        print(text, flush=True)
