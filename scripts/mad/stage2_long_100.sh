#!/bin/sh
# Stage 2 on MAD: find the event among 100 segments of 125 s of a film, one token each.
# Trains the dense LoRA on; the sparse adapter is frozen and kept with the run. 2 epochs, 128 questions
# per step. Reads checkpoints/mad_stage1_{dense,sparse}, writes checkpoints/mad_stage2_long_100; resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/mad/mad_stage2_fixed_prompt.json
need features data/mad/CLIP_L14_frames_features_5fps
need text_features data/mad/clip_L14_text_features
need init_lora checkpoints/mad_stage1_dense
need init_adapter checkpoints/mad_stage1_sparse
need deepspeed scripts/zero2.json
launch_train --dataset mad --stage long --num_segments 100 "$@"
