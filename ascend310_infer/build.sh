#!/usr/bin/env bash
# Builds the runner: ascend310_infer/build/main.
#
#     bash ascend310_infer/build.sh [--sanitize] [--build_dir FOLDER]
#
# MINDSPORE_LITE_HOME is the C++ package of MindSpore Lite or its unpacked wheel; by default what get_sdk.sh has fetched.
# --sanitize builds with AddressSanitizer and UndefinedBehaviorSanitizer (default folder: ascend310_infer/build_sanitize).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "error: $*" >&2
    exit "${status:-1}"
}

build='' sanitize=OFF
while [ $# -gt 0 ]; do
    case $1 in
    --sanitize) sanitize=ON ;;
    --build_dir)
        [ $# -gt 1 ] || status=2 fail "--build_dir: expected a folder after it, found none"
        build=$2
        shift
        ;;
    --build_dir=*) build=${1#*=} ;;
    *) status=2 fail "expected [--sanitize] [--build_dir FOLDER], found $1" ;;
    esac
    shift
done
if [ -z "$build" ]; then
    build=$here/build
    [ "$sanitize" = OFF ] || build=$here/build_sanitize
fi

command -v cmake >/dev/null || status=2 fail "expected cmake, found none (on Debian and Ubuntu: apt-get install cmake)"
command -v make >/dev/null || command -v ninja >/dev/null ||
    status=2 fail "expected make or ninja, found none (on Debian and Ubuntu: apt-get install make)"
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    status=2 fail "expected a C++17 compiler, found none (on Debian and Ubuntu: apt-get install g++)"

if [ -z "${MINDSPORE_LITE_HOME:-}" ]; then
    for MINDSPORE_LITE_HOME in "$here"/sdk/mindspore_lite-*; do
        [ -f "$MINDSPORE_LITE_HOME/include/api/model.h" ] && break
    done
    [ -f "$MINDSPORE_LITE_HOME/include/api/model.h" ] ||
        status=2 fail "MINDSPORE_LITE_HOME: expected the folder of MindSpore Lite, found none" \
            "(for a CPU build: bash '$here/get_sdk.sh')"
fi

mkdir -p "$build" 2>/dev/null || fail "$build: expected a folder that can be written to"
log=$build/build.log
run() {
    "$@" >>"$log" 2>&1 && return
    # CMake breaks its messages into lines.
    reason=$(awk '/^CMake Error/ {on = 1; next} /^(Call Stack|CMake|--)/ {on = 0} on' "$log" | tr -s ' \n' ' ')
    reason=${reason# }
    reason=${reason% }
    [ -n "$reason" ] || reason=$(grep -m 1 -E 'error|Error' "$log" || tail -n 1 "$log")
    fail "the build failed: $reason (all of it: $log)"
}
# Runs of several sets may start together: one builds, the others find it built.
if command -v flock >/dev/null; then
    { exec 9>"$build/.lock"; } 2>/dev/null || fail "$build: expected a folder that can be written to"
    flock 9
fi
{ : >"$log"; } 2>/dev/null || fail "$log: expected a file that can be written to"
# CMake refuses what it has made for another folder: the repository has been moved or copied.
cache=$build/CMakeCache.txt
if grep -qs '^CMAKE_PROJECT_NAME:STATIC=midas_infer$' "$cache"; then
    made_in=$(sed -n 's/^CMAKE_CACHEFILE_DIR:INTERNAL=//p' "$cache")
    made_of=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$cache")
    if ! [[ $made_in -ef $build && $made_of -ef $here ]]; then
        rm -rf "$cache" "$build/CMakeFiles"
    fi
fi
run cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMIDAS_SANITIZE="$sanitize" \
    -DMINDSPORE_LITE_HOME="$MINDSPORE_LITE_HOME"
run cmake --build "$build" --parallel "$(nproc)"
echo "$build/main"
