"""``m2distill import-bag``: convert a robot's recordings to demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2distill_policy.arguments import arm_config, find_bundle, say_next, train_command
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.options import LARGEST_SLOP, real


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "import-bag",
        help=SUMMARIES["import-bag"],
        description="Convert each rosbag2 recording (mcap or sqlite3) to one demonstration, and write all of them to "
        "one "
        "file for 'm2distill train suite=files'. Images and joints go through the same code as on the robot. The "
        "topics are those of 'm2distill serve'; rename yours with --remap.",
        epilog="examples:\n"
        "  m2distill import-bag bags/lift_* --instruction 'lift the red box' --contract bundles/first --out data\n"
        "  m2distill import-bag bags/lift_* --instruction 'lift the red box' --contract contract.json --out data \\\n"
        "    --commands twist --remap '~/twist:=/servo_node/delta_twist_cmds' \\\n"
        "    --config fr3_moveit_servo\n\n"
        "Record with 'ros2 bag record --all', or record these topics: the cameras, /joint_states, the commands to\n"
        "the arm and /gripper_command (control_msgs/GripperCommand). If you use the gripper's action, publish\n"
        "/gripper_command too. For set-points, also record /end_effector_pose (geometry_msgs/PoseStamped). Commands\n"
        "and poses must be in the frame of the arm's base.",
    )
    parser.add_argument("bags", metavar="BAG", type=Path, nargs="+", help="folder written by 'ros2 bag record'")
    parser.add_argument("--instruction", required=True, help="the task in all recordings: one line, without quotes")
    parser.add_argument(
        "--contract",
        type=Path,
        required=True,
        help="path of the contract of the demonstrations: a bundle, a run, a demonstration file, or a JSON file",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the demonstration file")
    parser.add_argument("--task", help="name of the file (default: the instruction with underscores)")
    parser.add_argument(
        "--commands",
        choices=("target_pose", "twist"),
        default="target_pose",
        help="recorded commands to the arm. target_pose: set-points, which need /end_effector_pose. twist: velocities "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        type=arm_config,
        help="the arm's gripper and joints: a file as for 'm2distill serve', or a profile of config/arms by name",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change one setting of --config",
    )
    parser.add_argument(
        "--namespace",
        help="prefix of the recorded topics, such as /left for one of two arms. It also selects the sections of a ROS "
        "parameter file given with --config",
    )
    parser.add_argument(
        "--slop",
        type=real("--slop", 0, LARGEST_SLOP),
        default=0.02,
        metavar="S",
        help="largest time difference between images and joints of one observation (default: %(default)s)",
    )
    parser.add_argument(
        "--remap",
        metavar="FROM:=TO",
        action="append",
        default=[],
        help="rename a topic of the recording, such as /joint_states:=/arm/joint_states",
    )
    parser.add_argument(
        "--shift",
        metavar="TOPIC=SECONDS",
        action="append",
        default=[],
        help="add SECONDS to the stamps of TOPIC, to correct a clock that is known to be off",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert all recordings to one file. If one of them cannot be converted, no file is written."""
    import re
    import sys

    from m2distill_policy.config import to_dict
    from m2distill_policy.demonstration_writer import DemonstrationWriter
    from m2distill_policy.demonstrations import Recording, demonstration_path, instruction_from
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
        print(f"ignored settings, which do not apply to recordings: {', '.join(unused)}", file=sys.stderr)
    remap, contract = parse_remappings(args.remap, namespace or ""), read_contract(find_bundle(args.contract))
    instruction = instruction_from(args.instruction)
    if instruction != args.instruction:
        print(f"quotes and spaces around the instruction were removed: '{instruction}'", file=sys.stderr)
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
        raise RecordingError(f"{path} exists already; choose another --out or --task, or remove the file")
    numbers: dict[int, Path] = {}
    for folder in args.bags:  # report an unreadable recording before anything is written
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
            # All settings of the import are stored, so that continuing a stopped import with other settings is refused.
            env_args={
                "bags": [bag.resolve().name for bag in args.bags],
                "commands": args.commands,
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
        except BaseException:  # an empty folder of parts would make the same command with other settings fail
            writer.discard_if_empty()
            raise
        file = writer.finish(list(numbers), len(numbers))
    steps = sum(len(episode) for episode in file)
    print(f"{path}: {len(file)} demonstrations of '{instruction}', {steps} steps at {contract.rate_hz:g} Hz")
    number = sorted(args.out.glob("*_demo.hdf5")).index(path)
    say_next(*train_command(args.out, "files", [number], len(file), contract.cameras[0].height))
    return 0


def _shifts(rules: list[str]) -> dict[str, float]:
    """Parse the values of ``--shift``, ``TOPIC=SECONDS``, to a mapping topic -> s."""
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
            raise ConfigError(f"--shift is '{rule}'; give TOPIC=SECONDS, such as /joint_states=-0.8")
    return shifts
