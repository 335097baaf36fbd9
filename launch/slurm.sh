#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, with one process per node that uses all its GPUs.
#   bash launch/slurm.sh --nodes 8 [OPTION ...] -- COMMAND [ARGUMENT ...]     submits the job
#   bash launch/slurm.sh --nodes 8 -- python -m lawm_jax.train --config ... --workdir /shared/run
# Within an allocation (salloc), it runs the command immediately. The checkout must be in a folder
# shared by all nodes, with an environment made by `LAWM_EXTRAS=cuda source launch/env.sh`.
# Options:
#   --nodes N         number of nodes; default 1
#   --gpus N          GPUs per node; default 8
#   --cpus N          CPU cores per node, for reading video; default 8 per GPU
#   --time T          time limit, as for sbatch; default 24:00:00. Five minutes before the limit,
#                     training saves a checkpoint and the job is requeued
#   --partition P, --account A, --qos Q, --name NAME
#   --sbatch 'WORDS'  additional sbatch options, such as '--constraint=h100 --exclude=node7'
#   --env NAME=VALUE  environment variable of the command; may be repeated
#   --dry-run         prints all commands and runs none
# Slurm restarts the job after a node failure or preemption (--requeue), and the command resumes from
# the last checkpoint. The log is slurm-NAME-JOB.log; `scancel JOB` ends the job.
set -euo pipefail
here=${LAWM_LAUNCH:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)} # sbatch runs a copy of this file
# shellcheck source=launch/common.sh
source "$here/common.sh"
NODES=1 GPUS=8 CPUS='' TIME=24:00:00 PARTITION='' ACCOUNT='' QOS='' NAME=lawm SBATCH=''
parse "nodes gpus cpus time partition account qos name sbatch" "" "$@"
[ ${#WORDS[@]} = 0 ] || fail "expected options and --, got '${WORDS[*]}'"
[ ${#COMMAND[@]} -gt 0 ] || fail "expected -- and a command, got nothing"
number --nodes "$NODES"
number --gpus "$GPUS"
CPUS=${CPUS:-$((8 * GPUS))}
number --cpus "$CPUS"

if [ -z "${SLURM_JOB_ID:-}" ]; then
    again=(--nodes="$NODES" --gpus="$GPUS" --cpus="$CPUS")
    for pair in "${ENV[@]}"; do again+=(--env="$pair"); done
    # shellcheck disable=SC2086 # --sbatch holds several words
    run sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node=1 \
        --gpus-per-node="$GPUS" --cpus-per-task="$CPUS" --time="$TIME" --requeue \
        --signal=B:USR1@300 --open-mode=append --output="slurm-$NAME-%j.log" --export="ALL,LAWM_LAUNCH=$here" \
        ${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"} \
        ${QOS:+--qos="$QOS"} $SBATCH "$here/slurm.sh" "${again[@]}" -- "${COMMAND[@]}"
    [ -n "$DRY_RUN" ] || exit 0
fi

cd "$here/.."
if [ -z "$DRY_RUN" ]; then
    export LAWM_EXTRAS=${LAWM_EXTRAS:-cuda}
    # shellcheck source=launch/env.sh
    source launch/env.sh
fi
late=
# Five minutes before the limit: sends SIGTERM to the processes only, not to cancel the job.
trap 'late=1; run scancel --signal=TERM "$SLURM_JOB_ID"' USR1
code=0
run srun --nodes="$NODES" --ntasks-per-node=1 --cpus-per-task="$CPUS" --label --kill-on-bad-exit=1 \
    env "${ENV[@]}" "${COMMAND[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do # a signal interrupts `wait` before the step ends
    code=0
    wait "$step" || code=$?
done
# 143: training got SIGTERM and saved a checkpoint. `scancel JOB` has killed this shell by now.
if [ -n "$late" ] || [ "$code" = 143 ]; then
    run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
