#!/usr/bin/env bash
# Scores an ONNX model: bash scripts/run_eval_onnx.sh [DEVICE_ID] [DATA_NAME] [ONNX_PATH] [DEVICE_TARGET] [--key value ...]
# Arguments as those of run_eval.sh. MindSpore is not needed: requirements-deploy.txt has what is.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_eval_onnx.sh DEVICE_ID DATA_NAME ONNX_PATH [DEVICE_TARGET] [--key value ...]"
[ $# -ge 3 ] && [[ $1 != --* && $2 != --* && $3 != --* ]] || fail "$usage"
case $3 in
*.onnx)
    modules=(openvino onnxruntime)
    choose_python
    export PYTHON
    exec bash "$REPOSITORY/scripts/run_eval.sh" "$@"
    ;;
*) fail "ONNX_PATH: expected a file NAME.onnx, found $3" ;;
esac
