"""Sharded checkpoints: what one is, writing it behind the training, verifying and reading it."""
