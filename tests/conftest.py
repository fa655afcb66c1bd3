"""What is set for the whole suite before JAX is imported, and a finished run that tests share.

Eight virtual devices, one in processes of their own; and LLVM leaves its code as it is, which changes nothing that is
compared here and takes a third off the time, most of which is compilation.
"""

import fcntl
import os

import pytest

pytest.register_assert_rewrite("tests.processes")

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def straight(tmp_path_factory, worker_id):
    """An uninterrupted run of `tests/configs/tiny.py`; its cache holds the base model and the compiled programs.

    The first of the workers that needs it makes it for all.
    """
    from tests.processes import Run

    mine = tmp_path_factory.getbasetemp()
    folder = (mine if worker_id == "master" else mine.parent) / "straight"
    folder.mkdir(exist_ok=True)
    run = Run(folder / "run", folder / "cache")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.has("summary.json"):
            run.finish()
    return run
