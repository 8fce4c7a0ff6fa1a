"""The one place that knows ranks and signals."""
