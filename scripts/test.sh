#!/usr/bin/env bash
# All tests: test.sh PYTHON ROS_FOLDER [pytest's arguments]
# The first run has the tests that need ROS 2, with wheels of ROS 2; the second run has all other tests. If ROS 2 is
# sourced, one run has all tests. The last line is a summary of both runs, in pytest's format. The exit status is not 0
# if a test of either run failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
folder=$2
shift 2

counts=$(mktemp)
trap 'rm -f "$counts" "$counts.reason"' EXIT
export M2DISTILL_TEST_COUNTS=$counts
start=$SECONDS
ros=0
others=0

if [[ -n ${AMENT_PREFIX_PATH:-} && -z ${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-} ]] && "$python" -c 'import rclpy' 2>/dev/null; then
    commands=$(bash scripts/ros_env.sh "$folder" "$python")
    eval "$commands"
    "$python" -m pytest "$@" || others=$?
    exit $others
fi

skipped=
commands=$(ROS_REASON=$counts.reason bash scripts/ros_env.sh "$folder" "$python") || ros=$?
case $ros in
    0)
        (eval "$commands"; exec "$ROS_PYTHON" -m pytest --ros "$@") || ros=$?
        # With this variable, a ROS 2 in /opt/ros is used only to test what the wheels lack, see tests/test_ros_found.py.
        export M2DISTILL_ROS_TESTED=1
        ;;
    75) skipped=$(<"$counts.reason") ;;
    # Without a network, the wheels cannot be installed: skip the tests. Continuous integration has a network: fail.
    *) if [[ -z ${CI:-} ]]; then skipped="no ROS 2 for the tests: its environment could not be made, see above"; ros=75; fi ;;
esac
# Exit status 5 of pytest: the run has none of the selected tests. That is no error if the other run has them.
if ((ros == 5)); then ros=0; fi
"$python" -m pytest --no-ros "$@" || others=$?
if ((others == 5)) && [[ -z $skipped ]]; then others=0; fi

[[ -z $skipped ]] || printf 'skipped: the tests that need ROS 2 (%s)\n' "$skipped"
"$python" - "$counts" $((SECONDS - start)) <<'PY'
import collections, json, sys

total = collections.Counter()
runs = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
for run in runs:
    total.update(run)
# What one run leaves to the other is not left out.
total.pop("deselected", None)
total["errors"] = total.pop("error", 0)
said = ", ".join(f"{count} {outcome}" for outcome, count in total.items() if count) or "no tests ran"
print(f"=== {said} in {sys.argv[2]}.00s ({len(runs)} runs) ===".center(80, "="))
PY
if ((ros == 75)); then ros=0; fi
exit $((others ? others : ros))
