#!/bin/sh
# The linter, then the tests: all of them on all cores, or what the arguments, which go to pytest, name, for
# example: sh scripts/test.sh tests/eval -k iou
. "$(dirname -- "$0")/common.sh"
help_of "-m pytest" "$@"
use_environment test
cd "$ROOT"
(run "$PY" -m ruff check .)
if [ $# -eq 0 ]; then
    set -- -n "$OMP_NUM_THREADS" --dist worksteal
    export OMP_NUM_THREADS=1
fi
run "$PY" -m pytest "$@"
