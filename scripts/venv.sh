#!/usr/bin/env bash
# Makes a virtual environment for the given roles, or brings it up to date; does nothing when nothing changed.
#
#   scripts/venv.sh FOLDER [ROLE...]    roles: robot robot-gpu train sim ray dev docs
#
# Without roles: those it was made with (robot train sim dev for a new one) and those in ALSO.
#
# PYTHON    the interpreter to make it with (default: the first of python3, python3.11, python3.12, python3.10 that fits)
# PIP_ARGS  more arguments for pip, such as an index with a CPU build of torch
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:?give the folder of the virtual environment}
shift
roles=("$@")
if ((!${#roles[@]})); then
    if [[ -f $folder/.roles ]]; then read -r -a roles <"$folder/.roles"; else roles=(robot train sim dev); fi
    for role in ${ALSO:-}; do
        case " ${roles[*]} " in
            *" $role "*) ;;
            *" robot-gpu "*) [[ $role == robot ]] || roles+=("$role") ;;
            *) roles+=("$role") ;;
        esac
    done
fi

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

has_role() { local role; for role in "${roles[@]}"; do [[ $role == "$1" ]] && return 0; done; return 1; }
for role in "${roles[@]}"; do
    case $role in
        robot | robot-gpu | train | sim | ray | dev | docs) ;;
        *) die "role '$role' is not known; allowed are robot, robot-gpu, train, sim, ray, dev, docs" ;;
    esac
done
if has_role robot && has_role robot-gpu; then
    die "the roles robot and robot-gpu exclude each other: two builds of onnxruntime overwrite one another"
fi

fits='import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
        # Tried, not only looked up: a version manager leaves commands behind that do not start.
        if "$candidate" -c "$fits" 2>/dev/null; then echo "$candidate"; return; fi
    done
    die "no Python 3.10, 3.11 or 3.12 found (tried: ${PYTHON:-python3 python3.11 python3.12 python3.10}); name one: make PYTHON=..."
}

# One at a time: a second call waits for the first.
mkdir -p "$folder"
exec 9>"$folder/.lock"
if command -v flock >/dev/null; then flock 9; fi

files=()
for role in "${roles[@]}"; do files+=("requirements/$role.txt"); done
nodeps=()
if has_role sim; then nodeps+=(requirements/sim-nodeps.txt); fi

if [[ -e $folder/bin/python ]] && ! "$folder/bin/python" -c "$fits" 2>/dev/null; then
    say "$folder: its Python is gone or of another version; making it anew"
    rm -rf "${folder:?}/bin" "${folder:?}/lib" "${folder:?}/pyvenv.cfg" "$folder/.stamp"
fi
stamp=$(
    { printf '%s\n' "${roles[@]}" "$PWD" "${PIP_ARGS:-}"
      cat "${files[@]}" "${nodeps[@]}" requirements/robot-common.txt requirements/ray.txt setup.py scripts/venv.sh; } | sha256sum
)
if [[ -x $folder/bin/python && -f $folder/.stamp && $(<"$folder/.stamp") == "$stamp" ]]; then exit 0; fi

rm -f "$folder/.stamp"
# A half-made one (no ensurepip, Ctrl-C) has a Python but no pip.
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "${folder:?}/bin" "${folder:?}/lib" "${folder:?}/pyvenv.cfg"
    python=$(find_python)
    say "Making $folder with $("$python" --version)"
    "$python" -m venv "$folder" || die "'$python -m venv' failed; on Debian and Ubuntu: sudo apt-get install python3-venv"
fi
pip=("$folder/bin/python" -m pip --disable-pip-version-check --no-input)
read -r -a more <<<"${PIP_ARGS:-}"

say "Installing the roles ${roles[*]} into $folder (the first time this takes minutes)"
# pip itself: older ones write editable installations that newer setuptools no longer supports.
"${pip[@]}" install --quiet --upgrade "pip>=24,<27"
if has_role robot-gpu; then "${pip[@]}" uninstall --quiet --yes onnxruntime; fi
if has_role robot; then "${pip[@]}" uninstall --quiet --yes onnxruntime-gpu; fi
arguments=()
for file in "${files[@]}"; do arguments+=(--requirement "$file"); done
"${pip[@]}" install --quiet "${more[@]}" "${arguments[@]}"
for file in "${nodeps[@]}"; do
    "${pip[@]}" install --quiet "${more[@]}" --no-deps --requirement "$file"
done
# The package itself, editable. Its dependencies are the roles above.
# (setuptools warns that a folder could shadow the package: here the folder is the package.)
PYTHONWARNINGS=ignore "${pip[@]}" install --quiet --no-deps --editable .
printf '%s\n' "${roles[*]}" >"$folder/.roles"
printf '%s\n' "$stamp" >"$folder/.stamp"
say "$folder is ready"
