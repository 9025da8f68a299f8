"""Train one stage of the curriculum; started by the launchers in scripts/mad and scripts/chapters.

    sh scripts/mad/stage1_dense.sh
    python revisionllm/train/train.py --dataset mad --stage dense            # one process
    python revisionllm/train/train.py --help

Several devices: `python -m torch.distributed.run --nproc_per_node 8 revisionllm/train/train.py`.
The same command continues a run that was killed, from its newest complete checkpoint.
Paper: https://arxiv.org/abs/2411.14901, section 3.3.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.files import MADE_BY, is_same, json_digest, locked, read_json, write_json
from revisionllm.model.quantized import NF4
from revisionllm.train.arguments import (
    NO_DEEPSPEED,
    TrainArguments,
    accumulation,
    check,
    check_numbers,
    parse,
    wants_estimate,
)

log = logging.getLogger("revisionllm.train")

PER_DEVICE = "per_device_batch_size"
ARGS_NAME = "args.json"
LOCK_NAME = ".lock"
# may differ when a run is continued: they change nothing about what is learned
FREE_ARGUMENTS = {
    "num_workers",
    "save_steps",
    "logging_steps",
    "report_to",
    "val_data_path",
    "val_features",
    "val_text_features",
    "val_queries",
    "val_steps",
    "output_dir",
    "gradient_checkpointing",
    PER_DEVICE,  # a step holds the same questions; sums are rounded in another order
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code (2: bad arguments or data)."""

    def work() -> int:
        args = parse(argv)
        if wants_estimate(argv):
            from revisionllm.train.estimate import estimate

            check_numbers(args)
            print(estimate(args))
            return 0
        check(args, world_size())
        if args.base_dtype == NF4 and (is_sharded(args) or is_offloaded(args)):
            raise UserError(
                f"--base_dtype {NF4} with --deepspeed {args.deepspeed}: 4-bit weights are not"
                " spread over devices; take scripts/zero2.json or none"
            )
        if args.deepspeed != NO_DEEPSPEED:
            stand_alone()
        train(args)
        return 0

    return run_entry_point(work, "train", rank=rank())


