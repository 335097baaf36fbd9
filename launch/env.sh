# shellcheck shell=bash
# Sourced by the other scripts: enters the environment, and installs lawm_jax where it is missing.
#   LAWM_VENV    the environment's folder; default .venv in the repository's root
#   LAWM_EXTRAS  what to install beside the package, such as cuda or test,sim,torch; default nothing
#   LAWM_UV      1 fetches Python 3.12 by uv where python3 is too old, as on the machines of TPUs.
# An environment that is there already, and was made for the same requirements, is used as it is.

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
        echo "launch: expected python3 of version 3.11 or newer on the PATH, got ${python:-none}" >&2
        exit 1
    fi
    echo "making the environment $LAWM_VENV"
    "$python" -m venv "$LAWM_VENV"
fi
wanted="${LAWM_EXTRAS:-package} $(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum)"
if ! grep -qsxF "$wanted" "$LAWM_VENV/.lawm_jax"; then # a line for each choice of extras
    echo "installing lawm_jax${LAWM_EXTRAS:+[$LAWM_EXTRAS]}"
    "$LAWM_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "${ROOT}${LAWM_EXTRAS:+[$LAWM_EXTRAS]}"
    echo "$wanted" >>"$LAWM_VENV/.lawm_jax"
fi
PATH=$LAWM_VENV/bin:$PATH
# Compiled programs are kept between commands: starting again takes seconds.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$LAWM_VENV/cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
