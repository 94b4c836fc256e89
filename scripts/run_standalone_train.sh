#!/usr/bin/env bash
# Trains on one device: bash scripts/run_standalone_train.sh DEVICE_ID CKPT_PATH [--key value ...]
# CKPT_PATH: weights to start from, e.g. ./ckpt/midas_resnext_101_WSL.ckpt; "" for random ones.
# DEVICE_TARGET (Ascend, GPU or CPU) in the environment is as --device_target.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_standalone_train.sh DEVICE_ID CKPT_PATH [--key value ...]"
[ $# -ge 2 ] && [[ $1 != --* && $2 != --* ]] || fail "$usage"
choose_python
exec "$PYTHON" "$REPOSITORY/midas_train.py" --device_id "$1" --model_weights "$2" "${device_target[@]}" "${@:3}"
