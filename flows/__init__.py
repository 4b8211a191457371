"""Prefect flows: ingest, index, audit. They read like the story."""

import atexit

from gradtrail.flows.ending import end_prefect

# Whoever runs a flow, a command, a script or a worker's process for one run.
atexit.register(end_prefect)