def stand_alone() -> None:
    """Started without a launcher: say what a launcher would, which DeepSpeed asks MPI for."""
    if "WORLD_SIZE" in os.environ:
        return
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def world_size() -> int:
    """Processes of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", 0))


def train(args: TrainArguments) -> None:
    """Train, or continue, or find that there is nothing left to do; writes the run folder.

    Raises:
        UserError: data that cannot be used, or a run folder made with other arguments.
    """
    run = Path(args.output_dir)
    check_output(args, run)
    alone = locked(run / LOCK_NAME, f"trains in {run}") if rank() == 0 else nullcontext()
    with alone:
        train_alone(args, run)


def train_alone(args: TrainArguments, run: Path) -> None:
    """`train` in a run folder that no other command trains in."""
    from revisionllm.train import checkpoints
    from revisionllm.train.initial import lora_dropout
    from revisionllm.train.run_log import set_up_logging
    from revisionllm.train.trainer import total_steps

    set_up_logging(run, is_main=rank() == 0)
    dataset, sampler = training_data(args)
    args = replace(args, lora_dropout=lora_dropout(args))  # recorded as it is
    steps = total_steps(args, sampler)
    facts = {"total_steps": steps, "world_size": world_size(), "arguments": asdict(args)}
    facts["data"] = dataset.fingerprint()
    facts["start"] = starting_points(args)
    checkpoint = checkpoints.newest_complete(run)
    if checkpoint is not None:
        for line in check_same(checkpoint.facts, facts, run):
            log.info(line)
        if is_finished(run, checkpoint, steps):
            log.info("%s is trained already: %d steps; nothing to do", run, steps)
            return
        log.info("continuing from %s", checkpoint.folder)
    for line in dataset.report():
        log.info(line)
    looked_at = validation_data(args) if args.val_data_path else None
    trainer = build_trainer(args, sampler, looked_at, checkpoint, facts)
    if rank() == 0:
        write_json(run / ARGS_NAME, {"made_by": MADE_BY} | facts)
    trainer.train()
    save(trainer, run)
    log.info("wrote %s", run)


def check_output(args: TrainArguments, run: Path) -> None:
    """Refuse a run folder that holds something else, or that the run starts from.

    Raises:
        UserError: says which.
    """
    from revisionllm.model.config import CONFIG_NAME, is_run_folder

    for name in ("base", "init_projector", "init_lora", "init_adapter", "features"):
        source = getattr(args, name)
        if source and is_same(run, source):
            raise UserError(f"--output_dir {run} is also --{name}; write to another folder")
    if (run / CONFIG_NAME).exists() and not is_run_folder(run):
        raise UserError(f"--output_dir {run} holds another {CONFIG_NAME}; choose another folder")
    if run.exists() and not run.is_dir():
        raise UserError(f"--output_dir {run} is a file; choose another name")


def build_trainer(
    args: TrainArguments, sampler: Any, looked_at: Any, checkpoint: Any, facts: dict[str, Any]
) -> Any:
    """Model, batches, log and what resumes, put together."""
    from revisionllm.train.initial import (
        initial_model,
        known_clip,
        recompute_activations,
        training_dtype,
    )
    from revisionllm.train.losses import QuestionLosses
    from revisionllm.train.run_log import RunLog
    from revisionllm.train.trainer import GroundingTrainer, Resume, WholeRun, trainer_arguments

    prepare_device(args)
    dtype, steps = training_dtype(args), facts["total_steps"]
    model = initial_model(args, dtype=dtype, offload=is_offloaded(args))
    if args.gradient_checkpointing:
        recompute_activations(model)
    describe_run(args, model, steps, sampler)
    model.config.clip_fingerprint = known_clip(args) or sampler.dataset.clip_fingerprint()
    batches = WholeRun(sampler, steps, first_step=checkpoint.step if checkpoint else 0)
    trainer = GroundingTrainer(
        QuestionLosses(model),
        trainer_arguments(args, dtype=dtype, accumulation=sampler.batches_per_step, steps=steps),
        batches=batches,
        collate=collator(args, model),
        num_workers=args.num_workers,
        facts=facts,
        schedule=args.lr_schedule,
    )
    trainer.add_callback(Resume(trainer, checkpoint))
    run_log = None
    if rank() == 0:
        run_log = RunLog(
            Path(args.output_dir),
            first_step=batches.first_step,
            steps_per_epoch=sampler.steps_per_epoch,
            questions_per_step=args.global_batch_size,
            work=work_and_peak(args, model.device, dtype),
        )
        trainer.add_callback(run_log)
    if looked_at is not None:
        trainer.add_callback(validation(args, trainer, looked_at, run_log))
    return trainer


def work_and_peak(args: TrainArguments, device: Any, dtype: str) -> tuple[float, float] | None:
    """FLOPs of a token and the devices' peak per second; None where the peak is not known."""
    import torch

    from revisionllm.train.estimate import flops_per_token, peak_flops

    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None or dtype == "float32":
        return None
    return flops_per_token(args), peak * world_size()


def validation(args: TrainArguments, trainer: Any, looked_at: Any, run_log: Any) -> Any:
    """The callback that looks at validation data; says what it takes."""
    from revisionllm.train.validation import Validation, cost, is_searched

    model = trainer.model.model
    every = args.val_steps or args.save_steps
    searches = is_searched(model.config) and args.stage != "align"
    if searches and is_sharded(args):
        log.info("validation has no search: --deepspeed %s spreads the weights", args.deepspeed)
        searches = False
    kept = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    kept += (
        0
        if args.row.trains == "adapter"
        else sum(p.nbytes for p in model.projector.parameters() if not p.requires_grad)
    )
    told = cost(looked_at, model.config, every=every, searches=searches, kept=kept)
    log.info(told)
    return Validation(
        trainer,
        looked_at,
        every=every,
        collate=collator(args, model),
        searches=searches,
        keep=lambda folder: save(trainer, folder),
        run_log=run_log,
    )


