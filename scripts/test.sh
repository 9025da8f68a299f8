#!/bin/sh
# The linter, then the tests. Arguments go to pytest, for example: sh scripts/test.sh tests/eval -k iou
. "$(dirname -- "$0")/common.sh"
help_of "-m pytest" "$@"
use_environment test
cd "$ROOT"
(run "$PY" -m ruff check .)
run "$PY" -m pytest "$@"
