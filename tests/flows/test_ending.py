"""A process that ran a flow ends without the lines that DuckDB's bindings print about leaks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prefect.settings import PREFECT_API_URL

pytestmark = pytest.mark.ci  # processes of their own

# Without the handler that `gradtrail.flows` registers, this prints 39 lines.
SCRIPT = """
import duckdb
from gradtrail.flows.audit import audit
from prefect import flow, task

@task
def ask():
    return duckdb.connect().execute("SELECT 42").fetchone()

@flow
def run():
    return ask()

print(run())
"""


def test_a_script_that_ran_a_flow_prints_nothing_about_leaks(prefect_server):
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "(42,)"
    assert "leaked" not in done.stderr
