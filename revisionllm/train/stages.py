"""The curriculum as a table: what each stage trains, starts from, looks at and asks.

A row is found by `--dataset` and `--stage`; its values are the defaults of `arguments.py`, so that
launchers name only what makes them different and the output of one stage is the input of the next.
Paper: https://arxiv.org/abs/2411.14901, section 3.3 and appendix.

Where the released recipe is plainly mistaken, the table says what we do instead:
- mad dense: 128 questions per step in all, as in the paper (the launcher had 128 per device).
- sparse: learning rate 1e-3, the paper's (the launcher had 1e-4); the paper's yes/no question.
- chapters dense continues mad dense (the path given to the released launcher was ignored).
- chapters sparse reads the features at the rate they have (the launcher said 5 per second).
- long loads the sparse adapter and keeps it with the run (the released recipe froze a random one).
- chapters long trains the layer norm of the alternating output and evaluates with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DATASETS = ("mad", "chapters", "demo")
STAGES = ("dense", "sparse", "long")
DEMO_FOLDER = "out/train_demo"


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        dataset: mad, chapters or demo.
        stage: dense, sparse or long.
        trains: `lora` (adapter frozen) or `adapter` (LoRA frozen).
        adapter_output: what the adapter gives the LLM per window: frames, segment (one token), or
            alternate: segment in even steps, frames in odd ones.
        defaults: argument -> value, over those of `arguments.py`.
    """

    dataset: str
    stage: str
    trains: str
    adapter_output: str
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_text(self) -> bool:
        """Does the adapter read the query's word features?"""
        return self.stage != "dense"

    @property
    def trains_output_norm(self) -> bool:
        """Alternating output has a layer norm of its own, which is new and therefore trained."""
        return self.adapter_output == "alternate"


MAD = {
    "data_path": ["data/mad/mad_stage2_fixed_prompt.json"],
    "features": "data/mad/CLIP_L14_frames_features_5fps",
    "text_features": "data/mad/clip_L14_text_features",
    "clip": "checkpoints/clip/ViT-L-14.pt",
    "window_s": 125.0,
    "frames_per_window": 250,
    "feature_fps": 5.0,
}
CHAPTERS = {
    "data_path": ["data/chapters/chapters_train_partial_3.json"],
    "features": "data/chapters/chapters_clipl14_features",
    "text_features": "data/chapters/chapters_clip_L14_text_features_train",
    "clip": "checkpoints/clip/ViT-L-14.pt",
    "window_s": 500.0,
    "frames_per_window": 250,
    "feature_fps": 2.0,
    "double_rate_short": True,
}
DEMO = {
    "data_path": [f"{DEMO_FOLDER}/data/annotations.json"],
    "features": f"{DEMO_FOLDER}/data/features",
    "text_features": f"{DEMO_FOLDER}/data/text_features",
    "clip": f"{DEMO_FOLDER}/clip",
    "window_s": 60.0,
    "frames_per_window": 100,
    "feature_fps": 5 / 3,  # every third frame of the films: 100 in a window
    "lora_rank": 16,
    "lora_alpha": 32,
    "gradient_checkpointing": False,
}

