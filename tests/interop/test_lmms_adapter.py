"""The lmms-eval adapter against lmms-eval's own prompts and parsers."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import import_module
from types import SimpleNamespace

import pytest

from revisionllm.errors import UserError
from revisionllm.grounding.levels import Moment
from revisionllm.interop.lmms_answers import (
    NOTHING_FOUND,
    answer_sentence,
    query_of_prompt,
    sentence_of,
)
from revisionllm.records.predictions import Prediction

INSTALL = 'pip install --no-deps "lmms-eval==0.7.3" loguru pytz'
QUERIES = (
    "a man opens a door",
    'she says "stop 3 - 4 times" and leaves',
    "What happens at the end?",
)


def prediction(*spans: tuple[float, float]) -> Prediction:
    moments = [Moment(start_s, end_s, 0.9) for start_s, end_s in spans]
    return Prediction("q", "film", "a query", 9000.0, bool(spans), moments)


@pytest.fixture(scope="module")
def tasks() -> SimpleNamespace:
    """The tasks' own modules, without lmms-eval's dependencies: their package is not run."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None:
        pytest.skip(f"lmms-eval is not installed; to run these checks: {INSTALL}")
    name = "lmms_eval.tasks"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [f"{root}/tasks" for root in spec.submodule_search_locations]
        sys.modules[name] = package
    return SimpleNamespace(
        ewb=import_module("lmms_eval.tasks.extremewhenbench.utils"),
        timelens=import_module("lmms_eval.tasks.timelens.utils"),
        charades=import_module("lmms_eval.tasks.charades_sta.utils"),
    )


@pytest.mark.parametrize("span", [(0.0, 4.0), (7199.94, 7205.2), (12.3, 12.3), (59.96, 32401.05)])
def test_all_three_tasks_read_the_sentence_back(tasks, span):
    text = sentence_of(prediction(span))
    assert text == answer_sentence(*span)
    wanted = pytest.approx((round(span[0], 1), round(span[1], 1)), abs=0.051)
    assert tasks.ewb._parse_interval(text) == wanted
    assert [tuple(pair) for pair in tasks.timelens.extract_time(text)] == [wanted]
    assert [tuple(pair) for pair in tasks.charades.extract_time(text)] == [wanted]


def test_no_moment_is_no_span_for_all_three(tasks):
    text = sentence_of(prediction())
    assert text == NOTHING_FOUND
    assert tasks.ewb._parse_interval(text) is None
    assert tasks.timelens.extract_time(text) == []
    assert tasks.charades.extract_time(text) == []


@pytest.mark.parametrize("query", QUERIES)
def test_the_query_is_found_in_the_tasks_own_prompts(tasks, query):
    doc = {"question": query, "video_duration_s": 3725.0, "query": query, "caption": query}
    assert query_of_prompt(tasks.ewb.ewb_doc_to_text(doc)) == query
    timelens = task_kwargs("timelens/_default_yaml_template")
    assert query_of_prompt(tasks.timelens.timelens_doc_to_text(doc, timelens)) == query
    charades = task_kwargs("charades_sta/charades.yaml")
    assert query_of_prompt(tasks.charades.temporal_grounding_doc_to_text(doc, charades)) == query


def task_kwargs(file: str) -> dict[str, str]:
    """`lmms_eval_specific_kwargs.default` of a task's YAML (its !function lines left out)."""
    import yaml

    root = importlib.util.find_spec("lmms_eval").submodule_search_locations[0]
    with open(f"{root}/tasks/{file}", encoding="utf-8") as stream:
        text = "".join(line for line in stream if "!function" not in line)
    return yaml.safe_load(text)["lmms_eval_specific_kwargs"]["default"]


def test_a_request_runs_through_the_model_class_and_the_tasks_scoring(tasks):
    from lmms_eval.api.instance import Instance

    from revisionllm.interop.lmms_model import ReVisionLLM

    asked = []

    def ground(path: str, queries: list[str]) -> list[Prediction]:
        asked.append((path, queries))
        return [prediction((100.0, 110.0)) for _ in queries]

    doc = {"qid": "1", "video_id": "v", "source_corpus": "MLVU", "question": QUERIES[0]}
    doc |= {"correct_interval": [100.0, 120.0], "video_duration_s": 5000.0}
    model = ReVisionLLM(ground=ground)
    model.task_dict = {"extremewhenbench": {"test": [doc]}}
    prompt = tasks.ewb.ewb_doc_to_text(doc)
    metadata = {"task": "extremewhenbench", "doc_id": 0, "repeats": 1}
    arguments = (prompt, {}, lambda _: ["film.mp4"], 0, "extremewhenbench", "test")
    requests = [Instance("generate_until", arguments, index, metadata) for index in range(2)]
    answers = model.generate_until(requests)
    assert asked == [("film.mp4", [QUERIES[0], QUERIES[0]])]
    assert len(answers) == 2
    assert tasks.ewb.ewb_process_results(doc, answers)["ewb_mIoU"]["iou"] == 0.5


def test_the_registry_accepts_the_manifest(tasks):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from revisionllm.interop.lmms_model import ReVisionLLM
    from revisionllm.interop.lmms_plugin import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("revisionllm") is ReVisionLLM


def test_unknown_prompts_are_refused():
    with pytest.raises(UserError, match="no known task"):
        query_of_prompt("Describe the video.")


def test_the_sentence_holds_one_pair_and_no_other_digit():
    assert answer_sentence(1.0, 22.25) == "The event happens in 1.0 - 22.2 seconds"
    assert not any(character.isdigit() for character in NOTHING_FOUND)
