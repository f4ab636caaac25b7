"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSIONS = Path(__file__).parent / "orc_jax" / "versions.py"

setup(
    name="orc-jax",
    version=re.search('VERSION = "(.+)"', VERSIONS.read_text())[1],
    description="Online knowledge distillation in JAX: groups of networks that teach each other.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["orc_jax", "orc_jax.*"]),
    install_requires=[
        "absl-py",
        "flax>=0.12",
        "grain>=0.2.15",
        "jax>=0.10",
        "jaxtyping",
        "ml-collections>=1.0",
        "numpy",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pillow",
        "rich",
        "safetensors",
        "scikit-learn",
        "tensorboardX",
    ],
    extras_require={
        "cuda": ["jax[cuda]>=0.10"],
        "export": ["flatbuffers"],
        # Besides, jax2onnx without its dependencies: it asks for an old Orbax.
        "onnx": ["flatbuffers", "onnx>=1.20", "onnx-ir>=0.2", "onnxruntime>=1.24"],
        "tfds": ["tensorflow-datasets>=4.9.8", "array_record", "importlib_resources"],
        "torch": ["torch>=2.6"],
        "bench": ["torch>=2.6"],
        "plots": ["matplotlib>=3.9"],
        "test": [
            "array_record",
            "flatbuffers",
            "hypothesis",
            "importlib_resources",
            "matplotlib>=3.9",
            "onnx>=1.20",
            "onnx-ir>=0.2",
            "onnxruntime>=1.24",
            "pytest",
            "pytest-xdist",
            "ruff",
            "tensorflow-datasets>=4.9.8",
            "torch==2.13.0",
        ],
    },
)
