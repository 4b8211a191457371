"""Prefect flows: ingest, index, audit. They read like the story."""