def prepare_device(args: TrainArguments) -> None:
    """Seeds, so that new parts start alike on every process; TF32 where the GPU has it."""
    import torch

    torch.manual_seed(args.seed)
    if torch.cuda.is_available() and args.device != "cpu":
        torch.set_float32_matmul_precision("high")
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def training_data(args: TrainArguments) -> tuple[Any, Any]:
    """The stage's dataset and this process's batch sampler."""
    from revisionllm.train.sampler import QuestionBatchSampler

    dataset = checked_data(args, args.data_path, args.features, args.text_features, args.seed)
    sampler = QuestionBatchSampler(
        dataset,
        questions_per_batch=args.per_device_batch_size,
        rank=rank(),
        world_size=world_size(),
        batches_per_step=accumulation(args, world_size()),
    )
    return dataset, sampler


def validation_data(args: TrainArguments) -> Any:
    """The fixed part of the validation data, checked as training data is."""
    from revisionllm.train.validation import fixed_part

    return checked_data(
        args,
        args.val_data_path,
        args.val_features or args.features,
        args.val_text_features or args.text_features,
        choose=lambda found: fixed_part(found, args.val_queries),
    )


def checked_data(
    args: TrainArguments,
    annotations: Any,
    features: str,
    text_features: str | None,
    seed: int = 0,
    **choice: Any,
) -> Any:
    """A dataset of the stage, held against what the start reads; see `dataset.build_dataset`."""
    from revisionllm.train.dataset import build_dataset
    from revisionllm.train.initial import known_clip, starting_adapter

    adapter = starting_adapter(args)
    return build_dataset(
        sample_spec(args, reads_sentence=args.row.needs_text and adapter.reads_sentence),
        annotations=annotations,
        features=features,
        text_features=text_features,
        seed=seed,
        skip_bad=args.skip_bad,
        feature_dim=adapter.feature_dim,
        text_width=adapter.width_of_words,
        clip_fingerprint=known_clip(args),
        **choice,
    )


def sample_spec(args: TrainArguments, *, reads_sentence: bool) -> Any:
    """What the stage asks; see `samples.SampleSpec`."""
    from revisionllm.train.samples import SampleSpec

    return SampleSpec(
        stage=args.stage,
        question=args.question,
        window_s=args.window_s,
        frames_per_window=args.frames_per_window,
        feature_fps=args.feature_fps,
        adapter_output=args.row.adapter_output,
        needs_text=args.row.needs_text,
        reads_sentence=reads_sentence,
        time_mapping=args.time_mapping,
        negatives_per_positive=0 if args.stage == "align" else args.negatives_per_positive,
        questions_per_window=args.questions_per_window if args.is_packed else 1,
        double_rate_short=args.double_rate_short,
        min_duration_s=args.min_duration_s,
        num_segments=args.num_segments,
        segment_stride_s=args.segment_stride_s,
        segment_repeats=tuple(args.segment_repeats),
    )


def collator(args: TrainArguments, model: Any) -> Any:
    """Samples to batches, packed or one question per row."""
    from revisionllm.train.collator import PackedCollator, PlainCollator

    kind = PackedCollator if args.is_packed else PlainCollator
    return kind(model.tokenizer, model.config.prompt_template)


def zero_settings(args: TrainArguments) -> dict[str, Any]:
    """The part about ZeRO of the DeepSpeed config; {} without DeepSpeed."""
    if args.deepspeed == NO_DEEPSPEED:
        return {}
    return read_json(args.deepspeed, kind=dict).get("zero_optimization", {})


def is_offloaded(args: TrainArguments) -> bool:
    """Does the DeepSpeed config keep parameters in main memory?"""
    return "offload_param" in zero_settings(args)


def is_sharded(args: TrainArguments) -> bool:
    """Does the DeepSpeed config spread the weights themselves over the devices?"""
    return zero_settings(args).get("stage") == 3


