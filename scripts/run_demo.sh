#!/usr/bin/env bash
# The main job in small, on the CPU: sample data, training, depth maps, evaluation before and after training.
# Arguments are further settings, e.g. --epoch_size 60. What is already there is used again; to start afresh:
# rm -rf output/demo data/sample
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_environment requirements.txt
cd "$REPOSITORY"
data=${DEMO_DATA:-data/sample}
demo=${DEMO_OUTPUT:-output/demo}
read -r train eval diw <<<"${DEMO_SCENES:-96 8 100}" # scenes to train on, of each benchmark, of DIW

settings=(--config_path scripts/demo.yaml "${device_target[@]}" "$@" --train_data_dir "$data" --train_output_path "$demo/train")

step() { printf '\n== %s\n' "$*"; }

step "1/5 sample data: rendered scenes with exact depth"
"$PYTHON" preprocess/make_sample.py --output "$data" --train "$train" --eval "$eval" --diw "$diw"

step "2/5 evaluation before training (random weights)"
"$PYTHON" midas_eval.py "${settings[@]}" --ckpt_path "" --ann_file "$demo/before/val.json"

step "3/5 training"
resume=False
if compgen -G "$demo/train/*.ckpt" >/dev/null; then
    resume=True
fi
"$PYTHON" midas_train.py "${settings[@]}" --resume "$resume" ||
    fail "the training failed, see above; if it cannot be resumed, start afresh: rm -rf $demo"

step "4/5 depth maps of images that were not trained on"
"$PYTHON" midas_run.py "${settings[@]}" --model_weights "$demo/train" --output_path "$demo/depth" \
    --input_path "$data/TUM/rgbd_dataset_freiburg2_desk_with_person/rgb"

step "5/5 evaluation after training"
"$PYTHON" midas_eval.py "${settings[@]}" --ckpt_path "$demo/train" --ann_file "$demo/after/val.json"
"$PYTHON" scripts/demo_report.py "${settings[@]}" --ckpt_path "$demo/train" --output_path "$demo"
