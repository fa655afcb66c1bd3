"""Eight virtual devices for the whole suite, set before JAX is imported, and a finished run that tests share."""

import os

import pytest

pytest.register_assert_rewrite("tests.processes")

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """An uninterrupted run of `tests/configs/tiny.py`; its cache holds the base model and the compiled programs."""
    from tests.processes import Run

    folder = tmp_path_factory.mktemp("straight")
    run = Run(folder / "run", folder / "cache")
    run.finish()
    return run
