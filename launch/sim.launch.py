"""Run the simulated robot and the policy: ``ros2 launch m2distill_policy sim.launch.py bundle:=/path/to/bundle``.

The policy is started by policy.launch.py, as on a real robot. For a real arm, launch policy.launch.py with the arm's
cameras and profile. This launch ends when the rollouts are finished. ``--show-args`` lists the arguments.
"""

import runpy
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

POLICY_FILE = Path(__file__).with_name("policy.launch.py")
#: The functions of policy.launch.py. The file is run to get them, because launch files cannot be imported.
shared = runpy.run_path(str(POLICY_FILE))
#: Launch argument for the simulated robot -> (default, description).
ROBOT = {
    "suite": ("tabletop", "suite of the task"),
    "task": ("0", "number of the task in its suite"),
    "instruction": ("", "instruction for the policy; empty uses the task's own"),
    "drive": ("osc", "osc: follow set-points as in training; velocity: follow ~/twist"),
    "set_point": ("action", "set-points of the drive osc: action or target_pose"),
    "rollouts": ("1", "number of rollouts"),
    "first": ("0", "number of the first rollout"),
    "seed": ("0", "seed of the initial states, as in 'm2distill evaluate --seed'"),
    "size": ("", "height and width of a view; empty uses the bundle's"),
    "visuals": ("fast", "visual profile of the images: fast or stock"),
    "out": ("", "write the results to this JSON file"),
}
#: Launch argument that is passed to policy.launch.py -> (default in this file, description).
POLICY = {
    "sampling": ("low_noise", "sample, low_noise or mode"),
    "watch_folder": ("", "load bundles that appear in this folder by rename"),
    "swap_when": ("idle", "when to switch to a new bundle: idle or now"),
    "profile": ("", "parameter file"),
}


def _nodes(context: LaunchContext) -> "list[LaunchDescriptionEntity]":
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    shared["refuse_unknown_arguments"](context, __file__, ("bundle", "lockstep", "namespace", *ROBOT, *POLICY))
    lockstep = given("lockstep") == "true"
    arguments = ["--bundle", given("bundle"), "--lockstep" if lockstep else "--real-time"]
    for name in ROBOT:
        if given(name):
            arguments += [f"--{name.replace('_', '-')}", given(name)]
    robot = Node(
        package="m2distill_policy",
        executable="sim_robot",
        namespace=given("namespace"),
        arguments=arguments,
        output="screen",
        additional_env={"M2DISTILL_END_WITH_PARENT": "1"},  # the robot ends with the launcher, too
    )
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(POLICY_FILE)),
        launch_arguments=[
            ("bundle", given("bundle")),
            ("namespace", given("namespace")),
            ("enable", "true"),
            ("lockstep", str(lockstep).lower()),
            # The instruction is empty here, because the simulated robot sends it.
            ("instruction", ""),
            *((name, given(name)) for name in POLICY),
        ],
    )
    over = RegisterEventHandler(OnProcessExit(target_action=robot, on_exit=shared["end_with"]("the simulated robot")))
    return [over, policy, robot]


def generate_launch_description() -> LaunchDescription:
    """Return the description of this launch: its arguments and both nodes."""
    arguments = [
        DeclareLaunchArgument("bundle", description="folder that 'm2distill export' wrote"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of both nodes and their topics"),
        DeclareLaunchArgument(
            "lockstep",
            default_value="true",
            choices=["true", "false"],
            description="true: wait for every answer, reproducible; false: real time",
        ),
    ]
    for name, (default, text) in {**ROBOT, **POLICY}.items():
        arguments.append(DeclareLaunchArgument(name, default_value=default, description=text))
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])
