#!/usr/bin/env bash
# Trains on GPUs: bash scripts/run_train_gpu.sh DEVICE_NUM DEVICE_IDS CKPT_PATH [--key value ...]
# e.g. bash scripts/run_train_gpu.sh 8 0,1,2,3,4,5,6,7 ./ckpt/midas_resnext_101_WSL.ckpt
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 3 ] || fail "usage: bash scripts/run_train_gpu.sh DEVICE_NUM DEVICE_IDS CKPT_PATH [--key value ...]"
IFS=, read -ra ids <<<"$2"
[ "${#ids[@]}" -eq "$1" ] || fail "DEVICE_IDS: expected $1 of them (DEVICE_NUM), found $2"
export CUDA_VISIBLE_DEVICES=$2
if [ "$1" -eq 1 ]; then
    exec bash "$REPOSITORY/scripts/run_standalone_train.sh" 0 "$3" --device_target GPU "${@:4}"
fi
exec bash "$REPOSITORY/scripts/run_distribute_train.sh" "$1" "$3" --device_target GPU "${@:4}"
