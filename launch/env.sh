# shellcheck shell=bash
# Sourced by the other scripts: activates the virtual environment and installs lawm_jax if missing.
#   LAWM_VENV    folder of the environment; default .venv in the repository's root
#   LAWM_EXTRAS  extras to install, such as cuda or test,sim,torch; default none
#   LAWM_UV      1: install Python 3.12 with uv if python3 is too old, as on TPU VMs
# An existing environment with the same requirements is reused unchanged.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LAWM_VENV=${LAWM_VENV:-$ROOT/.venv}
LAWM_EXTRAS=${LAWM_EXTRAS:-}

if [ ! -x "$LAWM_VENV/bin/python" ]; then
    python=$(command -v python3 || true) recent='import sys; sys.exit(sys.version_info < (3, 11))'
    if [ -n "${LAWM_UV:-}" ] && ! "$python" -c "$recent"; then
        "$python" -m pip install --quiet --user uv
        "$python" -m uv python install --quiet 3.12
        python=$("$python" -m uv python find 3.12)
    fi
    if ! "${python:-false}" -c "$recent"; then
        found=${python:+$("$python" --version 2>&1), $python}
        echo "launch: expected python3 on the PATH to be Python 3.11 or newer, got ${found:-none};" \
            "with LAWM_UV=1, uv installs Python 3.12 beside it" >&2
        exit 1
    fi
    echo "creating the virtual environment $LAWM_VENV"
    "$python" -m venv "$LAWM_VENV"
fi
wanted="${LAWM_EXTRAS:-package} $(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum)"
if ! grep -qsxF "$wanted" "$LAWM_VENV/.lawm_jax"; then # one line per set of extras
    echo "installing lawm_jax${LAWM_EXTRAS:+[$LAWM_EXTRAS]}"
    "$LAWM_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "${ROOT}${LAWM_EXTRAS:+[$LAWM_EXTRAS]}"
    echo "$wanted" >>"$LAWM_VENV/.lawm_jax"
fi
PATH=$LAWM_VENV/bin:$PATH
# Caches compiled programs between commands, so that a restart takes seconds.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$LAWM_VENV/cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
