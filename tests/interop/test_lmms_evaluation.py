"""lmms-eval's own evaluator on a task of ours with local films: any model, any grounder.

Slow, and needs all of lmms-eval: `pip install lmms-eval` (its PyAV is older than ours; install
ours again behind it, and filelock 3.20, the last that lmms-eval 0.7.3 knows).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
YAML = """task: toy
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.ewb_doc_to_text
doc_to_target: !function utils.ewb_doc_to_target
process_results: !function utils.ewb_process_results
generation_kwargs: {{max_new_tokens: 50, temperature: 0, do_sample: false}}
metric_list:
  - metric: ewb_mIoU
    aggregation: !function utils.ewb_aggregate_miou
    higher_is_better: true
  - metric: ewb_R@0.5
    aggregation: !function utils.ewb_aggregate_r05
    higher_is_better: true
"""
UTILS = """from lmms_eval.tasks.extremewhenbench.utils import *


def visual(doc):
    return [doc["path"]]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """Two rendered films with six sentences, in ExtremeWhenBench's fields."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("toy")
    docs = []
    for seed in (21, 22):
        plan = plan_film(seed, 240.0, "test")
        write_film(plan, folder / f"{seed}.mp4")
        docs += [
            {
                "qid": f"{seed}-{number}",
                "video_id": str(seed),
                "source_corpus": "MLVU",
                "path": str(folder / f"{seed}.mp4"),
                "question": one.sentence,
                "correct_interval": list(one.span_s),
                "video_duration_s": 240.0,
            }
            for number, one in enumerate(film_sentences(plan, 3, 0))
        ]
    (folder / "docs.json").write_text("\n".join(map(json.dumps, docs)))
    (folder / "toy.yaml").write_text(YAML.format(docs=folder / "docs.json"))
    (folder / "utils.py").write_text(UTILS)
    return folder


@pytest.mark.parametrize(
    "arguments", ["checkpoint=", "model=demo", "model=clip:{clip}", "grounder={url}#stub,{profile}"]
)
def test_a_task_of_ours(task, tmp_path, monkeypatch, arguments) -> None:
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    from lmms_eval.tasks import TaskManager
    from stub_grounder import Stub, serving
    from test_foreign import PROFILE

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clip = Path(__file__).parents[2] / "checkpoints" / "demo" / "clip"
    (tmp_path / "stub.toml").write_text(PROFILE)
    with serving(Stub()) as stub:
        stub.says = lambda question: "Yes" if "yes or no" in question else "3 - 9 seconds"
        filled = arguments.format(
            clip=os.fspath(clip), url=stub.url, profile=f"grounder_profile={tmp_path}/stub.toml"
        )
        found = evaluator.simple_evaluate(
            model="revisionllm",
            model_args=f"{filled},device=cpu",
            tasks=["toy"],
            batch_size=1,
            task_manager=TaskManager(include_path=str(task), include_defaults=False),
            log_samples=True,
        )
    scores = found["results"]["toy"]
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["toy"]]
    assert len(answers) == 6 and all("The event happens in" in answer for answer in answers)
    if "grounder" in arguments:
        assert stub.prompts and all(answer.endswith("seconds") for answer in answers)
    elif "clip" not in arguments:  # actions, which the demo's LLM knows
        assert scores["ewb_R@0.5,none"] >= 0.5
