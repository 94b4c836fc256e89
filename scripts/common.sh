# shellcheck shell=bash
# Sourced by the other scripts: where the repository is, and which Python runs it.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "error: $*" >&2
    exit 2
}

# The device that the environment names, for the Python scripts; a --device_target after it counts more.
# shellcheck disable=SC2034 # the other scripts use it
device_target=(${DEVICE_TARGET:+--device_target "$DEVICE_TARGET"})

# An activated environment is used if it has one of these.
modules=(mindspore)

# Prints the Python of an activated environment (venv or conda) that has one of the modules; fails if there is none.
active_python() {
    local environment
    for environment in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        if [ -n "$environment" ] && "$environment/bin/python" -c 'import importlib.util, sys
sys.exit(not any(map(importlib.util.find_spec, sys.argv[1:])))' "${modules[@]}" 2>/dev/null; then
            echo "$environment/bin/python"
            return
        fi
    done
    return 1
}

# Sets PYTHON: what the user set, else an activated environment with one of the modules, else the repository's .venv, else
# python3 on the PATH.
choose_python() {
    if [ -z "${PYTHON:-}" ] && ! PYTHON=$(active_python); then
        PYTHON=python3
        if [ -x "$REPOSITORY/.venv/bin/python" ]; then
            PYTHON=$REPOSITORY/.venv/bin/python
        fi
    fi
    "$PYTHON" -c 'import sys' 2>/dev/null || fail "PYTHON: expected a Python interpreter, found $PYTHON"
}

# Sets PYTHON to an interpreter that has what a requirements file lists: that of an activated environment, which is
# left as it is (its MindSpore may be one for Ascend), else that of .venv, which is made (with PYTHON, if the user has
# set it) and filled.
make_environment() {
    local requirements=$1 active
    # Folders are compared: the interpreters of two environments may be links to the same file.
    if [ -z "${PYTHON:-}" ] && active=$(active_python) && [ ! "${active%/bin/python}" -ef "$REPOSITORY/.venv" ]; then
        check_environment "$requirements" "$active"
        PYTHON=$active
    else
        make_venv
        install_requirements "$requirements"
    fi
}

# Fails if a package of a requirements file is not installed; versions are the user's own choice.
check_environment() {
    local requirements=$1 python=$2 missing
    missing=$(cd "$REPOSITORY" && "$python" - "$requirements" <<'EOF'
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

MODULES = {"opencv-python-headless": "cv2", "PyYAML": "yaml"}  # where other packages provide the same module


def packages(path):
    for line in open(path):
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            yield from packages(line[2:].strip())
        elif line:
            yield re.split(r"[=<>~!; ]", line)[0]


for name in packages(sys.argv[1]):
    try:
        version(name)
    except PackageNotFoundError:
        if find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
            print(name, end=" ")
EOF
    )
    [ -z "$missing" ] || fail "the active environment lacks packages of $requirements: $missing
Install them there, or deactivate it; the script then makes .venv with all that it needs."
}

# Makes .venv with a Python that MindSpore has a package for, unless it is there; sets PYTHON.
make_venv() {
    local venv=$REPOSITORY/.venv candidate base=
    local wanted='import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))'
    if ! "$venv/bin/python" -c "$wanted" 2>/dev/null; then
        for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3.9 python3 python; do
            if "$candidate" -c "$wanted" 2>/dev/null; then
                base=$candidate
                break
            fi
        done
        [ -n "$base" ] || fail "expected Python 3.9 to 3.12 (MindSpore 2.8 has no other), found none; install one, or set PYTHON"
        echo "making $venv with $("$base" --version)"
        "$base" -m venv --clear "$venv" || fail "$base -m venv failed (on Debian and Ubuntu: apt-get install python3-venv)"
    fi
    PYTHON=$venv/bin/python
}

# Installs a requirements file into the environment of PYTHON, unless that has been done.
install_requirements() {
    local requirements=$1 stamp
    stamp=$(dirname "$(dirname "$PYTHON")")/$requirements.installed
    if ! cat "$REPOSITORY"/requirements*.txt | cmp -s - "$stamp"; then
        echo "installing $requirements (the first time takes a few minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$REPOSITORY/$requirements" ||
            fail "pip could not install $requirements, see above"
        cat "$REPOSITORY"/requirements*.txt >"$stamp"
    fi
}
