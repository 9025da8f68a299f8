# Sourced by every script here. POSIX sh: `sh` is dash on Debian and Ubuntu.
#
#   use_environment run|test   make, install or reuse the environment; sets PY
#   run COMMAND...             become the command; DRY_RUN=1 prints it instead
#
# The environment is the active virtual environment if there is one, otherwise .venv in the repository.
# PYTHON=/path/to/python chooses the Python that .venv is made with.

set -eu
export TOKENIZERS_PARALLELISM=false # tokenizers warn when a process forks after using them

# The repository: the nearest folder above the script that holds setup.py.
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
while [ ! -f "$ROOT/setup.py" ] && [ "$ROOT" != / ]; do ROOT=$(dirname -- "$ROOT"); done

# More threads than cores slow small models down, and so do more than 8.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    [ "$OMP_NUM_THREADS" -le 8 ] || OMP_NUM_THREADS=8
    export OMP_NUM_THREADS
fi

fail() {
    echo "$(basename -- "$0"): error: $1" >&2
    exit 2
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() { # prints a Python >= 3.10 that can make a virtual environment
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python3.10 python
    fi
    for python in "$@"; do
        if is_new_enough "$python" && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.10 or newer that can make a virtual environment among: $*;\
 install one (Debian, Ubuntu: apt install python3-venv) or name it with PYTHON=/path/to/python"
}

use_environment() { # $1: run, or test for what the tests need as well
    PY=python
    [ "${DRY_RUN:-0}" != 1 ] || return 0
    environment=$ROOT/.venv
    if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
        environment=$VIRTUAL_ENV
    elif [ ! -x "$environment/bin/python" ]; then
        python=$(find_python)
        echo "making $environment with $("$python" --version)" >&2
        "$python" -m venv "$environment" || fail "could not make $environment; see above"
    fi
    PY=$environment/bin/python
    is_new_enough "$PY" || fail "$environment holds $("$PY" --version 2>&1), not Python 3.10 or newer;\
 leave it (deactivate) or remove it, then run this again"
    # the stamp of the last installation lets the next run start at once
    stamp=$environment/revisionllm-$1.stamp
    wanted=$(installation "$1")
    if [ ! -x "$environment/bin/revisionllm" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        install "$1" || fail "could not install everything; see above, then run this again"
        installation run >"$environment/revisionllm-run.stamp"
        echo "$wanted" >"$stamp"
    fi
}

installation() { # prints what an installation depends on: place, Python, requirements
    "$PY" -c 'import sys; print(*sys.version_info[:3])'
    (cd "$ROOT" && pwd && cat setup.py pyproject.toml requirements.txt | cksum)
    [ "$1" = run ] || cksum <"$ROOT/requirements-dev.txt"
}

install() (
    cd "$ROOT"
    echo "installing into $environment; the first time takes a few minutes" >&2
    "$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip >&2 || return
    set -- "$1" "$PY" -m pip install --disable-pip-version-check
    kind=$1
    shift
    if [ "$kind" = run ]; then
        "$@" -e . >&2
    else # lmms-eval: its own code is enough for our tests, without its hundred dependencies
        "$@" -e . -r requirements-dev.txt >&2 && "$@" --no-deps lmms-eval==0.7.3 >&2
    fi
)

run() {
    if [ "${DRY_RUN:-0}" = 1 ]; then
        echo "$*"
    else
        exec "$@"
    fi
}
