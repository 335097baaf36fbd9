#!/usr/bin/env bash
# Trains on one or several Cloud TPU slices, requested as a queued resource.
#   bash launch/tpu_pod.sh run NAME --type TYPE [OPTION ...] -- COMMAND [ARGUMENT ...]
#       Creates the slice if it does not exist, installs this checkout, runs the command on each
#       worker and prints the output. It keeps running after Ctrl-C or a lost connection; the same
#       line reattaches to it or, after a preemption, recreates the slice and resumes training.
#   bash launch/tpu_pod.sh state NAME              prints the slice's state, or nothing without one
#   bash launch/tpu_pod.sh logs NAME [FOLDER]      fetches all workers' logs; default logs/NAME
#   bash launch/tpu_pod.sh stop NAME               sends SIGTERM: training saves and ends
#   bash launch/tpu_pod.sh delete NAME             deletes the slice and its machines
# Options:
#   --type TYPE       v5p-64 and v4-64 count cores: 32 chips on 8 workers. v5litepod-64 (v5e) and
#                     v6e-256 count chips: 64 on 16 workers, 256 on 64.
#   --slices N        number of slices of one run; default 1
#   --spot            uses cheaper machines, which may be preempted
#   --zone, --project         default: as in gcloud config
#   --version         TPU software version; default: the TYPE's runtime version
#   --setup 'LINE'    shell command that each worker runs first, for example to mount a file system
#   --env NAME=VALUE  environment variable of the command; may be repeated
#   --dry-run         prints all commands and runs none
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"
TYPE='' SLICES=1 SPOT='' ZONE='' PROJECT='' VERSION='' SETUP=''
parse "type slices zone project version setup" spot "$@"
verb=${WORDS[0]:-} NAME=${WORDS[1]:-}
[[ $NAME =~ ^[a-z][-a-z0-9]*$ ]] || fail "NAME: expected lowercase letters, digits and -, got '$NAME'"
number --slices "$SLICES"
where=(${ZONE:+--zone="$ZONE"} ${PROJECT:+--project="$PROJECT"})
resource=(gcloud compute tpus queued-resources)

exec 3>&1
ask() { # COMMAND ...: runs it for its output; with --dry-run, only prints the command
    if [ -n "$DRY_RUN" ]; then quote "$@" >&3; else "$@"; fi
}

state() { # prints the queued resource's state, nothing if it does not exist
    ask "${resource[@]}" list "${where[@]}" --filter="name~\"/$NAME\$\"" --format='value(state.state)'
}

nodes() { # prints the states of the slices
    ask gcloud compute tpus tpu-vm list "${where[@]}" --filter="name~\"/$NAME(-[0-9]+)?\$\"" \
        --format='value(state)'
}

on_workers() { # LINE [OPTION ...]: runs a shell command on all workers in parallel
    run "${resource[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all --batch-size=all \
        --command="$1" "${@:2}"
}

create() {
    local version=$VERSION size=(--node-id="$NAME")
    case $TYPE in
        v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
        v5p-*) version=${version:-v2-alpha-tpuv5} ;;
        v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
        v[234]-*) version=${version:-tpu-ubuntu2204-base} ;;
        *) fail "--type: expected a type such as v5p-64, v6e-256, v5litepod-64 or v4-64, got '$TYPE'" ;;
    esac
    [ "$SLICES" = 1 ] || size=(--node-count="$SLICES" --node-prefix="$NAME")
    run "${resource[@]}" create "$NAME" "${where[@]}" --accelerator-type="$TYPE" \
        --runtime-version="$version" "${size[@]}" ${SPOT:+--spot}
}

delete() {
    run "${resource[@]}" delete "$NAME" "${where[@]}" --force --quiet
}

ready() { # waits until the slice is ready; creates or recreates it if needed
    local now before=
    while true; do
        now=$(state)
        [ "$now" != ACTIVE ] || now=$(nodes | sort -u | paste -sd, -)
        [ "$now" = "$before" ] || echo "$NAME: ${now:-does not exist}" >&2
        before=$now
        case $now in
            READY) return ;;
            *PREEMPTED* | *TERMINATED* | SUSPENDED)
                delete
                create
                ;;
            '') create ;;
            FAILED)
                "${resource[@]}" describe "$NAME" "${where[@]}" --format='yaml(state)' >&2
                fail "the request for $NAME failed; run 'delete $NAME' before another request"
                ;;
            *) sleep 30 ;;
        esac
        [ -z "$DRY_RUN" ] || { nodes && return; }
    done
}

case $verb in
    run)
        [ ${#COMMAND[@]} -gt 0 ] || fail "expected -- and a command, got nothing"
        ready
        package=${TMPDIR:-/tmp}/lawm_jax-$NAME.tgz
        # shellcheck disable=SC2016 # the inner shell expands
        run bash -o pipefail -c 'git -C "$1" ls-files -z --cached --others --exclude-standard |
            tar --directory="$1" --null --files-from=- -czf "$2"' pack "$here/.." "$package"
        run "${resource[@]}" scp "$package" "$NAME:lawm_jax.tgz" "${where[@]}" --node=all --worker=all --batch-size=all
        busy="[ -e lawm.pid ] && kill -0 \$(cat lawm.pid) 2>/dev/null"
        unpack="rm -rf lawm_jax && mkdir lawm_jax && tar -xzf lawm_jax.tgz -C lawm_jax"
        on_workers "$busy || { ${SETUP:+$SETUP && }$unpack; } && $(quote bash lawm_jax/launch/worker.sh \
            "${ENV[@]}" "${COMMAND[@]}")"
        ;;
    state) state ;;
    logs)
        for ((slice = 0; slice < SLICES; slice++)); do
            folder=${WORDS[2]:-logs/$NAME}/slice-$slice
            run mkdir -p "$folder"
            run "${resource[@]}" ssh "$NAME" "${where[@]}" --node="$slice" --worker=all \
                --batch-size=all --command='cat lawm.log' --output-directory="$folder"
        done
        ;;
    stop) on_workers "pkill -TERM -P \$(cat lawm.pid)" ;;
    delete) delete ;;
    *) fail "expected run, state, logs, stop or delete, got '$verb'" ;;
esac
