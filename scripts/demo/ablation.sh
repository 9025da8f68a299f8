#!/bin/sh
# What each part of the method is worth, on demo films that no training saw: tables and plots in out/ablation.
# Arguments go to revisionllm/demo/ablation.py.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/demo/ablation.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/ablation.py "$@"
