#!/usr/bin/env bash
# Trains on Google Kubernetes Engine with a JobSet of TPU or GPU workers, which restarts on failure.
#   bash launch/gke.sh run NAME --image IMAGE --tpu TYPE --topology TOPOLOGY -- COMMAND ... --workdir gs://BUCKET/RUN
#   bash launch/gke.sh run NAME --image IMAGE --gpu TYPE --nodes N -- COMMAND ... --workdir gs://BUCKET/RUN
#       Starts the JobSet. A running JobSet is left unchanged; one that has ended is recreated and
#       resumes training from the last checkpoint.
#   bash launch/gke.sh state|logs|delete NAME
# Options:
#   --image IMAGE     built from launch/gke/Dockerfile
#   --volume CLAIM    a PersistentVolumeClaim that many nodes may write, such as Filestore, for data
#                     or runs that are not in a bucket; mounted as /workdir in the workers
#   --tpu TYPE        v4, v5p, v5e or v6e
#   --topology T      chips along each axis, 4 chips per worker: 4x4x4 (v4, v5p), 16x16 (v5e, v6e)
#   --slices N        number of slices of one run; default 1
#   --gpu TYPE        the node's accelerator label, such as nvidia-h100-80gb
#   --gpus N          GPUs per node; default 8
#   --nodes N         number of nodes; default 1
#   --restarts N      number of restarts after a failure; default 20
#   --env NAME=VALUE  environment variable of the command; may be repeated
#   --dry-run         prints the manifest, with the commands as comments, and runs nothing
# shellcheck disable=SC2034 # `manifest` reads variables by name
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"
IMAGE='' VOLUME='' TPU='' TOPOLOGY='' SLICES=1 GPU='' GPUS=8 NODES=1 RESTARTS=20
parse "image volume tpu topology slices gpu gpus nodes restarts" "" "$@"
verb=${WORDS[0]:-} NAME=${WORDS[1]:-}
[[ $NAME =~ ^[a-z][-a-z0-9]*$ ]] || fail "NAME: expected lowercase letters, digits and -, got '$NAME'"

text() { # WORD: quotes it for YAML, and against expansion by Kubernetes
    local word=${1//\\/\\\\}
    word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
    printf '"%s"' "${word//\$(/\$\$(}"
}

list() { # WORD ...: makes a YAML list of YAML words
    local joined
    joined=$(printf ', %s' "$@")
    echo "[${joined#, }]"
}

variable() { # NAME VALUE
    echo "{name: $1, value: $(text "$2")}"
}

manifest() { # KIND: prints the template with ${HOSTS}, ${CHIPS}, ... replaced by the variables
    local filled name
    filled=$(<"$here/gke/$1.yaml")
    for name in NAME RESTARTS SLICES HOSTS CHIPS ACCELERATOR TOPOLOGY IMAGE SHARED VARIABLES ARGS; do
        filled=${filled//"\${$name}"/"${!name}"}
    done
    echo "$filled"
}

tpu() {
    local axes='^[0-9]+x[0-9]+$' chips
    case $TPU in
        v4 | v5p) axes='^[0-9]+x[0-9]+x[0-9]+$' ACCELERATOR=tpu-$TPU-slice ;;
        v5e) ACCELERATOR=tpu-v5-lite-podslice ;;
        v6e) ACCELERATOR=tpu-v6e-slice ;;
        *) fail "--tpu: expected v4, v5p, v5e or v6e, got '$TPU'" ;;
    esac
    [ "$TPU" != v4 ] || ACCELERATOR=tpu-v4-podslice
    [[ $TOPOLOGY =~ $axes ]] || fail "--topology: expected a topology such as 4x4x4 (v4, v5p) or 16x16 (v5e, v6e), got '$TOPOLOGY'"
    chips=$((${TOPOLOGY//x/*}))
    CHIPS=$((chips < 4 ? chips : 4)) HOSTS=$((chips < 4 ? 1 : chips / 4))
}

gpu() {
    ACCELERATOR=$GPU HOSTS=$NODES CHIPS=$GPUS
    variables+=("$(variable JAX_COORDINATOR_ADDRESS "$NAME-worker-0-0.$NAME:8482")"
        "$(variable JAX_NUM_PROCESSES "$NODES")"
        "{name: JAX_PROCESS_ID, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}")
}

case $verb in
    run)
        [ ${#COMMAND[@]} -gt 0 ] || fail "expected -- and a command, got nothing"
        [ -n "$IMAGE" ] || fail "--image: expected an image built from launch/gke/Dockerfile, got nothing"
        SHARED='emptyDir: {}'
        [ -z "$VOLUME" ] || SHARED="persistentVolumeClaim: {claimName: $VOLUME}"
        for option in slices gpus nodes restarts; do
            variable=${option^^}
            number "--$option" "${!variable}"
        done
        variables=()
        for pair in "${ENV[@]}"; do variables+=("$(variable "${pair%%=*}" "${pair#*=}")"); done
        kind=$([ -n "$GPU" ] && echo gpu || echo tpu)
        "$kind"
        VARIABLES=$(list "${variables[@]}")
        words=()
        for word in "${COMMAND[@]}"; do words+=("$(text "$word")"); done
        ARGS=$(list "${words[@]}")
        if [ -n "$DRY_RUN" ]; then
            manifest "$kind"
            echo "# $(run kubectl apply --filename=-)"
            exit
        fi
        found=$(kubectl get jobset "$NAME" --ignore-not-found --output='jsonpath={.kind} {.status.terminalState}')
        [ "$found" != "JobSet " ] || fail "$NAME exists and has not ended; see 'state $NAME' and 'logs $NAME'"
        [[ $found != JobSet* ]] || run kubectl delete jobset "$NAME"
        run kubectl apply --filename=- < <(manifest "$kind")
        ;;
    state) run kubectl get jobset "$NAME" --output=wide ;;
    logs) run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --prefix --tail=-1 --follow --max-log-requests=1000 ;;
    delete) run kubectl delete jobset "$NAME" ;;
    *) fail "expected run, state, logs or delete, got '$verb'" ;;
esac
