"""``m2distill import-bag``: a robot's recordings become demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SLOP, real


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "import-bag",
        help=SUMMARIES["import-bag"],
        description="Make one demonstration of each rosbag2 (mcap or sqlite3) and write them to one file, which "
        "'m2distill train suite=files' learns from. Images and joints go through the code that runs live. Topics are "
        "those that 'm2distill serve' uses; --remap names yours.",
        epilog="examples:\n"
        "  m2distill import-bag bags/lift_* --instruction 'lift the red box' --contract bundles/first --out data\n"
        "  m2distill import-bag bags/lift_* --instruction 'lift the red box' --contract contract.json --out data \\\n"
        "    --commands twist --remap '~/twist:=/servo_node/delta_twist_cmds' \\\n"
        "    --config config/arms/fr3_moveit_servo.yaml\n\n"
        "Record with 'ros2 bag record --all', or the cameras, /joint_states, what the arm is told, /gripper_command\n"
        "(control_msgs/GripperCommand; whoever tells the gripper by its action says it there too) and, for\n"
        "set-points, /end_effector_pose (geometry_msgs/PoseStamped), all in the frame of the arm's base.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bags", metavar="BAG", type=Path, nargs="+", help="folder that 'ros2 bag record' wrote")
    parser.add_argument("--instruction", required=True, help="instruction of all of them: one line, without quotes")
    parser.add_argument(
        "--contract",
        type=Path,
        required=True,
        help="contract: a bundle, a demonstration file, or JSON",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of demonstrations, one file a task")
    parser.add_argument("--task", help="name of the file (default: the instruction with underscores)")
    parser.add_argument(
        "--commands",
        choices=("target_pose", "twist"),
        default="target_pose",
        help="commands that moved the arm: set-points, which need /end_effector_pose, or velocities (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--config", type=Path, help="the arm's gripper and joints: a file as for serve, or a profile of config/arms"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help="one of them")
    parser.add_argument(
        "--namespace",
        help="of the recorded topics, such as /left where there are two arms; it says which sections of a parameter "
        "file given with --config count",
    )
    parser.add_argument(
        "--slop",
        type=real("--slop", 0, LARGEST_SLOP),
        default=0.02,
        metavar="S",
        help="how far images and joints of one set may be apart",
    )
    parser.add_argument(
        "--remap", metavar="FROM:=TO", action="append", default=[], help="the topic has another name in the recording"
    )
    parser.add_argument(
        "--shift",
        metavar="TOPIC=SECONDS",
        action="append",
        default=[],
        help="add SECONDS to the stamps of TOPIC, because its clock is known to be off by as much",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import all or nothing; 0 when the file is there."""
    import re
    import sys

    from m2distill_policy.config import to_dict
    from m2distill_policy.demonstrations import DemonstrationWriter, Recording, demonstration_path, instruction_from
    from m2distill_policy.errors import RecordingError
    from m2distill_policy.lock import only_writer
    from m2distill_policy.node.topics import parse_namespace, parse_remappings, resolve
    from m2distill_policy.progress import ProgressBar
    from m2distill_policy.recordings.bag import Bag
    from m2distill_policy.recordings.contract import read_contract
    from m2distill_policy.recordings.episode import import_recording
    from m2distill_policy.recordings.import_settings import ImportSettings, require_topics
    from m2distill_policy.settings.arm import load_arm

    namespace = None if args.namespace is None else parse_namespace(args.namespace)
    arm, unused = load_arm(args.config, args.overrides, namespace)
    frame = unused.pop("pose.base_frame", "")
    if unused:
        print(f"not of a recording, left aside: {', '.join(unused)}", file=sys.stderr)
    remap, contract = parse_remappings(args.remap, namespace or ""), read_contract(args.contract)
    instruction = instruction_from(args.instruction)
    if instruction != args.instruction:
        print(f"the instruction is '{instruction}', without quotes and spaces around it", file=sys.stderr)
    settings = ImportSettings(
        command=args.commands,
        slop=args.slop,
        gripper=arm.gripper,
        joints=arm.joints,
        topic=lambda topic: resolve(topic, remap, namespace or ""),
        joint_topics=arm.joint_topics,
        watch=arm.watch,
        shift=_shifts(args.shift),
        frame=frame,
    )
    task = args.task or re.sub(r"\W+", "_", instruction.lower()).strip("_")
    path = demonstration_path(args.out, task)
    if path.exists():
        raise RecordingError(f"{path} exists; choose another --out or --task, or remove it")
    numbers: dict[int, Path] = {}
    for folder in args.bags:  # one that cannot be read is known before anything is written
        with Bag(folder) as bag:
            require_topics(bag, contract, settings)
            if bag.number in numbers:
                raise RecordingError(f"{folder} and {numbers[bag.number]} are the same recording; name it once")
            numbers[bag.number] = folder
    with only_writer(args.out):
        writer = DemonstrationWriter(
            path,
            instruction=instruction,
            contract=contract,
            suite="files",
            # All that decides what a recording becomes: an import that goes on under other settings must not mix the
            # two.
            env_args={
                "bags": [bag.resolve().name for bag in args.bags],
                "told": args.commands,
                "slop": args.slop,
                "gripper": to_dict(arm.gripper),
                "joints": [to_dict(joint) for joint in arm.joints],
                "remap": remap,
                "joint_topics": list(arm.joint_topics),
                "watch": to_dict(arm.watch),
                "shift": dict(settings.shift),
                "frame": frame,
                **({"namespace": namespace} if namespace else {}),
            },
        )
        done = writer.attempts()
        try:
            with ProgressBar(total=len(args.bags), desc=task, unit="bag") as bar:
                for number, folder in numbers.items():
                    if number not in done:
                        with Bag(folder) as bag:
                            imported = import_recording(bag, contract, settings)
                        writer.add(Recording(imported.episode), number)
                        for warning in imported.warnings:
                            bar.write(f"{folder}: {warning}", file=sys.stderr)
                    bar.update()
        except BaseException:  # whatever it is: what holds nothing must not block the command with other settings
            writer.discard_if_empty()
            raise
        file = writer.finish(list(numbers), len(numbers))
    steps = sum(len(episode) for episode in file)
    print(f"{path}: {len(file)} demonstrations of '{instruction}', {steps} steps at {contract.rate_hz:g} Hz")
    return 0


def _shifts(rules: list[str]) -> dict[str, float]:
    """Topic -> s of ``TOPIC=SECONDS`` options."""
    import math

    from m2distill_policy.errors import ConfigError

    shifts = {}
    for rule in rules:
        topic, separator, seconds = rule.rpartition("=")
        try:
            shifts[topic] = float(seconds)
        except ValueError:
            separator = ""
        if not separator or not topic or not math.isfinite(shifts[topic]):
            raise ConfigError(f"--shift '{rule}' is not of the form TOPIC=SECONDS, such as /joint_states=-0.8")
    return shifts
