#!/usr/bin/env bash
# Scores a network: bash scripts/run_eval.sh DEVICE_ID DATA_NAME [CKPT_PATH [DEVICE_TARGET]] [--key value ...]
# DATA_NAME: Kitti, Sintel, TUM, NYU, ETH3D, DIW, several joined by commas, or all. CKPT_PATH and DEVICE_TARGET
# (Ascend, GPU or CPU) may be left out: config.yaml has them, and so may DEVICE_TARGET in the environment.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_eval.sh DEVICE_ID DATA_NAME [CKPT_PATH [DEVICE_TARGET]] [--key value ...]"
[ $# -ge 2 ] && [[ $1 != --* && $2 != --* ]] || fail "$usage"
arguments=(--device_id "$1" --data_name "$2" "${device_target[@]}")
shift 2
for key in ckpt_path device_target; do
    if [ $# -gt 0 ] && [[ $1 != --* ]]; then
        arguments+=("--$key" "$1")
        shift
    fi
done
choose_python
exec "$PYTHON" "$REPOSITORY/midas_eval.py" "${arguments[@]}" "$@"
