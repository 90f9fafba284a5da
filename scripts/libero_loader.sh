#!/usr/bin/env bash
# What LIBERO's own reader of demonstrations needs, in a folder of its own beside the environment: libero_loader.sh VENV
# Only a test reads it; where it cannot be had, the test says so and is skipped.
set -euo pipefail

venv=$1
folder=$venv/libero-loader
file=requirements/libero-loader.txt
stamp=$(cat "$file" "$0" | sha256sum)
[[ -f $folder/.stamp && $(<"$folder/.stamp") == "$stamp" ]] && exit 0

rm -rf "${folder:?}"
read -r -a more <<<"${PIP_ARGS:-}"
echo "Installing LIBERO's reader of demonstrations into $folder" >&2
if "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps --target "$folder" \
    "${more[@]}" --requirement "$file" && [[ -d $folder/robomimic && -d $folder/torchvision ]]; then
    printf '%s\n' "$stamp" >"$folder/.stamp"
else
    echo "warning: LIBERO's reader could not be installed; the test with it is skipped" >&2
    rm -rf "${folder:?}"
fi
