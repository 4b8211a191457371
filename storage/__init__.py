"""Gradient store, model registry, safe checkpoint loading, sources and payloads of outputs."""
