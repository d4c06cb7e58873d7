"""A cluster of three member processes, made anew for each test."""

from __future__ import annotations

import pytest

from .harness import Cluster


@pytest.fixture
def cluster_of(tmp_path):
    """Return what makes a cluster, for `async with`."""

    def make(names="abc", tick_seconds=0.05, **more):
        return Cluster(tmp_path, names, tick_seconds, **more)

    return make
