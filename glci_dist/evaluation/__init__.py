"""The frozen mask protocol, the metrics, the baselines and the report."""
