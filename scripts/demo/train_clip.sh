#!/bin/sh
# The demo's CLIP, trained from nothing on rendered frames and captions: about 35 minutes on 2 cores; resumes.
# Writes checkpoints/demo/clip. Arguments go to revisionllm/demo/train_clip.py.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/demo/train_clip.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/demo/train_clip.py --steps 1500 "$@"
