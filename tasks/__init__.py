"""Prefect tasks: one side effect each; the only place where the rooms below meet."""
