#!/usr/bin/env bash
# Data-parallel training: bash scripts/run_distribute_train.sh DEVICE_NUM CKPT_PATH [--key value ...]
# CKPT_PATH: weights to start from, e.g. ./ckpt/midas_resnext_101_WSL.ckpt; "" for random ones.
# The logs of the processes are in output/distribute_log (or $LOG_DIR).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || fail "usage: bash scripts/run_distribute_train.sh DEVICE_NUM CKPT_PATH [--key value ...]"
[[ $1 =~ ^[1-9][0-9]*$ ]] || fail "DEVICE_NUM: expected a number of devices, found $1"
choose_python
msrun=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')")/msrun
[ -x "$msrun" ] || fail "expected MindSpore's msrun beside $PYTHON, found none; is MindSpore installed there?"
log_dir=${LOG_DIR:-$REPOSITORY/output/distribute_log}
mkdir -p "$log_dir"
echo "starting $1 processes; follow the first with: tail -f $log_dir/worker_0.log"
PATH=$(dirname "$msrun"):$PATH exec "$msrun" --worker_num="$1" --local_worker_num="$1" --master_port="${MASTER_PORT:-8118}" \
    --log_dir="$log_dir" --join=True \
    "$REPOSITORY/midas_train.py" --run_distribute True --model_weights "$2" "${@:3}"
