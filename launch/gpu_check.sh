#!/usr/bin/env bash
# Runs all GPU checks in less than 9 minutes and writes benchmarks/results/DEVICE.json. With several
# GPUs, all of them are used, and the file is N-x-DEVICE.json:
#   bash launch/gpu_check.sh [--out FILE] [--python PYTHON] [--small] [--dry-run]
# The checks are tests of the networks, the encoder and the planners in float32; benchmarks of
# attention by cuDNN and by XLA, the training step with its profile, the planner and the encoder at the
# paper's size, in bfloat16, with random weights; and a nano training run with its evaluation. If a
# check fails or exceeds its time limit, the others still run, and the exit code is 1. Options:
#   --out FILE       results file; default as above
#   --python PYTHON  interpreter with the packages installed; by default env.sh installs them
#   --small          uses tiny models and prints the results, to try the script on any machine:
#                    JAX_PLATFORMS=cpu bash launch/gpu_check.sh --small
#   --dry-run        prints all commands and runs none
# On a machine without a network, pip takes wheels from a folder:
#   pip download --dest wheels '.[test,torch,cuda]' 'setuptools>=77'   # elsewhere, the same Python
#   PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/wheels bash launch/gpu_check.sh
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT='' PYTHON='' SMALL=''
parse "out python" "small" "$@"
[ ${#WORDS[@]} = 0 ] || fail "expected options only, got '${WORDS[*]}'"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -z $OUT || $OUT = /* ]] || OUT=$PWD/$OUT
export LAWM_EXTRAS=${LAWM_EXTRAS:-test,torch,cuda} JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
if [ -z "$PYTHON$DRY_RUN" ]; then
    # shellcheck source=launch/env.sh
    source "$here/env.sh"
fi
PYTHON=${PYTHON:-python}
cd "$here/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$DRY_RUN" ]; then
    # Fails with JAX's error message if there is no GPU.
    device=$("$PYTHON" -c 'import jax; print(jax.device_count(), jax.devices()[0].device_kind)') ||
        fail "expected a device of JAX_PLATFORMS=$JAX_PLATFORMS, got none (see above)"
    count=${device%% *} device=${device#* }
    name=$(tr ' A-Z' '-a-z' <<<"$device")
    [ "$count" = 1 ] || name=$count-x-$name
fi

part() { # NAME SECONDS COMMAND ...: runs it; saves output, exit code and time
    local name=$1 limit=$2 code=0 begin=$SECONDS
    shift 2
    if [ -n "$DRY_RUN" ]; then
        run timeout -k 10 "$limit" "$@"
        return
    fi
    echo "$name: time limit $limit s"
    run timeout -k 10 "$limit" "$@" >"$work/$name.log" 2>&1 || code=$?
    echo "$name $code $((SECONDS - begin))" >>"$work/parts"
    tail -n 25 "$work/$name.log"
}

size=large encoder=vitl model=nano steps=300
if [ -n "$SMALL" ]; then size=tiny encoder=tiny model=tiny steps=20 OUT=${OUT:-/dev/stdout}; fi
part tests 130 env JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false \
    "$PYTHON" -m pytest -p no:cacheprovider -n "${LAWM_WORKERS:-4}" --dist loadfile --junitxml="$work/tests.xml" \
    tests/test_{blocks,latents,world_model,planning,optim,vjepa2}.py
part attention 50 "$PYTHON" -m benchmarks.attention --size="$size" --json="$work/attention.json"
part train_step 120 "$PYTHON" -m benchmarks.train_step --sizes="$size" --json="$work/train_step.json"
part planner 100 "$PYTHON" -m benchmarks.planner --size="$size" --json="$work/planner.json"
# PyTorch, which it is compared with, does not run on TPUs.
[[ $JAX_PLATFORMS = tpu* ]] || part encoder 70 "$PYTHON" -m benchmarks.encoder --sizes="$encoder" --json="$work/encoder.json"
part training 50 "$PYTHON" -m lawm_jax.train --config="configs/lawm.py:size=$model" --workdir="$work/run" \
    --config.steps="$steps" --config.data.mixture.nav=0.0
part evaluation 15 "$PYTHON" -m lawm_jax.evaluate --workdir="$work/run" --only=prediction
[ -z "$DRY_RUN" ] || exit 0

"$PYTHON" - "$work" "${OUT:-benchmarks/results/$name.json}" "$device" "$count" <<'END'
import json, pathlib, sys
import xml.etree.ElementTree as xml
from benchmarks import timing

work, out, device, count = pathlib.Path(sys.argv[1]), *sys.argv[2:]
results = timing.about("jax", "jaxlib", "flax") | {"device": device, "devices": int(count)}
for line in (work / "parts").read_text().splitlines():
    name, code, seconds = line.split()
    row = results[name] = {"exit code": int(code), "seconds": int(seconds)}
    if row["exit code"]:
        row["log"] = (work / f"{name}.log").read_text()[-4000:]
    if (path := work / f"{name}.json").exists():
        row |= json.loads(path.read_text())
if (path := work / "tests.xml").exists():
    results["tests"] |= dict(next(xml.parse(path).iter("testsuite")).items())
if (path := work / "run" / "eval" / "prediction.json").exists():
    results["evaluation"] |= json.loads(path.read_text())
pathlib.Path(out).write_text(json.dumps(results, indent=1) + "\n")
bad = [name for name, row in results.items() if isinstance(row, dict) and row.get("exit code")]
print(f"{out}: {', '.join(bad) or 'nothing'} failed")
sys.exit(bool(bad))
END
