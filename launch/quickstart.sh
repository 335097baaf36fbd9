#!/usr/bin/env bash
# Installs lawm_jax, trains a nano world model on the embedded Panda videos, and shows what it learned.
#   bash launch/quickstart.sh [WORKDIR]      WORKDIR: default runs/quickstart
# Beside the model it trains the paper's two bounds, without a latent and with an unconstrained one.
set -euo pipefail
work=$(realpath -m "${1:-runs/quickstart}")
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

train() { # KIND WORKDIR
    python -m lawm_jax.train --config "configs/lawm.py:size=nano,latent=$1" --workdir "$2" \
        --config.steps=300 --config.data.mixture.nav=0.0
}
if [ -e "$work/eval/prediction.json" ]; then
    echo "$work: the quick start is done already; its results are in eval/ and report/page.html"
    exit 0
fi
mkdir -p "$work/bounds"
bounds() {
    for kind in deterministic none; do
        train "$kind" "$work/bounds/$kind" >"$work/bounds/$kind.log" 2>&1
    done
}
bounds &
train noisy "$work"
echo "waiting for the two bounds"
if ! wait $!; then
    tail -n 20 "$work"/bounds/*.log >&2
    exit 1
fi
python -m lawm_jax.evaluate --workdir "$work"
python -m lawm_jax.report "$work"
