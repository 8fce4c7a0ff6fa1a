"""What the fork server of the tests' worlds does once, so that none of the ranks it forks has to."""

from __future__ import annotations

import pkgutil
from contextlib import suppress
from importlib import import_module

import deepspeed.ops

import glci_dist
from glci_dist import compose

# What engines and optimisers import once they are made.
for name in (
    "torch._dynamo",
    "torch.profiler._cupti_monitor",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.muon.muon_optimizer",
):
    # Private, and of some versions.
    with suppress(ImportError):
        import_module(name)
_ = deepspeed.ops.__compatible_ops__
for module in pkgutil.walk_packages(glci_dist.__path__, "glci_dist."):
    # One of these is a command, the other silences the process that imports it.
    if not module.name.endswith((".__main__", ".quiet_server")):
        import_module(module.name)
# The first parse of an override makes tables that later ones use.
compose.load(["experiment=faces64", "data.shards=nowhere"])
