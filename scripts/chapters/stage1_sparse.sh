#!/bin/sh
# Stage 1, sparse, on VidChapters-7M: say from one token per window of 50 s whether the chapter is in it.
# Trains a new CLIP adapter; the LLM and the LoRA of mad dense are frozen. 1 epoch, 512 questions per
# step. Writes checkpoints/chapters_stage1_sparse; the same command resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/chapters/chapters_train_partial_3.json
need features data/chapters/chapters_clipl14_features
need text_features data/chapters/chapters_clip_L14_text_features_train
need init_lora checkpoints/mad_stage1_dense
need deepspeed scripts/zero2.json
launch_train --dataset chapters --stage sparse "$@"
