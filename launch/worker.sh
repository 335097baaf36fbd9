#!/usr/bin/env bash
# What tpu_pod.sh runs on each worker: starts a command that outlives the connection, or joins the
# one that still runs, prints what it says and returns its exit code.
#   bash launch/worker.sh [NAME=VALUE ...] COMMAND [ARGUMENT ...]
# In the home folder: lawm.pid, lawm.log, lawm.code (the last exit code).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -e ~/lawm.pid ] && kill -0 "$(cat ~/lawm.pid)" 2>/dev/null; then
    echo "$(hostname): joins the command that is running"
else
    LAWM_VENV=${LAWM_VENV:-$HOME/lawm_venv} LAWM_EXTRAS=${LAWM_EXTRAS:-tpu} LAWM_UV=1
    # shellcheck source=launch/env.sh
    source launch/env.sh
    rm -f ~/lawm.code
    # The shell waits through a SIGTERM, which `stop` sends to the command, to note the exit code.
    # shellcheck disable=SC2016 # the inner shell expands
    setsid bash -c 'trap : TERM; env "$@"; echo $? >~/lawm.code' bash "$@" >~/lawm.log 2>&1 </dev/null &
    echo $! >~/lawm.pid
fi
tail -n +1 -f --pid="$(cat ~/lawm.pid)" ~/lawm.log
exit "$(cat ~/lawm.code 2>/dev/null || echo 1)"
