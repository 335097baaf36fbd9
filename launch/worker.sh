#!/usr/bin/env bash
# Run by tpu_pod.sh on each worker: starts a command that keeps running after a lost connection, or
# attaches to the running command. Prints its output and returns its exit code.
#   bash launch/worker.sh [NAME=VALUE ...] COMMAND [ARGUMENT ...]
# State in the home folder: lawm.pid, lawm.log and lawm.code (the last exit code).
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ -z ${1:-} || $1 == -* ]]; then
    usage
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -e ~/lawm.pid ] && kill -0 "$(cat ~/lawm.pid)" 2>/dev/null; then
    echo "$(hostname): attaching to the running command"
else
    LAWM_VENV=${LAWM_VENV:-$HOME/lawm_venv} LAWM_EXTRAS=${LAWM_EXTRAS:-tpu,buckets} LAWM_UV=1
    # shellcheck source=launch/env.sh
    source launch/env.sh
    rm -f ~/lawm.code
    # The shell survives the SIGTERM that `stop` sends, to record the command's exit code.
    # shellcheck disable=SC2016 # the inner shell expands
    setsid bash -c 'trap : TERM; env "$@"; echo $? >~/lawm.code' bash "$@" >~/lawm.log 2>&1 </dev/null &
    echo $! >~/lawm.pid
fi
tail -n +1 -f --pid="$(cat ~/lawm.pid)" ~/lawm.log || echo "$(hostname): can't follow ~/lawm.log" >&2
if [ ! -s ~/lawm.code ]; then
    echo "$(hostname): the command was killed or still runs: it left no exit code" >&2
    exit 1
fi
exit "$(cat ~/lawm.code)"