TABLE = (
    Stage(
        "mad",
        "dense",
        trains="lora",
        adapter_output="frames",
        defaults=MAD
        | {
            "base": "checkpoints/vicuna-7b-v1.5",
            "init_projector": "checkpoints/vtimellm-vicuna-v1-5-7b-stage1/mm_projector.bin",
            "init_lora": "checkpoints/vtimellm-vicuna-v1-5-7b-stage2",
            "lora_init": "continue",
            "output_dir": "checkpoints/mad_stage1_dense",
            "epochs": 5.0,
            "global_batch_size": 128,
            "per_device_batch_size": 16,
        },
    ),
    Stage(
        "mad",
        "sparse",
        trains="adapter",
        adapter_output="segment",
        defaults=MAD
        | {
            "init_lora": "checkpoints/mad_stage1_dense",
            "output_dir": "checkpoints/mad_stage1_sparse",
            "epochs": 1.0,
            "global_batch_size": 256,
            "per_device_batch_size": 32,
            "learning_rate": 1e-3,
        },
    ),
    Stage(
        "mad",
        "long",
        trains="lora",
        adapter_output="segment",
        defaults=MAD
        | {
            "init_lora": "checkpoints/mad_stage1_dense",
            "lora_init": "continue",
            "init_adapter": "checkpoints/mad_stage1_sparse",
            "output_dir": "checkpoints/mad_stage2_long_{num_segments}",
            "epochs": 2.0,
            "global_batch_size": 128,
            "per_device_batch_size": 8,
        },
    ),
    Stage(
        "chapters",
        "dense",
        trains="lora",
        adapter_output="frames",
        defaults=CHAPTERS
        | {
            "init_lora": "checkpoints/mad_stage1_dense",
            "lora_init": "continue",
            "output_dir": "checkpoints/chapters_stage1_dense",
            "epochs": 1.0,
            "global_batch_size": 256,
            "per_device_batch_size": 16,
        },
    ),
    Stage(
        "chapters",
        "sparse",
        trains="adapter",
        adapter_output="segment",
        defaults=CHAPTERS
        | {
            "init_lora": "checkpoints/mad_stage1_dense",
            "output_dir": "checkpoints/chapters_stage1_sparse",
            "window_s": 50.0,
            "frames_per_window": 100,
            "epochs": 1.0,
            "global_batch_size": 512,
            "per_device_batch_size": 32,
            "learning_rate": 1e-3,
        },
    ),
    Stage(
        "chapters",
        "long",
        trains="lora",
        adapter_output="alternate",
        defaults=CHAPTERS
        | {
            "init_lora": "checkpoints/chapters_stage1_dense",
            "lora_init": "continue",
            "init_adapter": "checkpoints/chapters_stage1_sparse",
            "output_dir": "checkpoints/chapters_stage2_long_{num_segments}",
            "min_duration_s": 2500.0,
            "epochs": 1.0,
            "global_batch_size": 128,
            "per_device_batch_size": 8,
        },
    ),
    Stage(
        "demo",
        "dense",
        trains="lora",
        adapter_output="frames",
        defaults=DEMO
        | {
            "init_lora": f"{DEMO_FOLDER}/dense",
            "lora_init": "new",
            "output_dir": f"{DEMO_FOLDER}/stage1_dense",
            "epochs": 1.0,
            "global_batch_size": 64,
            "per_device_batch_size": 32,
        },
    ),
    Stage(
        "demo",
        "sparse",
        trains="adapter",
        adapter_output="segment",
        defaults=DEMO
        | {
            "init_lora": f"{DEMO_FOLDER}/stage1_dense",
            "init_adapter": f"{DEMO_FOLDER}/segments",  # demo/train_segments.py
            "output_dir": f"{DEMO_FOLDER}/stage1_sparse",
            "frames_per_window": 33,
            "adapter_ffn_dim": 512,
            "digit_position_segments": 100,
            "reads_sentence": True,
            "epochs": 1.0,
            "global_batch_size": 32,
            "per_device_batch_size": 16,
            "learning_rate": 1e-3,
        },
    ),
    Stage(
        "demo",
        "long",
        trains="lora",
        adapter_output="segment",
        defaults=DEMO
        | {
            "init_lora": f"{DEMO_FOLDER}/stage1_dense",
            "lora_init": "continue",
            "init_adapter": f"{DEMO_FOLDER}/stage1_sparse",
            "frames_per_window": 33,
            "output_dir": f"{DEMO_FOLDER}/stage2_long_{{num_segments}}",
            "epochs": 1.0,
            "global_batch_size": 16,
            "per_device_batch_size": 8,
            "learning_rate": 2e-3,
        },
    ),
)


def find_stage(dataset: str, stage: str) -> Stage:
    """The row of the table."""
    return next(row for row in TABLE if (row.dataset, row.stage) == (dataset, stage))
