#!/bin/sh
# Stage 2 on VidChapters-7M: find the chapter among 100 segments of 500 s; films over 2500 s only.
# Trains the LoRA of chapters dense on, and a layer norm: the frozen sparse adapter gives one token per
# segment in even steps, all frames of one window in odd ones. 1 epoch, 128 questions per step.
# Reads checkpoints/chapters_stage1_{dense,sparse}, writes checkpoints/chapters_stage2_long_100; resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/chapters/chapters_train_partial_3.json
need features data/chapters/chapters_clipl14_features
need text_features data/chapters/chapters_clip_L14_text_features_train
need init_lora checkpoints/chapters_stage1_dense
need init_adapter checkpoints/chapters_stage1_sparse
need deepspeed scripts/zero2.json
launch_train --dataset chapters --stage long --num_segments 100 "$@"
