#!/bin/sh
# Stage 1, dense, on MAD: find the event inside one window of 125 s (250 frames).
# Trains VTimeLLM's LoRA on, projector frozen; all questions about a window share one sequence.
# 5 epochs, 128 questions per step. Writes checkpoints/mad_stage1_dense; the same command resumes.
# Flags go to revisionllm/train/train.py, whose --help tells them; DRY_RUN=1 only prints the command.
. "$(dirname -- "$0")/../common.sh"
need data_path data/mad/mad_stage2_fixed_prompt.json
need features data/mad/CLIP_L14_frames_features_5fps
need base checkpoints/vicuna-7b-v1.5
need init_projector checkpoints/vtimellm-vicuna-v1-5-7b-stage1/mm_projector.bin
need init_lora checkpoints/vtimellm-vicuna-v1-5-7b-stage2
need deepspeed scripts/zero2.json
launch_train --dataset mad --stage dense "$@"
