"""The policy on a robot: ``ros2 launch m2distill_policy policy.launch.py bundle:=/path/to/bundle``.

Configures the node and activates it. Without ``enable:=true`` it answers in shadow: ~/action and ~/status, no command.
``ros2 launch m2distill_policy policy.launch.py --show-args`` lists the arguments.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

#: Argument -> what it is. Those left empty keep the profile's value, or the node's default.
PARAMETERS = {
    "bundle": "folder that 'm2distill export' wrote",
    "instruction": "what to do, one that the bundle knows",
    "enable": "true: commands go out as soon as the node is active",
    "sampling": "sample, low_noise or mode",
    "watch_folder": "take over bundles that appear in this folder by rename",
    "swap_when": "idle or now",
    "provider": "cpu, cuda, tensorrt or auto",
    "image_transport": "raw or compressed",
    "lockstep": "true: answer a simulated robot one by one, without a clock",
    "use_sim_time": "true: stamps are compared with /clock",
}
#: Topic that the node names -> argument that renames it.
TOPICS = {
    "/camera/agentview/image_raw": "agentview_image",
    "/camera/agentview/camera_info": "agentview_info",
    "/camera/eye_in_hand/image_raw": "eye_in_hand_image",
    "/camera/eye_in_hand/camera_info": "eye_in_hand_info",
    "/joint_states": "joint_states",
    "/end_effector_pose": "end_effector_pose",
    "/gripper_command": "gripper_command",
    "/m2distill_policy/target_pose": "target_pose",
    "/m2distill_policy/twist": "twist",
}
#: Profiles of arms that come with the package, by name.
ARMS = Path(__file__).resolve().parent.parent / "config" / "arms"
#: Those that are true or false; all others are text, whatever they look like.
_SWITCHES = ("enable", "lockstep", "use_sim_time")


def _value(name: str, text: str) -> "ParameterValue | bool":
    if name not in _SWITCHES:
        return ParameterValue(text, value_type=str)
    if text not in ("true", "false"):
        raise RuntimeError(f"{name} is '{text}'; true or false is needed")
    return text == "true"


def _profile(given: str) -> str:
    """A file as it is given, or one of ours by name."""
    if not given or "/" in given or given.endswith((".yaml", ".yml")):
        return given
    ours = sorted(path.stem for path in ARMS.glob("*.yaml"))
    if given not in ours:
        raise RuntimeError(f"profile '{given}' is not known; give a parameter file, or one of {', '.join(ours)}")
    return str(ARMS / f"{given}.yaml")


def _nodes(context: LaunchContext) -> "list[LaunchDescriptionEntity]":
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    profile = _profile(given("profile"))
    chosen = {name: _value(name, given(name)) for name in PARAMETERS if given(name)}
    remappings = [(topic, given(argument)) for topic, argument in TOPICS.items()]
    for topic, argument in TOPICS.items():
        if argument.endswith("_image"):
            remappings.append((f"{topic}/compressed", f"{given(argument)}/compressed"))
    node = LifecycleNode(
        package="m2distill_policy",
        executable="policy_node",
        name="m2distill_policy",
        namespace="",
        parameters=[*([profile] if profile else []), chosen],
        remappings=remappings,
        output="screen",
        respawn=given("respawn") == "true",
        respawn_delay=1.0,
    )

    def ask(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    def when(start: str, goal: str, *entities: LaunchDescriptionEntity) -> RegisterEventHandler:
        return RegisterEventHandler(
            OnStateTransition(target_lifecycle_node=node, start_state=start, goal_state=goal, entities=list(entities))
        )

    return [
        RegisterEventHandler(OnProcessStart(target_action=node, on_start=[ask(Transition.TRANSITION_CONFIGURE)])),
        when("configuring", "inactive", ask(Transition.TRANSITION_ACTIVATE)),
        when("configuring", "unconfigured", Shutdown(reason="the policy cannot be configured; its log says why")),
        node,
    ]


def generate_launch_description() -> LaunchDescription:
    """The node, its arguments, and the transitions that bring it up."""
    arguments = [DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS.items()]
    arguments += [
        DeclareLaunchArgument(argument, default_value=topic, description=f"topic to use for {topic}")
        for topic, argument in TOPICS.items()
    ]
    arguments += [
        DeclareLaunchArgument(
            "profile", default_value="", description="arm: one of config/arms by name, or a parameter file"
        ),
        DeclareLaunchArgument("respawn", default_value="false", description="true: start the node again when it dies"),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])
