#!/usr/bin/env bash
# Runs a command as one run of N processes on this machine:
#   bash launch/local_processes.sh [--dry-run] N -- COMMAND [ARGUMENT ...]
#   bash launch/local_processes.sh 2 -- python -m lawm_jax.train --config ... --workdir W
# Each process gets an equal share of the GPUs, or JAX_NUM_CPU_DEVICES CPU devices (default 1).
# Output lines are prefixed by [0], [1] and so on. SIGTERM and SIGINT are forwarded as SIGTERM, upon
# which training saves a checkpoint and exits. If a process fails, the others are stopped, and its
# exit code is returned.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "" "$@"
[ ${#WORDS[@]} = 1 ] || fail "expected a number of processes before --, got '${WORDS[*]}'"
[ ${#COMMAND[@]} -gt 0 ] || fail "expected -- and a command, got nothing"
count=${WORDS[0]}
number N "$count"

gpus=0
if [ "${JAX_PLATFORMS:-cuda}" != cpu ] && command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus | wc -l)
fi
[ $((gpus % count)) = 0 ] || fail "N: expected a divisor of the machine's $gpus GPUs, got $count"
export JAX_COORDINATOR_ADDRESS=localhost:${JAX_COORDINATOR_PORT:-$((20000 + RANDOM % 10000))}
export JAX_NUM_PROCESSES=$count JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-1}

marks=() # the processes that prefix lines
declare -A running=()
asked='' code=0 alarm=''
trap 'asked=1; kill -TERM "${!running[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
    own=("JAX_PROCESS_ID=$i")
    if [ "$gpus" -gt 0 ]; then
        share=$((gpus / count))
        own+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $(((i + 1) * share - 1)))")
    fi
    if [ -n "$DRY_RUN" ]; then
        run env JAX_COORDINATOR_ADDRESS="$JAX_COORDINATOR_ADDRESS" JAX_NUM_PROCESSES="$count" \
            JAX_NUM_CPU_DEVICES="$JAX_NUM_CPU_DEVICES" "${own[@]}" "${ENV[@]}" "${COMMAND[@]}"
        continue
    fi
    exec {lines}> >(exec sed -u "s/^/[$i] /")
    marks+=($!)
    env "${own[@]}" "${ENV[@]}" "${COMMAND[@]}" >&"$lines" 2>&1 {lines}>&- &
    running[$!]=$i
    exec {lines}>&-
done

[ -z "$asked" ] || kill -TERM "${!running[@]}" 2>/dev/null || true # a signal while they started

ended() { # PID: records the end of a process; stops the others if it is the first to fail
    local status=0
    wait "$1" || status=$?
    local who=${running[$1]}
    unset "running[$1]"
    if [ "$status" = 0 ] || [ "$code" != 0 ]; then return; fi
    code=$status
    if [ -z "$asked" ] && [ ${#running[@]} -gt 0 ]; then
        echo "process $who ended with exit code $code; stopping the others" >&2
        kill -TERM "${!running[@]}" 2>/dev/null || true
        sleep 20 & # they may ignore SIGTERM while they wait for the failed process
        alarm=$!
    fi
}

while [ ${#running[@]} -gt 0 ]; do
    wait -n "${!running[@]}" $alarm 2>/dev/null || true # until a process ends or a signal arrives
    for pid in "${!running[@]}"; do
        kill -0 "$pid" 2>/dev/null || ended "$pid"
    done
    if [ -n "$alarm" ] && ! kill -0 "$alarm" 2>/dev/null; then
        alarm=
        kill -KILL "${!running[@]}" 2>/dev/null || true
    fi
done
[ -z "$alarm" ] || kill "$alarm"
for mark in "${marks[@]}"; do # ends after the last process that writes to it
    timeout 5 tail -s 0.1 --pid="$mark" -f /dev/null || kill "$mark"
done
exit "$code"
