"""Packaging of tfgpt; tool settings are in pyproject.toml, the versions that CI installs in requirements.lock."""

import runpy
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"

# Each lower bound was installed and tried, all of them at once (see CHANGELOG.md).
REQUIREMENTS = [
    "tensorflow>=2.21,<2.22",
    "keras>=3.12",
    "keras-nlp>=0.25",
    "tf2onnx>=1.17",
    "onnx>=1.18",
    "onnx-ir>=1.1",
    "onnxscript>=0.7.1",
    "onnxruntime>=1.22",
    "numpy>=1.26.4",
    "ml-dtypes>=0.5.4",
    "protobuf>=6.31.1",
    "tokenizers>=0.21",
    "safetensors>=0.5",
    "jsonargparse>=4.40",
    "docstring-parser>=0.16",
    "rich>=13.9",
    "PyYAML>=6.0.2",
    "tensorflow-serving-api>=2.19",
    "sacrebleu>=2.6",
    "requests>=2.34",
    "urllib3>=2.8",
    "grpcio>=1.74",
]
PLOTS = ["matplotlib>=3.9", "tensorboard>=2.21"]
TORCH = ["torch>=2.13"]
INTEROP = [*TORCH, "transformers>=5.0", "tiktoken>=0.12", "schemathesis>=4.32; python_version >= '3.11'"]
SERVING = ["starlette>=1.7", "uvicorn>=0.54", "prometheus-client>=0.26", "jinja2>=3.1.6"]
EXTRAS = {
    "plots": PLOTS,
    "torch": TORCH,
    "wandb": ["wandb>=0.31"],
    "test": [
        "pytest>=8.3",
        "pytest-xdist>=3.8",
        "hypothesis>=6.150",
        "ruff>=0.12",
        "kubernetes-validate>=1.31",
        "scikit-learn>=1.7",
        "selenium>=4.51",
        "ovmsclient>=2023.1",
        "openai>=3.54",
        *PLOTS,
        *SERVING,
    ],
    "interop": INTEROP,
    "bench": [*INTEROP, "scikit-learn>=1.7", *PLOTS],
    "serving": SERVING,
}

setup(
    name="tfgpt",
    version=runpy.run_path(str(ROOT / "tfgpt" / "version.py"))["__version__"],
    description="GPT-2 from a Keras fit loop to TensorFlow Serving and ONNX Runtime, with parity proved at each step",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_namespace_packages(include=["tfgpt", "tfgpt.*"], exclude=["*__pycache__*"]),
    package_data={"tfgpt.server": ["playground.html"]},
    python_requires=">=3.10,<3.14",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tfgpt = tfgpt.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
