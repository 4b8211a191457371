"""Audit reports: model, template, HTML, JSON and Parquet; policies and their findings."""
