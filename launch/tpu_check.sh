#!/usr/bin/env bash
# Runs the checks of gpu_check.sh on a TPU VM and writes benchmarks/results/DEVICE.json:
#   bash launch/tpu_check.sh [--out FILE] [--python PYTHON] [--small] [--dry-run]
# Attention is measured with each block size of the kernel; set predictor.block of the config to the
# fastest one. The tests run in one process, since only one process can use a TPU. The encoder is not
# compared with PyTorch's. The TPU VM must be a single host with all chips of its slice, such as
# v5litepod-8 or v6e-8; on one host of a larger slice, JAX would wait for the others. To run the
# checks from another machine, with the results at the end of the output:
#   bash launch/tpu_pod.sh run check --type v5litepod-8 -- bash launch/tpu_check.sh --out /dev/stdout
set -euo pipefail
export LAWM_UV=1 # a TPU VM's own Python is too old
export LAWM_EXTRAS=${LAWM_EXTRAS:-test,tpu} JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} LAWM_WORKERS=0
exec bash "$(dirname "${BASH_SOURCE[0]}")/gpu_check.sh" "$@"
