"""Flags that the feature extractors share; no heavy imports."""

from __future__ import annotations

import argparse

DEFAULT_CLIP = "checkpoints/clip/ViT-L-14.pt"


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Which CLIP, and where it runs."""
    parser.add_argument(
        "--clip",
        default=DEFAULT_CLIP,
        help="CLIP folder, OpenAI .pt file or open_clip NAME:TAG (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)"
    )


def add_extraction_arguments(parser: argparse.ArgumentParser, *, default_fps: float) -> None:
    """How frame features are made."""
    add_clip_arguments(parser)
    parser.add_argument(
        "--feature_fps",
        type=float,
        default=default_fps,
        help="features per second: MAD 5, chapters 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="frames per CLIP pass (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="stored numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=1,
        help="videos at a time, each process with a CLIP of its own; they take the GPUs in turn"
        " (default: %(default)s)",
    )
