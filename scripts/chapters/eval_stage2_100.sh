#!/bin/sh
# VidChapters, stage 2: which of 100 segments (500 s) hold the query, at zooms 4, 2 and 1.
# --grounding_path checkpoints/chapters_stage1_dense asks only around that stage's answers.
# One process per GPU; run again to resume. Extra flags go to predict_segments.py; DRY_RUN=1 prints.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/eval/predict_segments.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/eval/predict_segments.py --checkpoint checkpoints/chapters_stage2_long_100 \
    --num_segments 100 --data_path data/chapters/chapters_test.json \
    --features data/chapters/chapters_clipl14_features \
    --text_features data/chapters/chapters_clip_L14_text_features "$@"
