"""MAD: dense answers filtered by long-100 and long-33 retrieval -> R@k, mIoU.

    python revisionllm/eval/metric_retrieval_forward.py
    ... --convention released --grounding_path LOGS --retrieval_path LOGS

Run it after scripts/mad/eval_loop_stage1_dense.sh, eval_stage2_100.sh and eval_stage2_33.sh.
Paper: https://arxiv.org/abs/2411.14901, section 4.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import run_entry_point
from revisionllm.eval.retrieval.command import MetricDefaults, metric_parser, run_metrics

DEFAULTS = MetricDefaults(
    grounding_path="checkpoints/mad_stage1_dense",
    retrieval_path="checkpoints/mad_stage2_long_100",
    retrieval_path2="checkpoints/mad_stage2_long_33",
    launchers=(
        "bash scripts/mad/eval_loop_stage1_dense.sh",
        "bash scripts/mad/eval_stage2_100.sh",
        "bash scripts/mad/eval_stage2_33.sh",
    ),
    also_without_retrieval=False,
    window_s=125.0,
)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = metric_parser(DEFAULTS, __doc__.splitlines()[0]).parse_args(argv)
    return run_entry_point(lambda: run_metrics(args, DEFAULTS), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
