#!/bin/sh
# The demo's LLM and frame adapter, taught dense grounding on windows of rendered films: about two hours on
# one core (checkpoints/demo/README.md). Reads checkpoints/demo/clip, which train_clip.sh writes; writes
# checkpoints/demo/base and dense, and continues when it was killed.
# Arguments go to revisionllm/demo/train_dense.py.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/demo/train_dense.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/train_dense.py --films 108 --windows 6 --questions 16 --steps 6000 \
    --caption_steps 700 "$@"
