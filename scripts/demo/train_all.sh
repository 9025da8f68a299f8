#!/bin/sh
# The whole curriculum on the demo world, from nothing: CLIP, base LLM, a start for the CLIP adapter, the four
# stages by the entry point that trains on MAD and VidChapters, calibration, evaluation and a report.
#
#   sh scripts/demo/train_all.sh           hours on two CPU cores (docs/ablation.md, From nothing), and on a GPU if
#                                          there is one; sizes in scripts/demo/sizes.conf
#   sh scripts/demo/train_all.sh --quick   all of it at toy size, in minutes, on two processes: a smoke test
#
# Writes out/train_demo or out/train_demo_quick (OUT=folder for another one). Kill it at any time: the same
# command goes on where it was. SKIP="clip ..." leaves steps out. Further flags go to the four stages
# (revisionllm/train/train.py --help). DRY_RUN=1 only prints the commands.
. "$(dirname -- "$0")/../common.sh"
size=full
if [ "${1:-}" = --quick ]; then
    shift
    size=quick
    : "${NUM_GPUS:=2}"
fi
help_of revisionllm/train/train.py "$@"
. "$ROOT/scripts/demo/sizes.conf"
if [ $size = quick ]; then folder=${OUT:-out/train_demo_quick}; else folder=${OUT:-out/train_demo}; fi
use_environment train
cd "$ROOT"

step() { # $1: name, then the command; once it has worked it is not run again
    name=$1
    shift
    case " ${SKIP:-} " in *" $name "*) return 0 ;; esac
    if [ -e "$folder/done/$name" ]; then
        echo "$name: done" >&2
        return 0
    fi
    began=$(date +%s)
    ("$@") # a subshell: what it calls becomes the command
    [ "${DRY_RUN:-0}" != 1 ] || return 0
    mkdir -p "$folder/done"
    echo $(($(date +%s) - began)) >"$folder/done/$name"
}

demo() { # $1: a program of revisionllm/demo, then its flags
    program=$1
    shift
    run "$PY" "revisionllm/demo/$program.py" "$@"
}

stage() { # $1: name in $folder, then flags
    name=$1
    shift
    # shellcheck disable=SC2086 # lists of flags
    launch_train --dataset demo --output_dir "$folder/$name" \
        --data_path "$folder/data/annotations.json" --features "$folder/data/features" \
        --text_features "$folder/data/text_features" --clip "$folder/clip" $every_stage "$@"
}

# shellcheck disable=SC2086 # lists of flags, here and below
step clip demo train_clip --out "$folder/clip" $clip
step base demo train_dense --out "$folder" --clip "$folder/clip" --cache "$folder/features" $base
step data demo training_files --out "$folder/data" --clip "$folder/clip" --cache "$folder/features" $data
step stage1_dense stage stage1_dense --stage dense --init_lora "$folder/dense" "$@"
step segments demo train_segments --run "$folder/stage1_dense" --out "$folder/segments" \
    --cache "$folder/features" $segments
step stage1_sparse stage stage1_sparse --stage sparse --init_lora "$folder/stage1_dense" \
    --init_adapter "$folder/segments" $coarse $sparse "$@"
for segments in 33 100; do
    step stage2_long_$segments stage stage2_long_$segments --stage long --num_segments $segments \
        --init_lora "$folder/stage1_dense" --init_adapter "$folder/stage1_sparse" $coarse $long "$@"
done
step judged demo benchmark --checkpoint "$folder/stage1_dense" --out "$folder/judged" --fit_calibration \
    --long "$folder/stage2_long_100" "$folder/stage2_long_33" $judge
step tables demo ablation --checkpoint "$folder/stage1_dense" --out "$folder/tables" \
    --cache "$folder/table_features" --answers "$folder/table_answers" \
    --long "$folder/stage2_long_100" "$folder/stage2_long_33" $tables
step report demo curriculum_report --folder "$folder"
