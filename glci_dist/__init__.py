"""glci-dist: distributed training of globally and locally consistent image completion."""

__version__ = "0.1.0"
