"""Warnings in the log of the run at work, where Prefect shows them."""

from __future__ import annotations

from prefect import get_run_logger


def warn(message: str) -> None:
    """Log a warning of the flow or task that is running."""
    get_run_logger().warning(message)
