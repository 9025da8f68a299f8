"""The training loop: Hugging Face's Trainer, with our batches, loss, checkpoints and log.

The Trainer brings DeepSpeed, mixed precision, clipping and the schedule. Ours:
- batches come from `QuestionBatchSampler`, already cut per rank; the whole run is one pass over
  them, and a resumed run starts at the batch where the checkpoint was made;
- a step's loss is the mean over its questions (`losses.py`);
- a checkpoint holds what is trained, optimizer, schedule, random state and step; frozen weights are
  not in it (`checkpoints.py` says when it is complete).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from revisionllm.errors import UserError
from revisionllm.model.base import compute_rotary_tables
from revisionllm.train import checkpoints
from revisionllm.train.arguments import NO_DEEPSPEED, OPTIMIZERS, SCHEDULES, TrainArguments
from revisionllm.train.checkpoints import WEIGHTS, Checkpoint
from revisionllm.train.losses import QuestionLosses, num_tokens
from revisionllm.train.sampler import QuestionBatchSampler


class WholeRun:
    """All batches of a run on this rank: epoch after epoch, from the resumed step to the last.

    Args:
        sampler: one epoch's batches.
        total_steps: optimizer steps of the run.
        first_step: steps done before.
    """

    def __init__(
        self, sampler: QuestionBatchSampler, total_steps: int, *, first_step: int = 0
    ) -> None:
        self.sampler = sampler
        self.total_steps = total_steps
        self.first_step = first_step

    def __len__(self) -> int:
        """Of an uninterrupted run."""
        return self.total_steps * self.sampler.batches_per_step

    def __iter__(self) -> Iterator[list]:
        first = self.first_step * self.sampler.batches_per_step
        while first < len(self):
            epoch, first_batch = divmod(first, len(self.sampler))
            self.sampler.set_epoch(epoch, first_batch)
            for plans in self.sampler:
                if first == len(self):
                    return
                first += 1
                yield plans


def total_steps(args: TrainArguments, sampler: QuestionBatchSampler) -> int:
    """Optimizer steps of the run."""
    return args.max_steps or math.ceil(args.epochs * sampler.steps_per_epoch)


def trainer_arguments(
    args: TrainArguments, *, dtype: str, accumulation: int, steps: int
) -> TrainingArguments:
    """What Hugging Face's Trainer needs to know of ours."""
    return TrainingArguments(
        output_dir=args.output_dir,
        per_device_train_batch_size=args.per_device_batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",  # `GroundingTrainer.create_scheduler` makes it
        warmup_steps=math.ceil(args.warmup_ratio * steps),
        weight_decay=args.weight_decay,
        optim=OPTIMIZERS[args.optimizer],
        max_grad_norm=args.max_grad_norm,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=args.device == "cpu" or not torch.cuda.is_available(),
        deepspeed=None if args.deepspeed == NO_DEEPSPEED else args.deepspeed,
        save_strategy="steps",
        save_steps=args.save_steps,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        ignore_data_skip=True,
        seed=args.seed,
        report_to=args.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


class GroundingTrainer(Trainer):
    """See the module.

    Args:
        model: what is trained.
        args: from `trainer_arguments`.
        batches: of the whole run.
        collate: samples to a batch.
        num_workers: reading processes.
        facts: noted with every checkpoint and wanted again when resuming.
        schedule: of `arguments.SCHEDULES`.
    """

    def __init__(
        self,
        model: QuestionLosses,
        args: TrainingArguments,
        *,
        batches: WholeRun,
        collate: Any,
        num_workers: int,
        facts: dict[str, Any],
        schedule: str = "cosine",
    ) -> None:
        self.batches = batches
        self.collate = collate
        self.num_workers = num_workers
        self.facts = facts
        self.schedule = SCHEDULES[schedule]
        # since the last log line: sums of losses and questions, (not present, present) x 2; tokens
        self.seen: Tensor | None = None
        super().__init__(model=model, args=args)
        # losses are means over a micro-batch of equal size on every rank
        self.model_accepts_loss_kwargs = False
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                self.remove_callback(callback)

    def get_train_dataloader(self) -> DataLoader:
        """Our own batches: not sharded again, and without touching the global random state."""
        return DataLoader(
            self.batches.sampler.dataset,
            batch_sampler=self.batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        losses = model(**inputs)
        if not torch.isfinite(losses).all():
            raise not_finite(losses, inputs["query_ids"], self.state.global_step + 1)
        if len(losses) != self.args.per_device_train_batch_size:
            raise RuntimeError(
                f"{len(losses)} questions in a batch of {self.args.per_device_train_batch_size}"
            )
        self._note(losses.detach().double(), inputs)
        loss = losses.mean()
        return (loss, losses) if return_outputs else loss

    def _note(self, losses: Tensor, inputs: dict[str, Any]) -> None:
        """Add losses [Q] by kind of question, and the LLM's tokens, for the next log line."""
        present = inputs["present"]
        kinds = torch.stack([~present, present]).double()
        sums = torch.stack([kinds @ losses, kinds.sum(1)], 1).flatten()
        seen = torch.cat([sums, sums.new_tensor([num_tokens(inputs)])])
        self.seen = seen if self.seen is None else self.seen + seen

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Besides the loss: its means over questions of either kind, and the LLM's tokens, on all
        processes."""
        if "loss" in logs and self.seen is not None:
            *sums, tokens = self.accelerator.reduce(self.seen, "sum").tolist()
            self.seen = None
            for name, total, count in (("not_present", *sums[:2]), ("present", *sums[2:])):
                logs[f"loss_{name}"] = total / count if count else None
            logs["tokens"] = tokens
        super().log(logs, *args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Linear warm-up, then the schedule. No step has rate 0: the first and last learn, too."""
        warmup = self.args.get_warmup_steps(num_training_steps)

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            passed = (step - warmup) / max(1, num_training_steps - warmup)
            return self.schedule(min(1.0, passed))

        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def engine(self) -> Any:
        """The DeepSpeed engine, or None."""
        return self.model_wrapped if self.is_deepspeed_enabled else None

    def _save_checkpoint(self, model: Any, trial: Any, **_: Any) -> None:
        """Every process writes its part; the manifest comes last."""
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        if self.args.should_save:
            checkpoints.set_aside(folder)
            folder.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.engine is not None:
            self.engine.save_checkpoint(
                str(folder), tag=f"global_step{step}", exclude_frozen_parameters=True
            )
        elif self.args.should_save:
            save_file(self._trained(), folder / WEIGHTS)
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
            if self.accelerator.scaler is not None:  # float16 scales its losses
                torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        torch.save(random_state(), folder / f"random-{self.args.process_index}.pt")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.complete(folder, **self.facts)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; called once engine, optimizer and schedule exist."""
        folder = checkpoint.folder
        if self.engine is not None:
            self.engine.load_checkpoint(
                str(folder), tag=f"global_step{checkpoint.step}", load_module_strict=False
            )
        else:
            self._load_trained(load_file(folder / WEIGHTS))
            self.optimizer.load_state_dict(_load(folder / "optimizer.pt"))
            if self.accelerator.scaler is not None and (folder / "scaler.pt").is_file():
                self.accelerator.scaler.load_state_dict(_load(folder / "scaler.pt"))
        self.lr_scheduler.load_state_dict(_load(folder / "scheduler.pt"))
        random = folder / f"random-{self.args.process_index}.pt"
        if random.is_file():
            set_random_state(_load(random))
        else:  # of a device that the checkpoint's run did not have
            torch.manual_seed(self.args.seed * 1009 + self.args.process_index + checkpoint.step)
        self.state.global_step = checkpoint.step
        self._globalstep_last_logged = checkpoint.step

    def _trained(self) -> dict[str, Tensor]:
        """Trained parameters by name, of a model that is not sharded."""
        return {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def _load_trained(self, tensors: dict[str, Tensor]) -> None:
        wanted = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if wanted.keys() != tensors.keys():
            raise RuntimeError(f"other parameters: {sorted(wanted.keys() ^ tensors.keys())[:5]}")
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def not_finite(losses: Tensor, query_ids: list, step: int) -> UserError:
    """The error of a step with losses that are no numbers; to be raised."""
    flat = [i for row in query_ids for i in (row if isinstance(row, list) else [row])]
    bad = [i for i, fine in zip(flat, torch.isfinite(losses).tolist(), strict=True) if not fine]
    named = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
    return UserError(
        f"the loss of step {step} is not finite for queries {named}: too high a learning rate, or"
        " broken weights? The checkpoints before it are whole"
    )


class Resume(TrainerCallback):
    """Loads the checkpoint when everything is built, or seeds each process of a fresh run.

    Also has the first and the last step logged, whatever --logging_steps says.
    """

    def __init__(self, trainer: GroundingTrainer, checkpoint: Checkpoint | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # DeepSpeed before 0.19 casts them to the training's dtype with everything else
        compute_rotary_tables(self.trainer.model.model.llm)
        if self.checkpoint is not None:
            self.trainer.resume(self.checkpoint)
        else:  # dropout differs between processes
            torch.manual_seed(args.seed * 1009 + args.process_index)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (1, state.max_steps):
            control.should_log = True  # on every process: they add their losses up


def random_state() -> dict[str, Tensor]:
    """What dropout draws from, on this process's devices."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Back to `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
