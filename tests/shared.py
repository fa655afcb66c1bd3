"""Reference data that lies beside the checkout, where it does; tests that need it are skipped elsewhere."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("PREMEM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path: str) -> Path:
    """The file or folder `path` of the shared data; skips the test that asks where it is absent."""
    found = ROOT / path
    if not found.exists():
        pytest.skip(f"needs ../shared/{path}")
    return found
