#!/bin/sh
# Stage 1, sparse, on MAD: say from one token per window of 125 s whether the event is in it.
# Trains a new CLIP adapter; the LLM and the dense LoRA are frozen. 1 epoch, 256 questions per step.
# Reads checkpoints/mad_stage1_dense, writes checkpoints/mad_stage1_sparse; the same command resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/mad/mad_stage2_fixed_prompt.json
need features data/mad/CLIP_L14_frames_features_5fps
need text_features data/mad/clip_L14_text_features
need init_lora checkpoints/mad_stage1_dense
need deepspeed scripts/zero2.json
launch_train --dataset mad --stage sparse "$@"
