"""Where a run's scalars, pictures and words go."""
