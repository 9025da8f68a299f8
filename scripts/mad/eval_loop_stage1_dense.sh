#!/bin/sh
# MAD, stage 1: every dense window (125 s, 250 frames) of every test film about every query.
# One process per GPU; run again to resume. Extra flags go to predict_windows.py; DRY_RUN=1 prints.
. "$(dirname -- "$0")/../common.sh"
help_of revisionllm/eval/predict_windows.py "$@"
use_environment run
cd "$ROOT"
run "$PY" revisionllm/eval/predict_windows.py --checkpoint checkpoints/mad_stage1_dense \
    --data_path data/mad/MAD_test.json --features data/mad/CLIP_L14_frames_features_5fps \
    --text_features data/mad/clip_L14_text_features "$@"
