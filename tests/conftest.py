"""What is set for the whole suite before JAX is imported, and a finished run that tests share.

Eight virtual devices; and LLVM leaves its code as it is, which changes nothing that is compared here and takes a third
off the time, most of which is compilation. What a test runs as a process of its own is compiled as users have it.
"""

import os

import pytest

pytest.register_assert_rewrite("tests.processes")

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """An uninterrupted run of `tests/configs/tiny.py`; its cache holds the base model and the compiled programs."""
    from tests.processes import Run

    folder = tmp_path_factory.mktemp("straight")
    run = Run(folder / "run", folder / "cache")
    run.finish()
    return run
