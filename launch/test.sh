#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [pytest arguments]
# LAWM_EXTRAS=test,sim,torch installs the simulators and PyTorch, too; by default the tests that need
# them are skipped.
set -euo pipefail
export LAWM_EXTRAS=${LAWM_EXTRAS:-test}
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
ruff check .
# Each file runs in one of two processes, in their order: the longest are not the last then.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
