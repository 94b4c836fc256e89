#!/usr/bin/env bash
# Predicts with the C++ runner and scores it:
#   bash scripts/run_infer_310.sh MODEL_PATH DATA_PATH DATASET_NAME [DEVICE_ID] [--device CPU] [--key value ...]
# MODEL_PATH: a MINDIR file. DATA_PATH: the folder of the data set. DATASET_NAME: Kitti, TUM or Sintel. DEVICE_ID: 0 if
# left out. --device: Ascend or CPU; if left out, DEVICE_TARGET of the environment, else Ascend. --mean and --std are the
# runner's, too; what else follows goes to postprocess.py. MINDSPORE_LITE_HOME says where MindSpore Lite is, see
# ascend310_infer/build.sh.
# Results are in the current folder: result_Files/, time_Result/, result_val.json; what was printed is in infer_logs/.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash scripts/run_infer_310.sh MODEL_PATH DATA_PATH DATASET_NAME [DEVICE_ID] [--device Ascend|CPU] \
[--key value ...]"
[ $# -ge 3 ] && [[ $1 != --* && $2 != --* && $3 != --* ]] || fail "$usage"
model=$1 data=$2 dataset=$3
shift 3
device_id=0
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    device_id=$1
    shift
fi
for_runner=(--device "${DEVICE_TARGET:-Ascend}")
for_scores=()
while [ $# -gt 0 ]; do
    [[ $1 == --?* ]] || fail "expected --key value, found '$1'; $usage"
    words=("$1")
    if [[ $1 != *=* ]]; then
        [ $# -ge 2 ] || fail "$1: expected a value after it, found none; $usage"
        words+=("$2")
        shift
    fi
    shift
    case ${words[0]%%=*} in
    --device | --mean | --std) for_runner+=("${words[@]}") ;;
    --dataset_path | --result_path | --dataset_name | --midas_file | --image_path | --device_id)
        fail "${words[0]}: this script sets it; $usage"
        ;;
    *) for_scores+=("${words[@]}") ;;
    esac
done
[ -f "$model" ] || fail "MODEL_PATH: expected a MINDIR file, found none: $model"
[ -d "$data" ] || fail "DATA_PATH: expected the folder of the data set, found none: $data"
case ${dataset,,} in
kitti | tum | sintel) ;;
*) fail "DATASET_NAME: expected Kitti, TUM or Sintel, found $dataset" ;;
esac
[[ $device_id =~ ^[0-9]+$ ]] || fail "DEVICE_ID: expected a number, found $device_id"
modules=(cv2)
choose_python
# What would end the scoring is told before anything is built.
"$PYTHON" -c 'import cv2, numpy, PIL, simplejpeg, tqdm, yaml' 2>/dev/null ||
    fail "$PYTHON lacks packages of requirements-common.txt, which the scoring needs: activate an environment, or set PYTHON"
"$PYTHON" -c 'import sys
sys.path.insert(0, sys.argv.pop(1))
from src.common.errors import run_script
def main():
    import postprocess
    postprocess.load_config("", keys=postprocess.KEYS)
run_script(main)' "$REPOSITORY" "${for_scores[@]}"

logs=$PWD/infer_logs
results=$PWD/result_Files
if ! { mkdir -p "$logs" && [ -w "$logs" ]; } 2>/dev/null; then
    fail "$logs: expected a folder that can be written to"
fi

# Runs a step and keeps what it prints, which is shown as well unless "hide" is given. Ends the script if it fails.
step() {
    local name=$1 show=$2 log=$logs/$1.log status=0
    shift 2
    echo "== $name ($log)"
    if [ "$show" = show ]; then
        "$@" 2>&1 | tee -i "$log" || status=${PIPESTATUS[0]}
    else
        "$@" >"$log" 2>&1 || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        echo "error: $name failed with status $status; the end of $log:" >&2
        tail -n 10 "$log" >&2
        exit "$status"
    fi
}

step build hide bash "$REPOSITORY/ascend310_infer/build.sh"
step infer show "$REPOSITORY/ascend310_infer/build/main" --midas_file "$model" --image_path "$data" \
    --dataset_name "$dataset" --device_id "$device_id" --result_path "$results" "${for_runner[@]}"
step score show "$PYTHON" "$REPOSITORY/postprocess.py" "${for_scores[@]}" --dataset_path "$data" \
    --result_path "$results" --dataset_name "$dataset"
