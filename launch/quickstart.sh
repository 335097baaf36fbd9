#!/usr/bin/env bash
# Installs lawm_jax, shows predictions of the shipped model, trains a model and compares the two.
#   bash launch/quickstart.sh [WORKDIR]      default: runs/quickstart
set -euo pipefail
if [[ "${1:-}" == -* ]]; then
    sed -n '2,3s/^# //p' "$0"
    exit 2
fi
work=$(realpath -m "${1:-runs/quickstart}")
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
page=$work/report/page.html
shipped=$work/bounds/nano
if [ -e "$page" ]; then
    echo "$work: the quick start has already finished; see $page"
    exit 0
fi
mkdir -p "$work/bounds"
(cd "$work/bounds" && lawm evaluate --workdir nano --only pictures --data panda=mini:panda)
echo "first picture after $SECONDS s, of the shipped model: $shipped/report/rollout_panda.png"
echo "training a model of the same kind, for 0.5% of its steps, on the embedded Panda videos"
lawm train --config lawm.py:size=nano,latent=noisy --workdir "$work" \
    --config.steps=150 --config.data.mixture.nav=0.0
lawm evaluate --workdir "$work"
lawm report "$work"
cat <<END

Result: world models that were trained on videos without actions predict held-out videos from the latent actions that they infer.
See:    $shipped/report/rollout_panda.png first, then the report, $page
Next:   source $LAWM_VENV/bin/activate && lawm train --config lawm.py:size=nano --config.data.videos=/path/to/videos --workdir runs/mine
END
