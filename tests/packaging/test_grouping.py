"""Tests that share a fixture of minutes run in one worker."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="workers are grouped, and this run has none")
def test_workers_know_the_groups(request):
    # pytest 9.2.0 renamed what pytest-xdist 3.8.0 writes the group into: each worker then made the demo for itself.
    assert request.node.nodeid.endswith("@tests/packaging/test_grouping.py")
