#!/bin/sh
# The demo's small LLaMA, taught dense grounding on windows of rendered films.
# Reads checkpoints/demo/clip (train_clip.sh), writes checkpoints/demo/{base,dense}, resumes when killed.
# Arguments go to revisionllm/demo/train_dense.py.
. "$(dirname -- "$0")/../common.sh"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/train_dense.py "$@"
