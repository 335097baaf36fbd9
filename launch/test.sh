#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
ruff check .
exec python -m pytest -n 2 --dist loadfile "$@"  # files, each on one of two processes
