"""Architectures that people bring, each with the adapter that a user would write, and a user's own loss beside it."""
