# shellcheck shell=bash
# Sourced by the other scripts: where the repository is, which Python runs it, and the virtual environment.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "error: $*" >&2
    exit 2
}

# Sets PYTHON: what the user set, else the repository's virtual environment, else python3 on the PATH.
choose_python() {
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python3
        if [ -x "$REPOSITORY/.venv/bin/python" ]; then
            PYTHON=$REPOSITORY/.venv/bin/python
        fi
    fi
    "$PYTHON" -c 'import sys' 2>/dev/null || fail "PYTHON: expected a Python interpreter, found $PYTHON"
}

# Makes .venv and installs a requirements file into it, unless that has been done; sets PYTHON to its interpreter.
make_environment() {
    local requirements=$1 venv=$REPOSITORY/.venv candidate base=
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
    local stamp=$venv/$requirements.installed
    if ! cat "$REPOSITORY"/requirements*.txt | cmp -s - "$stamp"; then
        echo "installing $requirements (the first time takes a few minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$REPOSITORY/$requirements" ||
            fail "pip could not install $requirements, see above"
        cat "$REPOSITORY"/requirements*.txt >"$stamp"
    fi
}
