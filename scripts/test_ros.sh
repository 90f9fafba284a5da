#!/usr/bin/env bash
# Runs the tests that need ROS 2, with a sourced ROS 2 or with wheels: test_ros.sh FOLDER PYTHON [pytest's arguments]
# FOLDER, PYTHON and the exit status 75 (there is no ROS 2 for this machine) are described in ros_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
commands=$(bash scripts/ros_env.sh "$1" "$2")
eval "$commands"
shift 2
exec "$ROS_PYTHON" -m pytest --ros "$@"
