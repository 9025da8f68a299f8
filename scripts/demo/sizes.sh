# Sizes of scripts/demo/train_all.sh: flags of each step's command. Sourced with $size set.
case $size in
full) # about three hours on two CPU cores: half an hour for clip, two for base
    clip="--steps 1500"
    base="--films 64 --steps 6000 --windows 6 --questions 16 --caption_steps 700"
    data="--films 30 --minutes 60 --sentences 60"
    every_stage=
    sparse="--max_steps 600"
    long="--max_steps 20 --dtype bfloat16" # a question over 100 segments takes seconds on a CPU
    judge="--films 6 --val_films 6 --minutes 60"
    tables="--tables ingredients order confidence errors --films 6 --val_films 6"
    ;;
quick) # minutes: everything runs and hands over, nothing is learned well
    clip="--steps 12 --closeup_steps 40 --films 3 --closeup_shots 40 --test_shots 20 --batch_size 64"
    base="--films 2 --val_films 1 --film_minutes 6 --steps 120 --caption_steps 0 --warmup 10 --save_every 60"
    data="--films 2 --minutes 6 --sentences 20"
    every_stage="--device cpu --max_steps 12 --learning_rate 2e-3 --warmup_ratio 0 --logging_steps 1
        --global_batch_size 16 --per_device_batch_size 8 --num_workers 0 --save_steps 6"
    sparse="--adapter_ffn_dim 256"
    long=
    judge="--films 1 --val_films 1 --minutes 6 --present 3 --absent 2"
    tables="--tables ingredients confidence --films 1 --val_films 1 --minutes 6 --present 3 --absent 2"
    ;;
esac
