"""The callbacks of a run, each a `Callback` (base.py), constructed by build.py."""
