"""The benchmarks' own code, on small numbers: a figure that cannot be measured is none."""

import asyncio

import pytest

from tests.bench import memory

pytestmark = pytest.mark.integration


def test_a_store_is_filled_and_restored(tmp_path, monkeypatch):
    """Twenty services' tasks go the whole way to RUNNING, and are there after a restart."""
    monkeypatch.setattr(memory, "SERVICES_STORED", 20)
    monkeypatch.setattr(memory, "TASKS_STORED", 200)
    monkeypatch.setattr(memory, "MEASURED_SERVICES", 5)
    directory = tmp_path / "raft"
    log_bytes_per_task = asyncio.run(memory.fill(directory))
    assert 100 < log_bytes_per_task < 2_000
    assert asyncio.run(memory.restore(directory)) > 0
