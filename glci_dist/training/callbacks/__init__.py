"""What follows a run: each a `Callback` (callbacks/base.py), built by training/setup.py."""
