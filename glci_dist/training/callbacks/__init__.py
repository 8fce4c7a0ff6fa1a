"""What follows a run: each a `Callback` (callbacks/base.py), built by build.py."""
