"""Loggers of a run's scalars, pictures and texts."""
