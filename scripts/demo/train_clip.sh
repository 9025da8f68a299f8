#!/bin/sh
# The demo's CLIP, trained on rendered frames and captions.
# Writes checkpoints/demo/clip. Arguments go to revisionllm/demo/train_clip.py.
. "$(dirname -- "$0")/../common.sh"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/train_clip.py "$@"
