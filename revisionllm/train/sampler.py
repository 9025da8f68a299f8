"""Which samples make a batch: exactly so many questions, in an order that ranks do not change.

An epoch's plans are shuffled by (seed, epoch) and their questions cut into optimizer steps, steps
into micro-batches. A window whose questions do not fit is split: its features are then read twice.
Step t holds the same questions for 1x8, 2x4 or accumulated batches. What alternates (the adapter's
output) changes with the step, here and nowhere else, so that all ranks agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from revisionllm.train.dataset import SEED_ORDER, GroundingDataset, Plans
from revisionllm.train.samples import SamplePlan


class QuestionBatchSampler:
    """A batch sampler: yields lists of plans with `questions_per_batch` questions in all.

    The last step of an epoch is filled up from the epoch's own start.

    Args:
        dataset: plans and the seed.
        questions_per_batch: on one device, in one forward pass.
        rank, world_size: which of how many processes this is.
        batches_per_step: micro-batches of an optimizer step (gradient accumulation).
    """

    def __init__(
        self,
        dataset: GroundingDataset,
        *,
        questions_per_batch: int,
        rank: int = 0,
        world_size: int = 1,
        batches_per_step: int = 1,
    ) -> None:
        if not (questions_per_batch >= 1 and batches_per_step >= 1 and 0 <= rank < world_size):
            raise ValueError(
                f"need 0 <= rank < world_size and positive sizes, got {rank=}, {world_size=},"
                f" {questions_per_batch=}, {batches_per_step=}"
            )
        self.dataset = dataset
        self.questions_per_batch = questions_per_batch
        self.rank, self.world_size = rank, world_size
        self.batches_per_step = batches_per_step
        self.set_epoch(0)

    @property
    def questions_per_step(self) -> int:
        """Questions of an optimizer step on all devices: the global batch size."""
        return self.questions_per_batch * self.world_size * self.batches_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; of an alternate stage as many of each kind as its own rows need."""
        outputs = self.dataset.spec.outputs
        own = self.dataset.num_questions(outputs[0])
        return math.ceil(own / self.questions_per_step) * len(outputs)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batches_per_step

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Where the next iteration starts; batches before `first_batch` are left out."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[SamplePlan]]:
        outputs = self.dataset.spec.outputs
        rings = [self._shuffled(output) for output in outputs]
        for batch in range(self.first_batch, len(self)):
            step, part = divmod(batch, self.batches_per_step)
            piece = part * self.world_size + self.rank
            of_mode = step // len(outputs)
            first = of_mode * self.questions_per_step + piece * self.questions_per_batch
            yield rings[step % len(outputs)].cut(first, self.questions_per_batch)

    def _shuffled(self, output: str) -> Ring:
        plans = self.dataset.plans(self.epoch, output)
        seed = [SEED_ORDER, self.dataset.seed, self.epoch]
        return Ring(plans, np.random.default_rng(seed).permutation(len(plans)))


class Ring:
    """Plans in an order, seen as one long ring of questions."""

    def __init__(self, plans: Plans, order: np.ndarray) -> None:
        self.plans, self.order = plans, order
        self.ends = np.cumsum(plans.sizes[order])

    def cut(self, first: int, count: int) -> list[SamplePlan]:
        """Questions first..first+count-1, as plans; those of a window stay together."""
        cut: list[SamplePlan] = []
        while count:
            at = first % int(self.ends[-1])
            number = int(np.searchsorted(self.ends, at, side="right"))
            plan = self.plans[int(self.order[number])]
            offset = at - int(self.ends[number]) + len(plan.targets)
            targets = plan.targets[offset : offset + count]
            cut.append(
                plan if len(targets) == len(plan.targets) else replace(plan, targets=targets)
            )
            first, count = first + len(targets), count - len(targets)
        return cut
