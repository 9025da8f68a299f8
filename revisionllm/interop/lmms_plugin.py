"""lmms-eval plugin: ReVisionLLM as a model of its tasks (entry point group `lmms_eval.models`).

    pip install lmms-eval
    lmms-eval --model revisionllm --model_args checkpoint=RUN --tasks extremewhenbench,timelens
    lmms-eval --model revisionllm --model_args model=MODEL,grounder=vlm:FOLDER --tasks timelens

The adapter takes the video's path and the question, runs our own search over the whole film, and
answers in the sentence that the tasks parse. Importing this module needs no lmms-eval.
"""

from __future__ import annotations

MODEL_ID = "revisionllm"
CLASS_PATH = "revisionllm.interop.lmms_model.ReVisionLLM"


def manifest():
    """The `ModelManifest` that lmms-eval's registry asks plugins for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=CLASS_PATH)
