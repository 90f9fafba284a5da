"""``m2distill serve``: run a bundle on a robot, over DDS."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from m2distill_policy.arguments import add_bundle, arm_config, find_bundle, say_next
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SEED, LARGEST_SLOP, LONGEST_WAIT, MOST_PROCESSES, real, whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help=SUMMARIES["serve"],
        description="Run a bundle on a robot. It receives images and joint states and sends actions, twists, "
        "set-points, "
        "gripper commands and a status, as ROS 2 messages over Cyclone DDS; ROS 2 is not needed. The topic ~/enable "
        "(std_msgs/Bool) switches the commands to the arm on and off. On SIGTERM the arm slows to a halt first.",
        epilog="examples:\n"
        "  m2distill serve runs/first --instruction 'lift the red box'\n"
        "  m2distill serve bundles/first --watch bundles --swap-when now\n"
        "  m2distill serve bundles/first --set safety.speed=[0.1,0.1,0.1,0.5,0.5,0.5] --set safety.halt_time=0.2\n"
        "  m2distill serve --lockstep   # the pretrained policy, for 'm2distill sim --lockstep'\n\n"
        "Messages reach programs on this machine only. For cameras or an arm on another machine, set "
        "CYCLONEDDS_URI to a configuration of Cyclone DDS.",
    )
    add_bundle(parser)
    parser.add_argument("--instruction", help="the task; the topic ~/instruction changes it at any time")
    parser.add_argument(
        "--watch",
        metavar="DIR",
        type=Path,
        help="load each new bundle in DIR while the policy runs; write it elsewhere and move it in with one rename",
    )
    parser.add_argument(
        "--public-key",
        metavar="FILE",
        type=Path,
        help="load only bundles signed with this key (PEM), now and later; see 'm2distill sign'",
    )
    parser.add_argument(
        "--swap-when",
        choices=("idle", "now"),
        default="idle",
        help="when a new bundle replaces the current one. 'idle': when the arm is halted. 'now': between two "
        "control steps, also while the arm moves (default: %(default)s)",
    )
    parser.add_argument(
        "--lockstep",
        action="store_true",
        help="wait for each observation and answer it, without a clock; for 'm2distill sim --lockstep'",
    )
    parser.add_argument(
        "--sampling",
        choices=("sample", "low_noise", "mode"),
        default="low_noise",
        help="action from the mixture: sample draws one, low_noise draws with a small standard deviation, "
        "mode takes the mean of the most likely component (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=real("--temperature", 0.001, 1000),
        default=1.0,
        help="temperature of --sampling sample (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, LARGEST_SEED),
        default=0,
        help="random seed (default: %(default)s); in lockstep each episode supplies its own",
    )
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt", "auto"),
        default="cpu",
        help="ONNX Runtime provider for the network; a fallback to the CPU is reported (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=whole("--threads", 1, MOST_PROCESSES),
        default=1,
        help="CPU threads of the network (default: %(default)s)",
    )
    parser.add_argument(
        "--shadow",
        action="store_true",
        help="compute actions, but send no commands to the arm until ~/enable; always so without BUNDLE, except in "
        "lockstep",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "enable"),
        help="after a fault: auto continues by itself, enable waits for ~/enable (default: the value in --config, else "
        "auto)",
    )
    parser.add_argument(
        "--config", type=arm_config, help="the arm's settings: a TOML or YAML file, or a profile of config/arms by name"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="one of the arm's settings: safety.speed, safety.acceleration, safety.jerk (six entries each), "
        "safety.workspace_low, safety.workspace_high (m), safety.halt_time (s), watch.stale_after (s), "
        "watch.dead_man (s), gripper.open_position, gripper.closed_position (m), gripper.max_effort (N), ...",
    )
    parser.add_argument(
        "--slop",
        type=real("--slop", 0, LARGEST_SLOP),
        default=0.02,
        metavar="S",
        help="largest time difference between images and joints of one observation (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=real("--timeout", 0, LONGEST_WAIT),
        default=60.0,
        metavar="S",
        help="longest wait for an observation in lockstep (default: %(default)s)",
    )
    parser.add_argument(
        "--reliable-input",
        action="store_true",
        help="subscribe to images and joints with reliable QoS: lost messages are sent again",
    )
    parser.add_argument(
        "--allow-other-publishers",
        action="store_true",
        help="send commands although another node publishes on the same topics, for example because a twist_mux "
        "chooses among them",
    )
    parser.add_argument("--domain", type=whole("--domain", 0, 232), help="DDS domain (default: ROS_DOMAIN_ID, else 0)")
    parser.add_argument(
        "--namespace",
        help="prefix of all topics except /diagnostics. Example: /left for one of two arms. It also selects the "
        "sections of the parameter file given with --config",
    )
    parser.add_argument(
        "--remap",
        metavar="FROM:=TO",
        action="append",
        default=[],
        help="rename a topic, such as /joint_states:=/arm/joint_states",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Return 0 after the arm has halted."""
    import gc

    import cv2

    from m2distill_policy.bundle_signature import PublicKey
    from m2distill_policy.dds.domain import domain_id
    from m2distill_policy.dds.participant import Participant
    from m2distill_policy.dds.policy_node import PolicyNode
    from m2distill_policy.node.loop import UNINTERRUPTED
    from m2distill_policy.node.loop_options import LoopOptions
    from m2distill_policy.node.topics import parse_namespace, parse_remappings
    from m2distill_policy.runtime.folder_watcher import FolderWatcher
    from m2distill_policy.runtime.probe import open_and_prove
    from m2distill_policy.runtime.server import PolicyServer
    from m2distill_policy.runtime.watchdog import WatchLimits
    from m2distill_policy.settings.arm import load_arm
    from m2distill_policy.signals import stop_on_signals
    from m2distill_policy.streams import flush_or_discard

    bundle = find_bundle(args.bundle)
    # Without BUNDLE, the pretrained policy is used. It was trained in simulation only, so it must not drive a real arm
    # because the argument was forgotten.
    shadow = args.shadow or (args.bundle is None and not args.lockstep)
    if shadow and not args.shadow:
        print("starting in shadow mode: no commands are sent to the arm until ~/enable", file=sys.stderr)
    namespace = None if args.namespace is None else parse_namespace(args.namespace)
    config, beside = load_arm(args.config, args.overrides, namespace)
    resume, frame = beside.pop("resume", "auto"), beside.pop("pose.base_frame", None)
    if beside:
        print(f"ignored settings, which only the ROS 2 node has: {', '.join(beside)}", file=sys.stderr)
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
    # OpenCV needs only one thread for these images; the other cores are left to cameras and control.
    cv2.setNumThreads(1)
    public_key = PublicKey.load(args.public_key) if args.public_key is not None else None
    server = PolicyServer(
        open_and_prove(bundle, threads=args.threads, public_key=public_key),
        provider=args.provider,
        threads=args.threads,
        sampling=args.sampling,
        temperature=args.temperature,
        seed=args.seed,
        limits=config.safety,
        watch=WatchLimits.lockstep() if args.lockstep else config.watch,
        enabled=not shadow,
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
            # These objects live until the process ends. Frozen objects are not checked again by the garbage collector,
            # which saves time between two cycles.
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
            with contextlib.suppress(OSError):
                say_next("info", server.bundle.path)
    finally:
        if watcher is not None:
            watcher.stop()
        server.close()
        gc.unfreeze()  # otherwise some libraries warn at exit about objects that were never collected
        flush_or_discard()
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # if standard output is a file on a full disk, the arm must not stop
        print(text, flush=True)
