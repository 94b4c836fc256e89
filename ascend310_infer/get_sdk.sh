#!/usr/bin/env bash
# Fetches MindSpore Lite 2.0.0, whose wheel holds what a C++ program needs: headers and a library for the CPU.
#
#     bash ascend310_infer/get_sdk.sh [FOLDER]
#
# FOLDER (default: ascend310_infer/sdk) is filled once (170 MB to fetch, 480 MB on disk) and not touched again. The last
# line is the MINDSPORE_LITE_HOME to use. pip fetches it, by its own settings; any Python 3 with pip will do
# ($PYTHON, else python3). For Ascend, use the C++ package of the vendor instead, see docs/deploy.md.
set -euo pipefail

release=2.0.0
folder=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/sdk}
python=${PYTHON:-python3}

fail() {
    echo "error: $*" >&2
    exit "${status:-1}"
}

[ $# -le 1 ] || status=2 fail "expected at most one folder, found $# arguments"
case ${1:-} in -*) status=2 fail "expected a folder, found $1" ;; esac
mkdir -p "$folder" 2>/dev/null || fail "$folder: expected a folder that can be written to"
home=$(cd "$folder" && pwd)/mindspore_lite-$release

if [ ! -d "$home" ]; then
    "$python" -m pip --version >/dev/null 2>&1 || status=2 fail "PYTHON: expected a Python 3 with pip, found $python"
    work=$(mktemp -d "$home.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "fetching mindspore-lite $release" >&2
    # The wheel says Python 3.7, but nothing of that Python is used here.
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.7 --dest "$work" "mindspore-lite==$release" >&2 ||
        fail "pip could not fetch mindspore-lite $release, which there is for x86_64 and aarch64, see above"
    "$python" -m zipfile -e "$work"/*.whl "$work" || fail "the wheel of mindspore-lite $release cannot be unpacked"
    for file in include/api/model.h lib/libmindspore-extendrt_python.so; do
        [ -f "$work/mindspore_lite/$file" ] || fail "mindspore-lite $release: expected $file in the wheel, found none"
    done
    # Complete or not at all; another process may have been faster.
    mv -T "$work/mindspore_lite" "$home" 2>/dev/null || [ -d "$home" ] || fail "$home: cannot be written"
fi
echo "MINDSPORE_LITE_HOME=$home"
