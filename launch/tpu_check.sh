#!/usr/bin/env bash
# Runs the checks of gpu_check.sh on a TPU VM and writes benchmarks/results/DEVICE.json:
#   bash launch/tpu_check.sh [--out FILE] [--python PYTHON] [--small] [--dry-run]
# Attention is measured with each block size of the kernel; the fastest is for the config's
# predictor.block. The tests run in one process, which is all that a TPU has room for.
set -euo pipefail
export LAWM_EXTRAS=${LAWM_EXTRAS:-test,tpu} JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} LAWM_WORKERS=0
exec bash "$(dirname "${BASH_SOURCE[0]}")/gpu_check.sh" "$@"
