#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [pytest arguments]
# LAWM_EXTRAS=test,sim,torch,docs also installs the simulators, PyTorch and MkDocs, without which some
# tests skip.
set -euo pipefail
export LAWM_EXTRAS=${LAWM_EXTRAS:-test}
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
ruff check .
# Distributes the files over two processes in order, so that the longest do not run last.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
