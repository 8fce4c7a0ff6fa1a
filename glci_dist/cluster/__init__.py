"""The process group, launchers, the hang watch, and signals."""
