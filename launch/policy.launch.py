"""Run the policy on a robot: ``ros2 launch m2distill_policy policy.launch.py bundle:=/path/to/bundle``.

The node configures and activates itself. Without ``enable:=true`` it starts in shadow mode: it publishes ~/action and
~/status, but no commands. ``ros2 launch m2distill_policy policy.launch.py --show-args`` lists the arguments.
"""

import difflib
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

#: Argument -> description. If an argument is empty, the value of the profile is used, or else the node's default.
PARAMETERS = {
    "bundle": "folder that 'm2distill export' wrote",
    "instruction": "task instruction that the bundle knows",
    "enable": "true: send commands as soon as the node is active",
    "sampling": "sample, low_noise or mode",
    "watch_folder": "load bundles that appear in this folder by rename",
    "swap_when": "when to switch to a new bundle: idle or now",
    "provider": "cpu, cuda, tensorrt or auto",
    "image_transport": "raw or compressed",
    "lockstep": "true: answer a simulated robot step by step, without a clock",
    "use_sim_time": "true: compare stamps with /clock",
}
#: Topic of the node, relative to its namespace -> launch argument that remaps the topic.
TOPICS = {
    "camera/agentview/image_raw": "agentview_image",
    "camera/agentview/camera_info": "agentview_info",
    "camera/eye_in_hand/image_raw": "eye_in_hand_image",
    "camera/eye_in_hand/camera_info": "eye_in_hand_info",
    "joint_states": "joint_states",
    "end_effector_pose": "end_effector_pose",
    "gripper_command": "gripper_command",
    "~/target_pose": "target_pose",
    "~/twist": "twist",
}
CONFIG = Path(__file__).resolve().parent.parent / "config"
#: Folder of the arm profiles of this package.
ARMS = CONFIG / "arms"
#: Configuration of Cyclone DDS with large buffers for images, unless the user set one. Other middlewares ignore it.
CYCLONE = {} if "CYCLONEDDS_URI" in os.environ else {"CYCLONEDDS_URI": (CONFIG / "cyclonedds.xml").as_uri()}
#: Environment of the node. The first variable makes the node ramp to a halt and exit when the launcher ends, for any
#: reason.
ENVIRONMENT = {"M2DISTILL_END_WITH_PARENT": "1", **CYCLONE}
#: Arguments that are true or false. All others are text.
_SWITCHES = ("enable", "lockstep", "use_sim_time")


#: Names of all arguments.
_ARGUMENTS = (*PARAMETERS, *TOPICS.values(), "profile", "namespace", "respawn")


def end_with(what: str) -> "Callable[[ProcessExited, LaunchContext], list[LaunchDescriptionEntity]]":
    """Return an event handler that ends the launch when a process ends. what: Name of the process, for messages.

    If the exit status of the process is not 0, the handler raises an error, because ``ros2 launch`` ignores the exit
    status of its processes: it returns 1 only if an error was raised while it ran.
    """

    def ended(event: ProcessExited, context: LaunchContext) -> "list[LaunchDescriptionEntity]":
        def fail(_: LaunchContext) -> None:
            raise RuntimeError(f"{what} ended with exit status {event.returncode}; see its log")

        end: list[LaunchDescriptionEntity] = [Shutdown(reason=f"{what} has ended; see its log")]
        # No error during a shutdown, because a process that the shutdown interrupts may return any status.
        return end if event.returncode == 0 or context.is_shutdown else [*end, OpaqueFunction(function=fail)]

    return ended


def refuse_unknown_arguments(context: LaunchContext, file: str, known: "Collection[str]") -> None:
    """Raise an error for an unknown argument, which ROS launch would ignore.

    Nothing is checked if another launch file includes ``file``, because its arguments are not known here.

    Args:
        context: Context of the launch, with the arguments.
        file: Path of the launch file.
        known: Names of the known arguments.
    """
    if not any(Path(word).name == Path(file).name for word in sys.argv):
        return
    for word in context.argv:
        name, separator, _ = word.partition(":=")
        if separator and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise RuntimeError(f"argument '{name}' is not known{hint} (--show-args lists them)")


def _value(name: str, text: str) -> "ParameterValue | bool":
    if name not in _SWITCHES:
        return ParameterValue(text, value_type=str)
    if text not in ("true", "false"):
        raise RuntimeError(f"{name} is '{text}'; true or false is allowed")
    return text == "true"


def _profile(given: str) -> str:
    """Return the path of a profile. given: Path of a parameter file, or name of a profile of this package."""
    if not given or "/" in given or given.endswith((".yaml", ".yml")):
        return given
    ours = sorted(path.stem for path in ARMS.glob("*.yaml"))
    if given not in ours:
        raise RuntimeError(f"profile '{given}' is not known; give a parameter file, or one of {', '.join(ours)}")
    return str(ARMS / f"{given}.yaml")


def _nodes(context: LaunchContext) -> "list[LaunchDescriptionEntity]":
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    refuse_unknown_arguments(context, __file__, _ARGUMENTS)
    profile = _profile(given("profile"))
    chosen = {name: _value(name, given(name)) for name in PARAMETERS if given(name)}
    renamed = {topic: given(argument) for topic, argument in TOPICS.items() if given(argument) != topic}
    remappings = list(renamed.items())
    remappings += [(f"{topic}/compressed", f"{to}/compressed") for topic, to in renamed.items() if "image_raw" in topic]
    respawn = given("respawn") == "true"
    return [
        Node(
            package="m2distill_policy",
            executable="policy_node",
            name="m2distill_policy",
            namespace=given("namespace"),
            # The node activates itself. A transition requested from here could be lost: after a kill -9, the services
            # of the dead node are still found for a while, and a request to them is never answered.
            parameters=[*([profile] if profile else []), {"autostart": True, **chosen}],
            remappings=remappings,
            additional_env=ENVIRONMENT,
            output="screen",
            respawn=respawn,
            respawn_delay=1.0,
            on_exit=None if respawn else end_with("the policy"),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the description of this launch: its arguments and the node."""
    arguments = [DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS.items()]
    arguments += [
        DeclareLaunchArgument(argument, default_value=topic, description=f"topic to use for {topic}")
        for topic, argument in TOPICS.items()
    ]
    arguments += [
        DeclareLaunchArgument(
            "profile", default_value="", description="arm: name of a profile in config/arms, or a parameter file"
        ),
        DeclareLaunchArgument(
            "namespace", default_value="", description="namespace of the node and its topics, for several arms"
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="false",
            choices=["false", "true"],
            description="true: restart the node when it dies",
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])
