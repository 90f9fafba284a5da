#!/usr/bin/env bash
# Makes sure that MuJoCo can render without a screen: installs OSMesa if it is missing, or prints the command that does.
set -euo pipefail

# The user chose another renderer, so the user also installs its libraries.
[[ ${MUJOCO_GL:-osmesa} == osmesa ]] || exit 0
[[ $(uname -s) == Linux ]] || exit 0

has_osmesa() {
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q 'libOSMesa\.so'
}
has_osmesa && exit 0

advice="install the library for drawing without a screen, then run this again:  sudo apt-get install -y libosmesa6
(a distribution without that package draws with EGL instead: sudo apt-get install -y libegl1, then MUJOCO_GL=egl make ...)"
if ! command -v apt-get >/dev/null; then
    printf 'error: libOSMesa is missing; %s\n' "$advice" >&2
    exit 1
fi
if [[ $(id -u) == 0 ]]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    printf 'error: libOSMesa is missing and this user may not install it; %s\n' "$advice" >&2
    exit 1
fi
echo "Installing libosmesa6 with apt-get" >&2
export DEBIAN_FRONTEND=noninteractive
# The options help with a slow mirror and with a locked package database. The update is needed, because the package
# lists may never have been fetched.
apt=("${as_root[@]}" apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
if ! { "${apt[@]}" update -qq && "${apt[@]}" install -y -qq libosmesa6; } </dev/null >&2 || ! has_osmesa; then
    printf 'error: apt-get could not install libosmesa6; %s\n' "$advice" >&2
    exit 1
fi
