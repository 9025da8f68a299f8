#!/bin/sh
# All four training stages on the demo world, by the entry point that trains on MAD and VidChapters.
#
#   sh scripts/demo/train_all.sh           from checkpoints/demo/dense, 30 films of an hour
#   sh scripts/demo/train_all.sh --quick   from a tiny random LLaMA, 3 short films, two processes on the
#                                          CPU, a few steps each: a smoke test of minutes
#
# Writes out/train_demo or out/train_demo_quick; the same command resumes. Other flags go to every
# stage (revisionllm/train/train.py --help); DRY_RUN=1 only prints the commands.
. "$(dirname -- "$0")/../common.sh"
folder=out/train_demo
if [ "${1:-}" = --quick ]; then
    shift
    folder=out/train_demo_quick
    : "${NUM_GPUS:=2}"
fi
data=$folder/data

stage() { # $1: name in $folder, then flags; a subshell, because launch_train becomes the training
    name=$1
    shift
    (launch_train --dataset demo --output_dir "$folder/$name" "$@")
}

use_environment train
cd "$ROOT"
set -- --data_path $data/annotations.json --features $data/features "$@"
set -- --text_features $data/text_features "$@"
start=checkpoints/demo/dense
if [ $folder = out/train_demo ]; then
    (run "$PY" revisionllm/demo/training_files.py --out $data)
else
    start=$data/start
    (run "$PY" revisionllm/demo/training_files.py --out $data --films 3 --minutes 6 --sentences 20 --tiny_base)
    set -- --device cpu --max_steps 20 --learning_rate 1e-2 --warmup_ratio 0 --logging_steps 1 "$@"
    set -- --global_batch_size 16 --per_device_batch_size 8 --frames_per_window 50 --num_workers 0 "$@"
    set -- --save_steps 10 "$@"
fi
dense=$folder/stage1_dense
sparse=$folder/stage1_sparse
stage stage1_dense --stage dense --init_lora "$start" "$@"
stage stage1_sparse --stage sparse --init_lora $dense "$@"
stage stage2_long_33 --stage long --num_segments 33 --init_lora $dense --init_adapter $sparse "$@"
stage stage2_long_100 --stage long --num_segments 100 --init_lora $dense --init_adapter $sparse "$@"