def check_same(old: dict[str, Any], new: dict[str, Any], run: Path) -> list[str]:
    """A run is continued with the arguments and the data that it was started with.

    Returns:
        What differs and may: how a step is spread over devices. Its questions are the same; sums
        are rounded in another order.

    Raises:
        UserError: lists what differs and may not.
    """
    # an argument that the older run did not have yet had its default's effect
    before = json.loads(json.dumps(asdict(TrainArguments()))) | old["arguments"]
    now = json.loads(json.dumps(new["arguments"]))
    differ = [
        f"--{name} was {before.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name not in FREE_ARGUMENTS and before.get(name) != value
    ]
    if old["total_steps"] != new["total_steps"]:
        differ.append(f"total_steps was {old['total_steps']}, is {new['total_steps']}")
    changed = data_changes(old.get("data"), new.get("data", {}))
    if changed:
        raise UserError(
            f"{run} was started with other data: {changed}; put the old files back to continue it,"
            " or give another --output_dir"
        )
    retrained = data_changes(old.get("start"), new.get("start", {}))
    if retrained:
        raise UserError(
            f"{run} started from other weights: {retrained} changed since; train again into another"
            " --output_dir, or put the old weights back"
        )
    spread = [
        f"{name} was {was}, is {is_now}; a step holds the same questions, losses may differ in"
        " their last digits"
        for name, was, is_now in (
            ("the number of devices", old["world_size"], new["world_size"]),
            (f"--{PER_DEVICE}", before[PER_DEVICE], now[PER_DEVICE]),
        )
        if was != is_now
    ]
    if old["world_size"] != new["world_size"] and now["deepspeed"] != NO_DEEPSPEED:
        differ.append(
            f"the number of devices was {old['world_size']}, is {new['world_size']}, which"
            f" DeepSpeed's checkpoints do not allow (those of --deepspeed {NO_DEEPSPEED} do)"
        )
    if differ:
        raise UserError(
            f"{run} was started with other arguments: {'; '.join(differ)}; give the old ones to"
            " continue it, or another --output_dir"
        )
    return spread


def starting_points(args: TrainArguments) -> dict[str, str]:
    """Fingerprint of everything that the stage starts from, by flag."""
    from revisionllm.model.config import is_run_folder
    from revisionllm.model.fingerprints import base_stamp, run_fingerprint, weights_digest

    found = {}
    for name in ("init_projector", "init_lora", "init_adapter"):
        source = getattr(args, name)
        if source and is_run_folder(Path(source)):
            parts = run_fingerprint(source)
            parts.pop("calibration", None)  # of evaluation alone
            found[f"--{name}"] = json_digest(parts)
        elif source:
            found[f"--{name}"] = weights_digest(source)
    if args.base:
        found["--base"] = base_stamp(args.base)
    return found


def data_changes(old: dict[str, str] | None, new: dict[str, str]) -> str:
    """Which parts of the data are others than before; empty if none, or if none were noted."""
    return ", ".join(name for name in new if old and old.get(name, new[name]) != new[name])


def is_finished(run: Path, checkpoint: Any, steps: int) -> bool:
    """Was the run trained to its last step and written?"""
    from revisionllm.model.config import is_run_folder

    return checkpoint is not None and checkpoint.step >= steps and is_run_folder(run)


def describe_run(args: TrainArguments, model: Any, steps: int, sampler: Any) -> None:
    """What is trained and how much, before the first step."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    log.info("%s %s trains %s: %s", args.dataset, args.stage, args.row.trains, args.output_dir)
    log.info("parameters: %.2f M trained, %.2f M frozen", trained / 1e6, frozen / 1e6)
    log.info(
        "%d steps of %d questions: %d processes x %d questions x %d accumulated%s",
        *(steps, args.global_batch_size, world_size(), args.per_device_batch_size),
        *(sampler.batches_per_step, ", packed by window" if args.is_packed else ""),
    )


def save(trainer: Any, run: Path) -> None:
    """Write the run folder from the trained model, gathering what ZeRO-3 has spread."""
    from revisionllm.model.loading import save_run

    model, gathered = trainer.model.model, nullcontext()
    if trainer.engine is not None and trainer.engine.zero_optimization_partition_weights():
        import deepspeed

        # the LLM's own weights are not written and stay where they are
        kept = [
            p for n, p in model.named_parameters() if ".lora_" in n or n.startswith("projector")
        ]
        gathered = deepspeed.zero.GatheredParameters(kept)
    with gathered:
        if rank() == 0:
            save_run(model, run)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    raise SystemExit(main())
