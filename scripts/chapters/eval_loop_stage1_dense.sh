#!/bin/sh
# VidChapters, stage 1: every dense window (500 s, 250 frames) of every test video.
# One process per GPU; run again to resume. Extra flags go to predict_windows.py; DRY_RUN=1 prints.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/eval/predict_windows.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/eval/predict_windows.py --checkpoint checkpoints/chapters_stage1_dense \
    --data_path data/chapters/chapters_test.json --features data/chapters/chapters_clipl14_features \
    --text_features data/chapters/chapters_clip_L14_text_features "$@"
