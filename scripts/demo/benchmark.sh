#!/bin/sh
# The README's table: the grounder, CLIP retrieval and chance on films of an hour that no training saw.
# Reads checkpoints/demo, renders its films first. Arguments go to revisionllm/demo/benchmark.py.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/demo/benchmark.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/benchmark.py "$@"
