#!/usr/bin/env bash
# Installs lawm_jax, trains a nano world model on the embedded Panda videos and evaluates it.
#   bash launch/quickstart.sh [WORKDIR]      default: runs/quickstart
# Writes a first picture after training. Then trains the paper's lower bound, a model without latent
# actions, and compares the two.
set -euo pipefail
work=$(realpath -m "${1:-runs/quickstart}")
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
page=$work/report/page.html

train() { # KIND WORKDIR
    lawm train --config "lawm.py:size=nano,latent=$1" --workdir "$2" \
        --config.steps=150 --config.data.mixture.nav=0.0
}
if [ -e "$page" ]; then
    echo "$work: the quick start has already finished; see $page"
    exit 0
fi
train noisy "$work"
lawm evaluate --workdir "$work" --only pictures
echo "first picture after $SECONDS s: $work/report/rollout_panda.png"
echo "training the lower bound, a model without latent actions, for comparison"
train deterministic "$work/bounds/deterministic"
lawm evaluate --workdir "$work"
lawm report "$work"
cat <<END

Result: a world model that was trained on 128 videos without actions predicts held-out videos from the latent actions that it infers.
See:    $work/report/rollout_panda.png first, then the report, $page
Next:   source $LAWM_VENV/bin/activate && lawm train --config lawm.py:size=nano --config.data.videos=/path/to/videos --workdir runs/mine
END
