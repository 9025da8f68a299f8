#!/bin/sh
# MAD, stage 2: which of 33 segments (125 s, every 25 s) hold the query, at zooms 4, 2 and 1.
# One process per GPU; run again to resume. Extra flags go to predict_segments.py; DRY_RUN=1 prints.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/eval/predict_segments.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/eval/predict_segments.py --checkpoint checkpoints/mad_stage2_long_33 \
    --num_segments 33 --data_path data/mad/MAD_test.json \
    --features data/mad/CLIP_L14_frames_features_5fps \
    --text_features data/mad/clip_L14_text_features "$@"
