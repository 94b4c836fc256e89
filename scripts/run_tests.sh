#!/usr/bin/env bash
# Makes .venv with requirements-dev.txt, or takes the active environment, and runs linters and tests.
# Arguments are passed on to pytest.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_environment requirements-dev.txt
cd "$REPOSITORY"
bin=$(dirname "$PYTHON")
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/lint-imports" --no-cache
"$bin/shellcheck" -x scripts/*.sh ascend310_infer/*.sh .ci/run
# Two files at a time. A process that dies ends the tests: started again, pytest-xdist waits for its other tests for ever.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
