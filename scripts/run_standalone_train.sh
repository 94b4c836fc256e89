#!/usr/bin/env bash
# Trains on one device: bash scripts/run_standalone_train.sh [DEVICE_ID] [CKPT_PATH] [--key value ...]
# CKPT_PATH: weights to start from, e.g. ./ckpt/midas_resnext_101_WSL.ckpt; "" for random ones.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || fail "usage: bash scripts/run_standalone_train.sh [DEVICE_ID] [CKPT_PATH] [--key value ...]"
choose_python
exec "$PYTHON" "$REPOSITORY/midas_train.py" --device_id "$1" --model_weights "$2" "${@:3}"
