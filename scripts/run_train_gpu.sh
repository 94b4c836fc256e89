#!/usr/bin/env bash
# Trains on GPUs: bash scripts/run_train_gpu.sh DEVICE_NUM DEVICE_IDS CKPT_PATH [--background] [--key value ...]
# e.g. bash scripts/run_train_gpu.sh 8 0,1,2,3,4,5,6,7 ./ckpt/midas_resnext_101_WSL.ckpt
# DEVICE_NUM and DEVICE_IDS are those of this machine. With several GPUs the environment variables, and --background, of
# run_distribute_train.sh hold; with several machines (NODE_NUM), each of them has DEVICE_NUM GPUs.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_train_gpu.sh DEVICE_NUM DEVICE_IDS CKPT_PATH [--background] [--key value ...]"
[ $# -ge 3 ] && [[ $1 != --* && $2 != --* && $3 != --* ]] || fail "$usage"
[[ $1 =~ ^[1-9][0-9]*$ ]] || fail "DEVICE_NUM: expected a number of GPUs, found $1"
IFS=, read -ra ids <<<"$2"
[ "${#ids[@]}" -eq "$1" ] || fail "DEVICE_IDS: expected $1 of them (DEVICE_NUM), found $2"
machines=${NODE_NUM:-1}
[[ $machines =~ ^[1-9][0-9]*$ ]] || fail "NODE_NUM: expected a number of machines, found $machines"
export CUDA_VISIBLE_DEVICES=$2 DEVICE_TARGET=${DEVICE_TARGET:-GPU}
size=$(($1 * machines))
if [ "$size" -eq 1 ]; then
    exec bash "$REPOSITORY/scripts/run_standalone_train.sh" 0 "${@:3}"
fi
exec bash "$REPOSITORY/scripts/run_distribute_train.sh" "$size" "${@:3}"
