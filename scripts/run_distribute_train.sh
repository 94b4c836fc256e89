#!/usr/bin/env bash
# Data-parallel training: bash scripts/run_distribute_train.sh RANK_SIZE CKPT_PATH [--background] [--key value ...]
# RANK_SIZE: processes, one for each device; with several machines those of all of them together.
# CKPT_PATH: weights to start from, e.g. ./ckpt/midas_resnext_101_WSL.ckpt; "" for random ones.
# --background: returns at once; says how to follow and how to stop the run.
# Ctrl-C and SIGTERM end the run after a step, with a checkpoint; a second time, at once. The exit status is that of the
# process that failed.
#
# Environment variables:
#   DEVICE_TARGET  Ascend, GPU or CPU, as --device_target.
#   LOG_DIR        Folder of the logs, worker_RANK.log; output/distribute_log if not set.
#   MASTER_PORT    Port through which the processes find each other; 8118 if not set.
# With several machines, the script is started on each of them with the same arguments and:
#   NODE_NUM       Number of machines; each of them gets RANK_SIZE / NODE_NUM processes.
#   NODE_RANK      Number of this machine, from 0. The first has the run folder.
#   MASTER_ADDR    Name or IPv4 address of the first machine.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_distribute_train.sh RANK_SIZE CKPT_PATH [--background] [--key value ...]"
[ $# -ge 2 ] && [[ $1 != --* && $2 != --* ]] || fail "$usage"
choose_python
exec "$PYTHON" "$REPOSITORY/scripts/launch.py" "$1" "$2" "${device_target[@]}" "${@:3}"
