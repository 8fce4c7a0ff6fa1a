"""What the fork server of the tests' worlds does once, so that none of the ranks it forks has to."""

from __future__ import annotations

import gc
import pkgutil
from importlib import import_module

import glci_dist
from glci_dist import compose

# Optimisers import dynamo and ZeRO's, when they are made.
for name in ("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.ops.op_builder", "torch.profiler"):
    import_module(name)
for module in pkgutil.walk_packages(glci_dist.__path__, "glci_dist."):
    # One of these is a command, the other blocks the signals of the process that imports it.
    if not module.name.endswith((".__main__", ".quiet_server")):
        import_module(module.name)
# The first parse of an override makes tables that later ones use.
compose.load(["experiment=faces64", "data.shards=nowhere"])
# Where ranks collect garbage, they need not look through all of this, nor copy its pages.
gc.freeze()
