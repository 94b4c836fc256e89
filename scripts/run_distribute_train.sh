#!/usr/bin/env bash
# Data-parallel training: bash scripts/run_distribute_train.sh DEVICE_NUM CKPT_PATH [--key value ...]
# CKPT_PATH: weights to start from, e.g. ./ckpt/midas_resnext_101_WSL.ckpt; "" for random ones.
# The logs of the processes are in output/distribute_log (or $LOG_DIR). The processes find each other through port 8118
# (or $MASTER_PORT). Ctrl-C and SIGTERM end the run after a step, with a checkpoint.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || fail "usage: bash scripts/run_distribute_train.sh DEVICE_NUM CKPT_PATH [--key value ...]"
[[ $1 =~ ^[1-9][0-9]*$ ]] || fail "DEVICE_NUM: expected a number of devices, found $1"
choose_python
msrun=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')")/msrun
[ -x "$msrun" ] || fail "expected MindSpore's msrun beside $PYTHON, found none; is MindSpore installed there?"
port=${MASTER_PORT:-8118}
"$PYTHON" - "$port" <<'EOF' || fail "MASTER_PORT: expected a free port, found $port, which is taken or no port; set MASTER_PORT to another"
import socket
import sys

with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a run that has just ended leaves is no obstacle
    try:
        probe.bind(("", int(sys.argv[1])))
    except (OSError, ValueError, OverflowError):
        sys.exit(1)
EOF
latest_checkpoint "${@:3}" >/dev/null # wrong settings end the script here
log_dir=${LOG_DIR:-$REPOSITORY/output/distribute_log}
mkdir -p "$log_dir"
echo "starting $1 processes; follow the first with: tail -f $log_dir/worker_0.log"
# In a session of its own, where no Ctrl-C reaches it: msrun would kill its processes.
PATH=$(dirname "$msrun"):$PATH setsid "$msrun" --worker_num="$1" --local_worker_num="$1" --master_port="$port" \
    --log_dir="$log_dir" --join=True \
    "$REPOSITORY/midas_train.py" --run_distribute True --model_weights "$2" "${@:3}" &
launcher=$!

# Hands the request on to the processes that msrun has started, or to msrun if it has not come to that (it is held
# meanwhile, lest it start some that nobody tells). They end together.
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
    is_asked=yes
    "$PYTHON" -c 'import contextlib, sys, psutil
with contextlib.suppress(psutil.NoSuchProcess):
    msrun = psutil.Process(int(sys.argv[1]))
    msrun.suspend()
    for process in msrun.children() or [msrun]:
        process.terminate()
    msrun.resume()' "$launcher" || true
    echo "asked to stop: the run ends after this step, with a checkpoint" >&2 || true # the terminal may be closed
}
trap pass_on INT TERM HUP
is_asked=yes
while [ -n "$is_asked" ]; do # a signal ends the waiting, not the run
    is_asked=
    status=0
    wait "$launcher" || status=$?
done
[ "$status" -ne 0 ] || exit 0
latest=$(latest_checkpoint "${@:3}")
how=${latest:+the last checkpoint is $latest; --resume True resumes the run}
echo "error: the training has ended early (its processes say why: $log_dir/worker_*.log); ${how:-there is no checkpoint yet}" >&2
exit "$status"
