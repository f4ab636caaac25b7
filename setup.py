"""Package metadata; tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="orc-jax",
    version="0.1.0",
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
        "tfds": ["tensorflow-datasets>=4.9.8", "array_record", "importlib_resources"],
        "torch": ["torch>=2.6"],
        "bench": ["torch>=2.6"],
        "plots": ["matplotlib>=3.9"],
        "test": [
            "array_record",
            "hypothesis",
            "importlib_resources",
            "matplotlib>=3.9",
            "pytest",
            "pytest-xdist",
            "ruff",
            "tensorflow-datasets>=4.9.8",
            "torch==2.13.0",
        ],
    },
)
