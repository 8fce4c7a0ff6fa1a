"""Sharded checkpoints: the manifest, asynchronous saving, verifying and reading."""
