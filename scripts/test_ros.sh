#!/usr/bin/env bash
# Runs the tests that need ROS 2, on the one that is sourced or on its wheels: test_ros.sh FOLDER PYTHON [pytest's arguments]
# FOLDER and PYTHON, and the exit status 75 where there is no ROS 2 for this machine: see ros_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
commands=$(bash scripts/ros_env.sh "$1" "$2")
eval "$commands"
shift 2
exec "$ROS_PYTHON" -m pytest --ros "$@"
