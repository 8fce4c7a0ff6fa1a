"""The one place that knows SLURM: submitting a run, keeping it alive in its job, and telling what became of it."""
