#!/bin/sh
# Stage 1, dense, on VidChapters-7M: find the chapter inside one window of 500 s (250 frames).
# Trains the LoRA of mad dense on; videos shorter than two windows are read at double rate.
# 1 epoch, 256 questions per step. Writes checkpoints/chapters_stage1_dense; the same command resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/chapters/chapters_train_partial_3.json
need features data/chapters/chapters_clipl14_features
need init_lora checkpoints/mad_stage1_dense
need deepspeed scripts/zero2.json
launch_train --dataset chapters --stage dense "$@"
