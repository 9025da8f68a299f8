#!/bin/sh
# The table of the README: the grounder, CLIP retrieval and chance on held-out films of an hour.
# Reads checkpoints/demo/. Arguments go to revisionllm/demo/benchmark.py.
. "$(dirname -- "$0")/../common.sh"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/benchmark.py "$@"
