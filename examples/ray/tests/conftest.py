"""A Ray of this machine alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

RAY = Path(__file__).resolve().parent.parent
MODEL = RAY.parents[1] / "models" / "pycode-4m"
sys.path.insert(0, str(RAY))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """More cores than there are: engines of one thread for a small model, and Ray's own tasks beside them."""
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=200 << 20, runtime_env={"env_vars": {"PYTHONPATH": str(RAY)}})
    yield
    ray.shutdown()
