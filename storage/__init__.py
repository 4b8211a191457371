"""Gradient store, model registry, safe checkpoint loading, sources and payloads of outputs."""

from gradtrail.storage.process_memory import bound_malloc

bound_malloc()
