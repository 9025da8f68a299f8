"""The command line: the stage's defaults, everything wrong reported at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from tiny_training import ROOT, flags

from revisionllm.errors import UserError
from revisionllm.train.arguments import TrainArguments, accumulation, build_parser, check, parse


def test_every_field_has_help_and_a_flag():
    text = build_parser().format_help()
    for item in fields(TrainArguments):
        assert item.metadata["help"] and f"--{item.name}" in text


def test_stage_defaults_and_overrides():
    args = parse(["--dataset", "mad", "--stage", "long", "--num_segments", "33"])
    assert args.output_dir == "checkpoints/mad_stage2_long_33"
    assert (args.window_s, args.segment_stride_s, args.frames_per_window) == (125.0, 25.0, 250)
    assert parse(["--stage", "sparse"]).learning_rate == 1e-3
    assert parse(["--stage", "sparse", "--learning_rate", "1e-5"]).learning_rate == 1e-5
    assert parse(["--init_projector", ""]).init_projector is None


@pytest.mark.parametrize(
    ("world_size", "per_device", "expected"), [(1, 8, 16), (2, 8, 8), (8, 16, 1), (16, 8, 1)]
)
def test_accumulation_is_derived(world_size, per_device, expected):
    args = parse(["--per_device_batch_size", str(per_device)])
    assert args.global_batch_size == 128
    assert accumulation(args, world_size) == expected


def test_indivisible_batch_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"128 is no multiple of 3 devices x .* 16 = 48"):
        accumulation(parse([]), 3)


def test_all_contradictions_at_once(world):
    argv = flags(
        world, "dense", init_adapter="x", sparse_target="span", window_s=-1, warmup_ratio=2,
        per_device_batch_size=3, features=world / "nowhere",
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        check(parse(argv))
    for part in (
        "not --init_adapter",
        "--sparse_target span is for stage sparse",
        "--window_s must be above 0",
        "--warmup_ratio must be in 0..1",
        "8 is no multiple of 1 devices x --per_device_batch_size 3",
        "nowhere is not there (data/README.md",
        "--init_adapter x is not there",
    ):
        assert part in str(caught.value), part


def test_long_needs_the_sparse_adapter():
    with pytest.raises(UserError, match="stage long needs --init_adapter"):
        check(parse(["--stage", "long", "--init_adapter", ""]))


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from revisionllm.train.train import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert result.returncode == 0
