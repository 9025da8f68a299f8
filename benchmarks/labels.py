"""The best IoU that an answer in frames can reach, by length of the event and time mapping.

    python benchmarks/labels.py
    python benchmarks/labels.py --window_s 500      # VidChapters

A perfect model names the labels of the event; their span differs from the event by up to a frame on
each side. Events start anywhere within a frame. No model is involved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revisionllm.grounding.scores import span_iou
from revisionllm.grounding.windows import WindowClock

LENGTHS_S = (0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
MAPPINGS = ("centered", "rounded")
STARTS = 2000


def reached(length_s: float, mapping: str, args: argparse.Namespace) -> np.ndarray:
    """IoU [STARTS] of perfect answers to events of one length."""
    frame_s = args.window_s / args.frames_per_window
    clock = WindowClock(args.window_s, args.frames_per_window, time_mapping=mapping)
    first_s = args.window_s / 4
    starts_s = first_s + np.arange(STARTS) / STARTS * frame_s
    events = np.stack([starts_s, starts_s + length_s], axis=1)
    spans = [clock.span(*clock.labels(event, 0.0), 0.0) for event in events.tolist()]
    return span_iou(np.array(spans), events)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--window_s", type=float, default=125.0)
    parser.add_argument("--frames_per_window", type=int, default=250)
    args = parser.parse_args()
    print(f"frames of {args.window_s / args.frames_per_window:g} s")
    heads = [f"{name} {what}" for name in MAPPINGS for what in ("mean", ">= 0.7", ">= 0.9")]
    print("| event | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    for length_s in LENGTHS_S:
        cells = []
        for mapping in MAPPINGS:
            ious = reached(length_s, mapping, args)
            cells += [f"{ious.mean():.3f}", f"{(ious >= 0.7).mean():.0%}"]
            cells.append(f"{(ious >= 0.9).mean():.0%}")
        print(f"| {length_s:g} s | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
